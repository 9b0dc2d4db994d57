"""What each GPU can do: memory, arithmetic, bandwidth and links, as vendors state them and as training reaches.

Peaks are the vendors' own data sheets, read 2026-11-25 (one address a generation below), always dense and with
fp32 accumulation, for they are the ones that a training step can use. `sustained` is not on any data sheet: it is
the share of that peak which the matrix products of a real training step hold for hours. A burst reaches more
(https://github.com/stas00/ml-engineering, "Maximum Achievable Matmul FLOPS", 2025-06: A100 SXM 271 of 312, H100
SXM 794 of 989, GH200 829, MI300X 668, MI325X 785 of 1307), because power and heat do not hold a burst back.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from launcher.errors import ConfigError

AS_OF = "2026-11-25"

SOURCES: dict[str, str] = {
    "volta": "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
    "turing": "https://www.nvidia.com/en-us/data-center/tesla-t4/",
    "ampere": "https://www.nvidia.com/en-us/data-center/a100/",
    "ada": "https://www.nvidia.com/en-us/data-center/l40s/",
    "hopper": "https://www.nvidia.com/en-us/data-center/h100/",
    "blackwell": "https://www.nvidia.com/en-us/data-center/dgx-b200/",
    "cdna3": "https://www.amd.com/en/products/accelerators/instinct/mi300.html",
    "cdna4": "https://www.amd.com/en/products/accelerators/instinct/mi350.html",
}
"""Where a generation's peaks stand."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU model."""

    name: str
    generation: str
    memory_gib: float
    """What a program may allocate, a little less than what is printed on the box."""
    tflops: float
    """Dense bf16 peak with fp32 accumulation (fp16 where the generation has no bf16)."""
    hbm_gbs: float
    """Memory bandwidth, GB/s."""
    sustained: float
    """Share of `tflops` that training's matrix products hold."""
    link_gbs: float
    """One GPU to the others of its machine, one way, as NCCL measures it (bus bandwidth), GB/s."""
    fabric_gbs: float
    """One GPU's share of the network between machines, GB/s; the offer may have less."""
    measured: bool = False
    """True where a training run of this model was at hand to set `sustained`; else it is its generation's."""
    aliases: tuple[str, ...] = ()

    @property
    def bf16(self) -> bool:
        """Does the hardware compute in bfloat16?"""
        return self.generation not in ("volta", "turing")

    @property
    def fp8(self) -> bool:
        return self.generation not in ("volta", "turing", "ampere")


# sustained: A100 and H100 from published training runs (docs/cost.md, "Measured error"), the rest by generation.
# Cards whose power limit is far below what their peak would draw (L4 72 W, L40S 350 W, A10 150 W, T4 70 W, PCIe
# versions) hold less; consumer cards hold more, since their fp32-accumulate rate is half of what the silicon could
# do. Links: NVLink 2/3/4/5 as NCCL sees them, PCIe where there is no NVLink.
_ROWS: tuple[tuple[str, str, float, float, float, float, float, float, tuple[str, ...]], ...] = (
    # name, generation, GiB, TFLOP/s, HBM GB/s, sustained, link, fabric, aliases
    ("V100-16GB", "volta", 15.7, 125, 900, 0.55, 130, 3, ("V100",)),
    ("V100-32GB", "volta", 31.7, 125, 900, 0.55, 130, 12, ()),
    ("T4", "turing", 14.6, 65, 320, 0.40, 6, 3, ()),
    ("A10", "ampere", 22.0, 125, 600, 0.48, 12, 3, ()),
    ("A10G", "ampere", 22.0, 70, 600, 0.70, 10, 3, ()),
    ("A30", "ampere", 23.6, 165, 933, 0.65, 20, 3, ()),
    ("A40", "ampere", 44.4, 150, 696, 0.65, 20, 3, ()),
    ("A4000", "ampere", 15.6, 77, 448, 0.65, 10, 1, ("RTXA4000",)),
    ("A5000", "ampere", 23.5, 111, 768, 0.65, 20, 1, ("RTXA5000",)),
    ("A6000", "ampere", 47.5, 155, 768, 0.65, 20, 1, ("RTXA6000",)),
    ("RTX3090", "ampere", 23.5, 71, 936, 0.80, 10, 1, ("3090",)),
    (
        "A100-40GB", "ampere", 39.4, 312, 1555, 0.70, 230, 12,
        ("A100", "A100-40", "A100-SXM4-40GB", "A100-PCIE-40GB"),
    ),
    (
        "A100-80GB", "ampere", 79.1, 312, 2039, 0.70, 230, 25,
        ("A100-80", "A100-SXM", "A100-SXM4-80GB", "A100-80GB-SXM", "A800-80GB", "A800"),
    ),
    ("A100-80GB-PCIe", "ampere", 79.1, 312, 1935, 0.62, 20, 12, ("A100-PCIE", "A100-PCIE-80GB")),
    ("L4", "ada", 22.0, 121, 300, 0.45, 10, 3, ()),
    ("L40", "ada", 44.4, 181, 864, 0.70, 20, 3, ()),
    ("L40S", "ada", 44.4, 362, 864, 0.50, 20, 6, ()),
    ("RTX4080", "ada", 15.6, 97.5, 717, 0.80, 10, 1, ("4080",)),
    ("RTX4090", "ada", 23.5, 165, 1008, 0.80, 10, 1, ("4090",)),
    (
        "RTX6000-Ada", "ada", 47.4, 364, 960, 0.50, 20, 1,
        ("RTX6000", "6000-ADA", "RTX6000ADA", "RTX6000-ADA-GENERATION"),
    ),
    ("H100-PCIe", "hopper", 79.1, 756, 2000, 0.48, 40, 12, ()),
    ("H100-NVL", "hopper", 93.1, 835, 3900, 0.52, 40, 12, ()),
    (
        "H100-SXM", "hopper", 79.1, 989, 3350, 0.55, 360, 50,
        ("H100", "H100-80GB", "H100-SXM5", "H100-80GB-HBM3", "H100-MEGA", "H100-MEGA-80GB", "H800"),
    ),
    ("GH200", "hopper", 94.5, 989, 4000, 0.58, 360, 50, ("GH200-480GB", "GH200-96GB")),
    ("H200-NVL", "hopper", 139.8, 835, 4800, 0.52, 40, 25, ()),
    ("H200-SXM", "hopper", 139.8, 989, 4800, 0.56, 360, 50, ("H200", "H200-141GB")),
    ("RTX5090", "blackwell", 31.3, 209, 1792, 0.75, 20, 1, ("5090",)),
    ("RTXPRO4500", "blackwell", 31.3, 211, 896, 0.50, 20, 3, ("RTX-PRO-4500",)),
    ("RTXPRO6000", "blackwell", 94.9, 503, 1597, 0.55, 40, 6, ("RTX-PRO-6000", "RTX-PRO-6000-WK")),
    ("B200", "blackwell", 178.0, 2250, 8000, 0.60, 700, 50, ("B200-SXM",)),
    ("GB200", "blackwell", 184.0, 2500, 8000, 0.60, 700, 100, ()),
    ("B300", "blackwell", 267.0, 2250, 8000, 0.60, 700, 100, ("B300-SXM",)),
    ("GB300", "blackwell", 276.0, 2500, 8000, 0.60, 700, 100, ()),
    ("MI300X", "cdna3", 191.0, 1307, 5300, 0.40, 310, 50, ("MI300",)),
    ("MI325X", "cdna3", 255.0, 1307, 6000, 0.43, 310, 50, ()),
    ("MI350X", "cdna4", 287.0, 2300, 8000, 0.43, 380, 50, ()),
    ("MI355X", "cdna4", 287.0, 2500, 8000, 0.43, 380, 50, ()),
)  # fmt: skip
_MEASURED = frozenset({"A100-40GB", "A100-80GB", "H100-SXM", "H200-SXM", "L40S", "B200"})

GPUS: dict[str, Gpu] = {
    name: Gpu(
        name=name, generation=generation, memory_gib=memory, tflops=tflops, hbm_gbs=hbm, sustained=sustained,
        link_gbs=link, fabric_gbs=fabric, measured=name in _MEASURED, aliases=aliases,
    )
    for name, generation, memory, tflops, hbm, sustained, link, fabric, aliases in _ROWS
}  # fmt: skip
"""Name -> GPU."""

_SIZES: dict[str, tuple[str, ...]] = {"a100": ("A100-40GB", "A100-80GB"), "v100": ("V100-16GB", "V100-32GB")}
"""Names that clouds give to two memory sizes."""


def find_gpu(name: str, memory_gib: float | None = None) -> Gpu:
    """The GPU that a cloud, a driver or a person calls `name`.

    `memory_gib`, where it is known, tells two sizes of one name apart. Raises ConfigError with a did-you-mean.
    """
    key = _plain(name)
    sizes = _SIZES.get(key)
    if sizes and memory_gib is not None:
        return min((GPUS[size] for size in sizes), key=lambda gpu: abs(gpu.memory_gib - memory_gib))
    found = _BY_NAME.get(key)
    if found is not None:
        return found
    close = difflib.get_close_matches(key, _BY_NAME, n=1, cutoff=0.5)
    guess = f"did you mean {_BY_NAME[close[0]].name}? " if close else ""
    raise ConfigError(f"GPU {name!r} is not in the table of GPUs", f"{guess}known: {', '.join(GPUS)}")


def _plain(name: str) -> str:
    """Lower case without the maker, the product line and punctuation."""
    text = re.sub(r"\b(nvidia|amd|instinct|tesla|geforce|quadro)\b", "", re.sub(r"[_\s]+", " ", name.lower()))
    return re.sub(r"[^a-z0-9]", "", text)


_BY_NAME: dict[str, Gpu] = {_plain(text): gpu for gpu in GPUS.values() for text in (gpu.name, *gpu.aliases)}
