"""How far the estimate was off for jobs like this one, and so by what the next estimate is multiplied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Key = tuple[str, str, str]
"""(GPU, kind of tuning, stack)."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The model's expectation of one optimizer step, as the record keeps it."""

    gpu: str
    kind: str
    stack: str
    step_s: float

    @property
    def key(self) -> Key:
        return self.gpu, self.kind, self.stack

    def as_json(self) -> dict[str, Any]:
        return {"gpu": self.gpu, "kind": self.kind, "stack": self.stack, "step_s": round(self.step_s, 6)}

    @classmethod
    def read(cls, found: Any) -> Training | None:
        """What `as_json` wrote; None for anything else: an older record has none."""
        try:
            return cls(
                gpu=str(found["gpu"]), kind=str(found["kind"]), stack=str(found["stack"]),
                step_s=float(found["step_s"]),
            )  # fmt: skip
        except (LookupError, TypeError, ValueError):
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


def calibrate(ratios: Sequence[float], source: str) -> Calibration:
    """What measured over estimated times, newest last, say of the next job.

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
    )  # fmt: skip
