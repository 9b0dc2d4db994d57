"""Azure ML's machines with GPUs, and which of them fit what a job wants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backends.gpus import no_such_count, of_model
from cost.offers import Offer
from launcher.spec import Resources

NO_LOW_PRIORITY = "third parties report that Azure ML has no spot capacity of this size (2026-08)"


@dataclass(frozen=True)
class Size:
    """One VM size: how many GPUs of which model it has, and their memory each."""

    name: str
    gpu: str
    gpus: int
    memory_gib: float
    names: tuple[str, ...] = ()
    """What else users call the GPU."""
    spot_note: str | None = None


SIZES = (
    Size("Standard_NC8as_T4_v3", "T4", 1, 16),
    Size("Standard_NV36ads_A10_v5", "A10", 1, 24),
    Size("Standard_NC24ads_A100_v4", "A100-80GB", 1, 80, ("A100", "A100-80")),
    Size("Standard_NC64as_T4_v3", "T4", 4, 16),
    Size("Standard_NV72ads_A10_v5", "A10", 2, 24),
    Size("Standard_NC40ads_H100_v5", "H100-NVL", 1, 94, ("H100",)),
    Size("Standard_NC48ads_A100_v4", "A100-80GB", 2, 80, ("A100", "A100-80"), NO_LOW_PRIORITY),
    Size("Standard_NC80adis_H100_v5", "H100-NVL", 2, 94, ("H100",)),
    Size("Standard_NC96ads_A100_v4", "A100-80GB", 4, 80, ("A100", "A100-80"), NO_LOW_PRIORITY),
    Size("Standard_ND96asr_v4", "A100", 8, 40, ("A100-40GB", "A100-40")),
    Size("Standard_ND96amsr_A100_v4", "A100-80GB", 8, 80, ("A100", "A100-80")),
    Size("Standard_ND96isr_H100_v5", "H100", 8, 80),
    Size("Standard_ND96isr_H200_v5", "H200", 8, 141),
)
"""As of 2026-11-25, cheapest first (list prices of eastus, early 2025; no price of the H200 was found).
https://learn.microsoft.com/azure/virtual-machines/sizes/overview

`az ml compute list-sizes` says which of them a region has. Left out: V100 (too old for the pinned torch), a part
of an A10 (less than 24 GiB), AMD's GPUs (the pinned torch is built for CUDA).
"""


def offers(backend: str, wanted: Resources) -> Iterator[Offer]:
    """The machines that fit, cheapest first. Raises CapacityError when there is none."""
    sizes = list(SIZES) if wanted.gpu is None else of_model(backend, wanted.gpu, SIZES)
    fitting = [size for size in sizes if size.gpus == wanted.gpus]
    if not fitting:
        raise no_such_count((size.gpus for size in sizes), wanted)
    for size in fitting:
        yield Offer(
            backend=backend,
            instance_type=size.name,
            region=wanted.region,
            gpu=size.gpu,
            gpus=size.gpus,
            nodes=wanted.nodes,
            gpu_memory_gib=size.memory_gib,
            spot=wanted.spot,
            note=size.spot_note if wanted.spot else None,
        )
