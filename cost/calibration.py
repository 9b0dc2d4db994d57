"""How far the estimate was off for jobs like this one, and so by what the next estimate is multiplied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Key = tuple[str, str, str]
"""(GPU, kind of tuning, stack)."""
PADDED = "padded"


def in_way(stack: str, way: str) -> str:
    """What a stack is called with its rows in passes that way: packed ones are a stack of their own."""
    return stack if way == PADDED else f"{stack}, {way} rows"


@dataclass(frozen=True, kw_only=True)
class Training:
    """The model's expectation of one optimizer step, as the record keeps it."""

    gpu: str
    kind: str
    stack: str
    step_s: float
    way: str = PADDED
    """How rows share passes in it (cost/packing.py)."""
    peak_gib: float | None = None
    """Tensors on each GPU at the peak of the steps that are run; None: not modelled."""

    @property
    def key(self) -> Key:
        return self.gpu, self.kind, in_way(self.stack, self.way)

    def as_json(self) -> dict[str, Any]:
        return {
            "gpu": self.gpu, "kind": self.kind, "stack": self.stack, "way": self.way,
            "step_s": round(self.step_s, 6), "peak_gib": self.peak_gib and round(self.peak_gib, 4),
        }  # fmt: skip

    @classmethod
    def read(cls, found: Any) -> Training | None:
        """What `as_json` wrote; None for anything else: an older record has none."""
        try:
            return cls(
                gpu=str(found["gpu"]), kind=str(found["kind"]), stack=str(found["stack"]),
                step_s=float(found["step_s"]), way=str(found.get("way", PADDED)),
                peak_gib=None if found.get("peak_gib") is None else float(found["peak_gib"]),
            )  # fmt: skip
        except (AttributeError, LookupError, TypeError, ValueError):
            return None


PRIOR_SPREAD, PRIOR_WEIGHT = 0.12, 3.0
"""What one job says of another with other rows and settings, before several have been seen: a standard deviation
of 12 %, twice that of the estimate against measured runs (docs/cost.md), which counts as much as three jobs do."""
Z = 1.64
"""Standard deviations on either side that nine of ten lie within."""
NEWEST = 20
"""Jobs that count; older ones ran with older software."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measured over estimated time of one (GPU, method, stack): the usual one, and its spread."""

    factor: float
    low: float
    high: float
    n: int
    source: str
    packed: bool = False
    """Was it measured on the same rows, packed as they will be?"""
    memory: float | None = None
    """Measured over modelled peak of tensors; None: not measured."""


def calibrate(ratios: Sequence[float], source: str, memories: Sequence[float] = ()) -> Calibration:
    """What measured over estimated times (and peaks of memory), newest last, say of the next job.

    Their geometric mean; the band is that of one more job, its spread their own drawn towards the prior.

    Example: one ratio of 1.2: 1.2 x exp(+-1.64 x 0.12 x sqrt(2)) = 0.908, 1.2, 1.585. Three of 1.2: the spread is
    0.12 x sqrt(3 / 5) = 0.0930, the band exp(+-1.64 x 0.0930 x sqrt(4 / 3)): 1.006, 1.2, 1.431.
    """
    logs = [math.log(ratio) for ratio in ratios[-NEWEST:]]
    n, centre = len(logs), fmean(logs)
    squares = PRIOR_WEIGHT * PRIOR_SPREAD**2 + sum((one - centre) ** 2 for one in logs)
    spread = math.sqrt(squares / (PRIOR_WEIGHT + n - 1))
    reach = Z * spread * math.sqrt(1 + 1 / n)
    return Calibration(
        factor=math.exp(centre), low=math.exp(centre - reach), high=math.exp(centre + reach), n=n, source=source,
        memory=math.exp(fmean(map(math.log, memories[-NEWEST:]))) if memories else None,
    )  # fmt: skip
