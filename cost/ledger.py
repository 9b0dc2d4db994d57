"""The ledger: what was estimated for each job that is over against what it took, and what that says of the next.

An estimate's model of a training step is kept beside it, uncalibrated: measured step times then calibrate the
model itself, and a calibration never calibrates another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from cost.band import Refusal
from cost.calibration import NEWEST, Calibration, Key, Training, calibrate
from cost.estimate import Hardware
from cost.processor import PROCESSOR
from cost.throughput import micro_batch_s

SCALED = 0.15
"""By how much more another GPU than the probed one may differ, as a share: the error of the ratio of the two."""


def training_of(hardware: Hardware, kind: str) -> Training | None:
    """What the model expects of a step there; None where it refuses."""
    if hardware.training is not None:
        return hardware.training
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
    probe: bool = False
    """Was it a dry run?"""

    @property
    def ratio(self) -> float | None:
        """Measured over modelled step time."""
        if self.training is None or not self.step_s or self.training.step_s <= 0:
            return None
        ratio = self.step_s / self.training.step_s
        return ratio if math.isfinite(ratio) else None


def calibrations(entries: Iterable[Entry]) -> Mapping[Key, Calibration]:
    """What the jobs, oldest first, say of the next one with the same GPU, kind of tuning and stack."""
    known: dict[Key, list[Entry]] = {}
    for entry in entries:
        if entry.training is not None and entry.ratio:
            known.setdefault(entry.training.key, []).append(entry)
    return {
        key: calibrate([one.ratio for one in found if one.ratio], _source(found[-NEWEST:]))
        for key, found in sorted(known.items())
    }


def scaled_probe(entries: Iterable[Entry], kind: str, stack: str) -> Calibration | None:
    """What the newest dry runs on a GPU say of other GPUs: the model's ratio between the two, times what was
    measured, which is the measured over the modelled time, in a wider band."""
    ratios, gpus = [], []
    for entry in entries:
        known = entry.training
        if not (entry.probe and known and entry.ratio) or known.gpu == PROCESSOR.name:
            continue
        if (known.kind, known.stack) == (kind, stack):
            ratios.append(entry.ratio)
            gpus.append(known.gpu)
    if not ratios:
        return None
    found = calibrate(ratios, f"probed on {gpus[-1]}, scaled")
    return replace(found, low=found.low * (1 - SCALED), high=found.high * (1 + SCALED))


def _source(found: Sequence[Entry]) -> str:
    jobs, probes = sum(not one.probe for one in found), sum(one.probe for one in found)
    parts = [f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((jobs, "earlier job"), (probes, "probe")) if n]
    return f"{' and '.join(parts)} of yours"


def middle_error(figures: Iterable[Compared | None]) -> float | None:
    """Median of the errors' sizes."""
    errors = [abs(one.error) for one in figures if one is not None and one.error is not None]
    return median(errors) if errors else None
