"""Vertex AI's machines with GPUs, and which of them fit what a job wants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backends.gpus import no_such_count, of_model
from cost.offers import Offer
from launcher.errors import UnsupportedError
from launcher.spec import Resources

SCARCE = "Google recommends spot or a reservation for this machine"
NEVER_ON_DEMAND = frozenset(f"a3-highgpu-{n}g" for n in (1, 2, 4))
"""Had as spot or through the Dynamic Workload Scheduler (FLEX_START) only; they can't be reserved either.
https://cloud.google.com/compute/docs/accelerator-optimized-machines, A3 High (a copy read 2026-11-25)
"""


@dataclass(frozen=True)
class Family:
    """One GPU model: Vertex's name for it, and the machine for each number of GPUs."""

    gpu: str
    accelerator: str
    memory_gib: float
    machines: dict[int, str]
    others: tuple[str, ...] = ()
    """What else users call it."""
    flex: bool = True
    """True where FLEX_START, the one strategy with a waiting limit, has it."""
    note: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.accelerator, *self.others)


FAMILIES = (
    Family(
        "T4", "NVIDIA_TESLA_T4", 16, {1: "n1-standard-8", 2: "n1-standard-16", 4: "n1-standard-32"}, flex=False,
    ),
    Family(
        "L4", "NVIDIA_L4", 24,
        {1: "g2-standard-12", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
    ),
    Family(
        "A100", "NVIDIA_TESLA_A100", 40,
        {**{n: f"a2-highgpu-{n}g" for n in (1, 2, 4, 8)}, 16: "a2-megagpu-16g"}, ("A100-40GB", "A100-40"),
    ),
    Family(
        "RTXPRO6000", "NVIDIA_RTX_PRO_6000", 96,
        {1: "g4-standard-48", 2: "g4-standard-96", 4: "g4-standard-192"}, flex=False,
    ),
    Family(
        "A100-80GB", "NVIDIA_A100_80GB", 80, {n: f"a2-ultragpu-{n}g" for n in (1, 2, 4, 8)}, ("A100", "A100-80"),
    ),
    Family("H100", "NVIDIA_H100_80GB", 80, {n: f"a3-highgpu-{n}g" for n in (1, 2, 4, 8)}),
    Family(
        "H100-MEGA", "NVIDIA_H100_MEGA_80GB", 80, {8: "a3-megagpu-8g"}, ("H100", "H100-MEGA-80GB"), note=SCARCE,
    ),
    Family("H200", "NVIDIA_H200_141GB", 141, {8: "a3-ultragpu-8g"}, note=SCARCE),
    Family("B200", "NVIDIA_B200", 180, {8: "a4-highgpu-8g"}, note=SCARCE),
)  # fmt: skip
"""As of 2026-11-23, cheapest first for an equal number of GPUs (Compute Engine's list prices, us-central1,
2026-08-06). https://cloud.google.com/vertex-ai/docs/training/configure-compute

Left out: V100, P100, P4 (too old for the pinned torch), GB200 (reservations only, ARM images).
"""

DEFAULT = "L4"
"""The first offer of a job that names no GPU: T4, which is cheaper, has no bfloat16."""
ON_N1 = {
    "NVIDIA_TESLA_T4": (1, 2, 4), "NVIDIA_TESLA_V100": (1, 2, 4, 8), "NVIDIA_TESLA_P100": (1, 2, 4),
    "NVIDIA_TESLA_P4": (1, 2, 4),
}  # fmt: skip
"""Attached to an N1 machine, in these numbers; every other GPU comes with its own machine types."""
BUILT_IN = {
    "g2-standard-": "NVIDIA_L4",
    "g4-standard-": "NVIDIA_RTX_PRO_6000",
    "a2-highgpu-": "NVIDIA_TESLA_A100",
    "a2-megagpu-": "NVIDIA_TESLA_A100",
    "a2-ultragpu-": "NVIDIA_A100_80GB",
    "a3-highgpu-": "NVIDIA_H100_80GB",
    "a3-megagpu-": "NVIDIA_H100_MEGA_80GB",
    "a3-ultragpu-": "NVIDIA_H200_141GB",
    "a4-highgpu-": "NVIDIA_B200",
    "a4x-highgpu-": "NVIDIA_GB200",
}
"""Beginning of a machine type -> the GPU in it (same page and date)."""
GPUS_OF = {
    **{f.machines[n]: n for f in FAMILIES if f.accelerator not in ON_N1 for n in f.machines},
    **{f"g2-standard-{n}": 1 for n in (4, 8, 16, 32)},
}
"""Machine type -> the GPUs in it (same page and date), with the sizes that only raw options ask for."""
FLEX_START = {family.accelerator for family in FAMILIES if family.flex}
"""https://cloud.google.com/vertex-ai/docs/training/schedule-jobs-dws (2026-11-23)."""


def accelerator_of(offer: Offer) -> str:
    """Vertex's name for the offer's GPU."""
    return next(family.accelerator for family in FAMILIES if family.gpu == offer.gpu)


def offers(backend: str, wanted: Resources) -> Iterator[Offer]:
    """The machines that fit, best first. Raises CapacityError or UnsupportedError when there is none."""
    families = _of_model(wanted.gpu)
    if wanted.max_wait_hours is not None:
        families = _with_flex_start(families)
    fitting = [family for family in families if wanted.gpus in family.machines]
    if not fitting:
        raise no_such_count((count for family in families for count in family.machines), wanted)
    on_demand = not wanted.spot and wanted.max_wait_hours is None
    if on_demand:
        fitting = _had_on_demand(fitting, wanted)
    for family in fitting:
        machine = family.machines[wanted.gpus]
        yield Offer(
            backend=backend,
            instance_type=machine,
            region=wanted.region,
            gpu=family.gpu,
            gpus=wanted.gpus,
            nodes=wanted.nodes,
            gpu_memory_gib=family.memory_gib,
            spot=wanted.spot,
            flex=wanted.max_wait_hours is not None,
            note=family.note if on_demand else None,
        )


def _of_model(gpu: str | None) -> list[Family]:
    if gpu is None:
        return sorted(FAMILIES, key=lambda family: family.gpu != DEFAULT)
    return of_model("vertex", gpu, FAMILIES)


def _with_flex_start(families: list[Family]) -> list[Family]:
    found = [family for family in families if family.flex]
    if not found:
        able = ", ".join(family.gpu for family in FAMILIES if family.flex)
        raise UnsupportedError(
            f"resources.max_wait_hours: Vertex limits the wait in strategy FLEX_START only, "
            f"and that has no {families[0].gpu}",
            f"leave it out, or choose a GPU that has it: {able}",
        )
    return found


def _had_on_demand(families: list[Family], wanted: Resources) -> list[Family]:
    found = [family for family in families if family.machines[wanted.gpus] not in NEVER_ON_DEMAND]
    if not found:
        machine = families[0].machines[wanted.gpus]
        raise UnsupportedError(
            f"resources.gpus: Google has {machine} as spot or flex-start only, not on demand",
            "--set resources.spot=true, or --set resources.max_wait_hours=24 (FLEX_START), or resources.gpus=8",
        )
    return found
