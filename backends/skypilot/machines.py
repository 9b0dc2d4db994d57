"""The GPUs that SkyPilot can be asked for by name, as a small dated table.

Names: SkyPilot 0.14.1's sky/utils/gpu_names.py, read 2026-11-24
(https://github.com/skypilot-org/skypilot/blob/v0.14.1/sky/utils/gpu_names.py), those that the pinned torch runs
on: CUDA 13 dropped everything before Turing
(https://docs.nvidia.com/cuda/archive/13.0.0/cuda-toolkit-release-notes/). ARM machines (GH200, GB200) are left
out: not every pin has a wheel for them. Memory: NVIDIA's data sheets.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from cost.offers import Offer
from launcher.errors import CapacityError, UnsupportedError
from launcher.spec import Resources

USUAL_COUNTS = (1, 2, 4, 8)
"""GPUs a machine that some cloud sells."""


@dataclass(frozen=True)
class Gpu:
    """SkyPilot's name for a GPU, its memory in GiB, the most of them that one machine has."""

    name: str
    memory_gib: float
    most: int = 8


GPUS: tuple[Gpu, ...] = (
    Gpu("T4", 16), Gpu("L4", 24), Gpu("A4000", 16), Gpu("A10G", 24), Gpu("A10", 24), Gpu("A5000", 24),
    Gpu("A30", 24), Gpu("A40", 48), Gpu("A6000", 48), Gpu("RTX6000-Ada", 48), Gpu("L40", 48), Gpu("L40S", 48),
    Gpu("A100", 40, most=16), Gpu("A100-80GB", 80), Gpu("H100", 80), Gpu("H200", 141), Gpu("B200", 180),
)  # fmt: skip
"""Cheapest first, as clouds price them by the hour; no prices here."""

ALSO_CALLED = {"a100-40gb": "A100", "h100-80gb": "H100", "rtx6000ada": "RTX6000-Ada", "rtxa6000": "A6000"}
DEFAULT = "L4"
"""The first offer of a job that names no GPU: T4, which is cheaper, has no bfloat16."""


def accelerator(text: str, field: str) -> tuple[Gpu, int | None]:
    """`A100-80GB:8` -> the GPU and how many, None when the text has no number. Raises UnsupportedError.

    `field`: where the text stands, for the message.
    """
    name, colon, count = text.partition(":")
    if colon and (not count.isdecimal() or int(count) < 1):
        raise UnsupportedError(f"{field}: {text!r} is not GPU:NUMBER", "write it like A100-80GB:8")
    return _known(name, field), int(count) if colon else None


def offers(resources: Resources) -> Iterator[Offer]:
    """What fits, best first: the GPU asked for, then the same with more memory.

    Raises UnsupportedError for an unknown GPU, CapacityError where no machine has so many.
    """
    if resources.gpu is None:
        chosen = sorted(GPUS, key=lambda gpu: gpu.name != DEFAULT)
    else:
        wanted, count = accelerator(resources.gpu, "resources.gpu")
        if count is not None:
            raise UnsupportedError(
                f"resources.gpu: {resources.gpu} holds a number",
                f"--set resources.gpu={wanted.name} --set resources.gpus={count}",
            )
        chosen = [wanted, *(gpu for gpu in GPUS if gpu.name.startswith(f"{wanted.name}-"))]
    fitting = [gpu for gpu in chosen if resources.gpus <= gpu.most]
    if not fitting:
        raise CapacityError(
            f"resources.gpus: no machine has {resources.gpus} GPUs of kind {chosen[0].name}",
            f"--set resources.gpus={chosen[0].most} and more resources.nodes",
        )
    for gpu in fitting:
        yield _offer(gpu, resources.gpus, resources)
    for text in resources.fallback:
        gpu, count = accelerator(text, "resources.fallback")
        yield _offer(gpu, count or resources.gpus, resources)


def fewest_gpus(offer: Offer, resources: Resources) -> int:
    """GPUs of the smallest machine that the job may get."""
    counts = (accelerator(text, "resources.fallback")[1] for text in resources.fallback)
    return min([offer.gpus, *(count or resources.gpus for count in counts)])


def _offer(gpu: Gpu, count: int, resources: Resources) -> Offer:
    sold = count in USUAL_COUNTS or count == gpu.most
    return Offer(
        backend="skypilot",
        instance_type=f"{gpu.name}:{count}",
        region=resources.region,
        gpu=gpu.name,
        gpus=count,
        nodes=resources.nodes,
        gpu_memory_gib=gpu.memory_gib,
        spot=resources.spot,
        note=None if sold else f"clouds sell 1, 2, 4 or 8 {gpu.name}; a cluster of your own may have {count}",
    )


def _known(name: str, field: str) -> Gpu:
    plain = name.casefold().removeprefix("nvidia").strip(" -").replace(" ", "-")
    plain = ALSO_CALLED.get(plain.replace("rtx-", "rtx"), plain).casefold()
    for gpu in GPUS:
        if gpu.name.casefold() == plain:
            return gpu
    names = {gpu.name.casefold(): gpu.name for gpu in GPUS}
    close = difflib.get_close_matches(plain, names, n=1)
    guess = f"did you mean {names[close[0]]}? " if close else ""
    raise UnsupportedError(f"{field}: no GPU is called {name!r}", f"{guess}there are: {', '.join(names.values())}")
