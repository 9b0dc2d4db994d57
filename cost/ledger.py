"""The ledger: what was estimated for each job that is over against what it took, and what that says of the next.

An estimate's model of a training step is kept beside it, uncalibrated: measured step times then calibrate the
model itself, and a calibration never calibrates another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from cost.band import Refusal
from cost.calibration import NEWEST, PADDED, Calibration, Key, Training, calibrate
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
    way = hardware.ways.chosen.kind if hardware.ways else PADDED
    recipe = hardware.ways.chosen.recipe if hardware.ways else hardware.recipe
    passed = micro_batch_s(recipe)
    if isinstance(passed, Refusal):
        return None
    step_s = passed.expected * recipe.accumulation
    return Training(
        gpu=recipe.gpu.name, kind=kind, stack=recipe.stack.name, step_s=step_s, way=way,
        peak_gib=hardware.peak_gib,
    )  # fmt: skip


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
class Trained:
    """What decides how rows share passes: of two jobs that agree in it both take the same way."""

    model: str
    rows: int
    tokens: int
    batch_size: int | None
    micro_batch: int | None
    loss_on: str | None


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
    peak_gib: float | None = None
    """Measured peak of the tensors on a GPU."""
    probe: bool = False
    """Was it a dry run?"""
    packing: str | None = None
    """How its rows were put into passes (train_entry/packing.py); None: not known."""
    rows: Trained | None = None
    model: str | None = None
    """The model's id: by how much its memory was off says nothing of another model's weights."""

    @property
    def modelled(self) -> bool:
        """Did its rows share passes as the estimate took it? Those of train.packing (sequences) always do."""
        return self.training is not None and self.packing in (self.training.way, "sequences")

    @property
    def key(self) -> Key | None:
        """What it is counted with: jobs whose rows went another way than expected, or nobody knows how, apart."""
        if self.training is None:
            return None
        if self.modelled:
            return self.training.key
        gpu, kind, stack = self.training.key
        return gpu, kind, f"{stack}, but {self.packing or 'unknown'}"

    @property
    def ratio(self) -> float | None:
        """Measured over modelled step time."""
        if self.training is None or not self.step_s or self.training.step_s <= 0:
            return None
        ratio = self.step_s / self.training.step_s
        return ratio if math.isfinite(ratio) else None

    @property
    def memory_ratio(self) -> float | None:
        """Measured over modelled peak of tensors, where rows went the modelled way; a processor's says nothing."""
        told = self.training
        if told is None or not (self.modelled and told.peak_gib and self.peak_gib):
            return None
        return None if told.gpu == PROCESSOR.name else self.peak_gib / told.peak_gib


def telling(entries: Sequence[Entry], rows: Trained | None = None) -> list[Entry]:
    """The entries whose ratio says something of a job with `rows`, of the same GPU, kind of tuning and stack.

    Where rows went another way into passes than the model expected, by how much that was off depends on them
    alone: such a job says something of one with the same rows, and of that more than any other does.
    """

    def same(entry: Entry) -> bool:
        return rows is not None and entry.rows == rows and not entry.modelled

    known = [(entry, entry.training.key) for entry in entries if entry.training is not None and entry.ratio]
    packed = {key for entry, key in known if same(entry)}
    return [entry for entry, key in known if (same(entry) if key in packed else entry.modelled)]


def calibrations(entries: Iterable[Entry]) -> Mapping[Key, Calibration]:
    """What the jobs, oldest first, say by GPU, kind of tuning and stack; each way of packing is one of its own.

    Of memory only where all of them had the same model.
    """
    return _calibrated((entry.key, entry) for entry in entries)


def calibrations_for(entries: Sequence[Entry], rows: Trained | None) -> Mapping[Key, Calibration]:
    """What they say of the next job, whose rows are `rows`; of its memory those with its model alone."""
    told = telling(entries, rows)
    packed = {one.training.key for one in told if one.training and not one.modelled}
    keyed = ((one.training.key if one.training else None, one) for one in told)
    found = _calibrated(keyed, lambda some: memory_ratios(some, rows.model if rows else None))
    return {key: replace(one, packed=key in packed) for key, one in found.items()}


def memory_ratios(entries: Sequence[Entry], model: str | None) -> list[float]:
    """Measured over modelled peaks of jobs with that model: they are most of all its weights."""
    return [one.memory_ratio for one in entries if model and one.model == model and one.memory_ratio]


def _of_the_only_model(entries: Sequence[Entry]) -> list[float]:
    models = {one.model for one in entries if one.memory_ratio}
    return memory_ratios(entries, models.pop()) if len(models) == 1 else []


def _calibrated(
    entries: Iterable[tuple[Key | None, Entry]],
    memories: Callable[[Sequence[Entry]], list[float]] = _of_the_only_model,
) -> Mapping[Key, Calibration]:
    known: dict[Key, list[Entry]] = {}
    for key, entry in entries:
        if key is not None and entry.ratio:
            known.setdefault(key, []).append(entry)
    return {
        key: calibrate(
            [one.ratio for one in found if one.ratio],
            _source(found[-NEWEST:]),
            memories(found),
        )
        for key, found in sorted(known.items())
    }


def scaled_probe(entries: Sequence[Entry], kind: str, stack: str, model: str | None = None) -> Calibration | None:
    """What the newest dry runs on a GPU say of other GPUs: the model's ratio between the two, times what was
    measured, which is the measured over the modelled time, in a wider band. Of memory: those of `model`."""
    ratios, gpus, probes, packed = [], [], [], False
    for entry in entries:
        known = entry.training
        if not (entry.probe and known and entry.ratio) or known.gpu == PROCESSOR.name:
            continue
        if known.key[1:] == (kind, stack):
            ratios.append(entry.ratio)
            gpus.append(known.gpu)
            packed = packed or not entry.modelled
            probes.append(entry)
    if not ratios:
        return None
    found = calibrate(ratios, f"probed on {gpus[-1]}, scaled", memory_ratios(probes, model))
    return replace(found, packed=packed, low=found.low * (1 - SCALED), high=found.high * (1 + SCALED))


def _source(found: Sequence[Entry]) -> str:
    jobs, probes = sum(not one.probe for one in found), sum(one.probe for one in found)
    parts = [f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((jobs, "earlier job"), (probes, "probe")) if n]
    return f"{' and '.join(parts)} of yours"


def middle_error(figures: Iterable[Compared | None]) -> float | None:
    """Median of the errors' sizes."""
    errors = [abs(one.error) for one in figures if one is not None and one.error is not None]
    return median(errors) if errors else None
