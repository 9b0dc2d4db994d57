"""Which GPUs are in which machine: the vendors' price lists say it badly or not at all.

AWS: https://docs.aws.amazon.com/ec2/latest/instancetypes/ac.html; Azure:
https://learn.microsoft.com/azure/virtual-machines/sizes/overview; Google:
https://cloud.google.com/compute/docs/accelerator-optimized-machines (all read 2026-11). Left out: GPUs that the
pinned torch does not run on (before Turing), ARM machines, parts of a GPU. Names of GPUs are SkyPilot's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The GPUs of a machine and their memory in GiB; with what else it has, where a price depends on it."""

    gpu: str
    gpus: int
    gpu_memory_gib: float
    vcpus: int | None = None
    memory_gib: float | None = None
    ssd_gib: int = 0


_AWS_FAMILIES: dict[str, tuple[str, float, dict[str, int]]] = {
    "g4dn": ("T4", 16, {"12xlarge": 4, "metal": 8}),
    "g5": ("A10G", 24, {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}),
    "g6": ("L4", 24, {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}),
    "gr6": ("L4", 24, {}),
    "g6e": ("L40S", 48, {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}),
    "g7e": ("RTXPRO6000", 96, {"12xlarge": 2, "24xlarge": 4, "48xlarge": 8}),
    "p4d": ("A100", 40, {"24xlarge": 8}),
    "p4de": ("A100-80GB", 80, {"24xlarge": 8}),
    "p5": ("H100", 80, {"48xlarge": 8}),
    "p5e": ("H200", 141, {"48xlarge": 8}),
    "p5en": ("H200", 141, {"48xlarge": 8}),
    "p6-b200": ("B200", 180, {"48xlarge": 8}),
    "p6-b300": ("B300", 268, {"48xlarge": 8}),
}
"""Family -> GPU, its memory, and the sizes that have more than one."""

_AZURE_SIZES: tuple[tuple[str, str, float, dict[str, int]], ...] = (
    (r"NC(\d+)as_T4_v3", "T4", 16, {"4": 1, "8": 1, "16": 1, "64": 4}),
    (r"NV(\d+)ad(?:m)?s_A10_v5", "A10", 24, {"36": 1, "72": 2}),
    (r"NC(\d+)ads_A100_v4", "A100-80GB", 80, {"24": 1, "48": 2, "96": 4}),
    (r"ND(\d+)asr_v4", "A100", 40, {"96": 8}),
    (r"ND(\d+)amsr_A100_v4", "A100-80GB", 80, {"96": 8}),
    (r"NC(\d+)adi?s_H100_v5", "H100-NVL", 94, {"40": 1, "80": 2}),
    (r"ND(\d+)isr_H100_v5", "H100", 80, {"96": 8}),
    (r"ND(\d+)isr_H200_v5", "H200", 141, {"96": 8}),
)
"""Size without Standard_ -> GPU, its memory, and vCPUs -> GPUs; other vCPUs are parts of a GPU."""

_SSD_GIB = 375
"""One local SSD of Compute Engine's."""


def _google() -> dict[str, Shape]:
    found = {f"n1-standard-{8 * n}": Shape("T4", n, 16, 8 * n, 30.0 * n) for n in (1, 2, 4)}
    for vcpus, n in {4: 1, 8: 1, 12: 1, 16: 1, 32: 1, 24: 2, 48: 4, 96: 8}.items():
        found[f"g2-standard-{vcpus}"] = Shape("L4", n, 24, vcpus, 4.0 * vcpus)
    for n in (1, 2, 4, 8):
        found[f"g4-standard-{48 * n}"] = Shape("RTXPRO6000", n, 96, 48 * n, 180.0 * n)
        found[f"a2-highgpu-{n}g"] = Shape("A100", n, 40, 12 * n, 85.0 * n)
        found[f"a2-ultragpu-{n}g"] = Shape("A100-80GB", n, 80, 12 * n, 170.0 * n, _SSD_GIB * n)
        found[f"a3-highgpu-{n}g"] = Shape("H100", n, 80, 26 * n, 234.0 * n, 2 * _SSD_GIB * n)
    found["a2-megagpu-16g"] = Shape("A100", 16, 40, 96, 1360.0)
    found["a3-megagpu-8g"] = Shape("H100-MEGA", 8, 80, 208, 1872.0, 16 * _SSD_GIB)
    return found


GOOGLE = _google()
"""Machine type -> what it has; the SSDs are those that come with it and are billed with it. Not here: A3 Ultra and
A4, whose parts go by names in the catalogue that nobody has shown."""


def aws_machine(instance_type: str) -> Shape | None:
    """`g5.2xlarge`; None for a machine without a GPU that is of use."""
    family, _, size = instance_type.partition(".")
    if family not in _AWS_FAMILIES:
        return None
    gpu, memory, several = _AWS_FAMILIES[family]
    return Shape(gpu, several.get(size, 1), memory)


def azure_machine(size: str) -> Shape | None:
    """`Standard_NC24ads_A100_v4`; None for a machine without a whole GPU that is of use."""
    for pattern, gpu, memory, by_vcpus in _AZURE_SIZES:
        found = re.fullmatch(f"Standard_{pattern}", size)
        if found and found[1] in by_vcpus:
            return Shape(gpu, by_vcpus[found[1]], memory, int(found[1]))
    return None
