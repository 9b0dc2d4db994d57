"""How far the estimate was off for jobs like this one, and so by what the next estimate is multiplied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measured over estimated time of one (GPU, method, stack): the usual one, and its spread."""

    factor: float
    low: float
    high: float
    n: int
    source: str
