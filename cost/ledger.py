"""The ledger: what was estimated for each job that is over against what it took, and what that says of the next.

An estimate's model of a training step is kept beside it, uncalibrated: measured step times then calibrate the
model itself, and a calibration never calibrates another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from cost.band import Refusal
from cost.calibration import Calibration, Key, Training, calibrate
from cost.estimate import Hardware
from cost.throughput import micro_batch_s


def training_of(hardware: Hardware, kind: str) -> Training | None:
    """What the model expects of a step there; None where it refuses."""
    if hardware.recipe is None:
        return None
    passed = micro_batch_s(hardware.recipe)
    if isinstance(passed, Refusal):
        return None
    step_s = passed.expected * hardware.recipe.accumulation
    return Training(gpu=hardware.recipe.gpu.name, kind=kind, stack=hardware.recipe.stack.name, step_s=step_s)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One figure as estimated and as it was; None is unknown."""

    low: float | None
    expected: float | None
    high: float | None
    actual: float | None

    @property
    def error(self) -> float | None:
        """Estimated over actual, less 1: 0.25 is a quarter too much. Example: 5 for 4: 0.25."""
        if self.expected is None or not self.actual:
            return None
        return self.expected / self.actual - 1

    @property
    def inside(self) -> bool | None:
        """Was it within the band?"""
        if self.low is None or self.high is None or self.actual is None:
            return None
        return self.low <= self.actual <= self.high


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One job that is over. `hours` and `cost` are compared for those that came to their end."""

    job: str
    backend: str
    state: str
    hours: Compared | None
    cost: Compared | None
    training: Training | None
    step_s: float | None
    """Measured seconds of an optimizer step."""

    @property
    def ratio(self) -> float | None:
        """Measured over modelled step time."""
        if self.training is None or not self.step_s or self.training.step_s <= 0:
            return None
        return self.step_s / self.training.step_s


def calibrations(entries: Iterable[Entry]) -> Mapping[Key, Calibration]:
    """What the jobs, oldest first, say of the next one with the same GPU, kind of tuning and stack."""
    ratios: dict[Key, list[float]] = {}
    for entry in entries:
        if entry.training is not None and entry.ratio is not None and math.isfinite(entry.ratio):
            ratios.setdefault(entry.training.key, []).append(entry.ratio)
    return {key: calibrate(found, _source(len(found))) for key, found in sorted(ratios.items())}


def _source(n: int) -> str:
    return f"{n} earlier job{'s' if n > 1 else ''} of yours"


def middle_error(figures: Iterable[Compared | None]) -> float | None:
    """Median of the errors' sizes."""
    errors = [abs(one.error) for one in figures if one is not None and one.error is not None]
    return median(errors) if errors else None
