"""Estimate against actual of every job in the record, and the calibrations that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from cost.calibration import Calibration, Training
from cost.ledger import Compared, Entry, calibrations, scaled_probe
from cost.processor import PROCESSOR
from launcher.events import Event
from launcher.store import JobRecord

FEW_STEPS = 10
"""Of a job with so few, the first is left out: kernels are chosen and memory is fetched in it."""
LEAST_STEPS = 3
"""A job with fewer says nothing of the next one."""


def entries_of(records: Iterable[JobRecord], events: Callable[[str], Sequence[Event]]) -> list[Entry]:
    """The ledger, oldest job first. `events` reads those of one job; it is asked for few of them."""
    found = [_entry(record, events) for record in records if record.over and record.spec]
    return found[::-1]


def calibrations_of(entries: Iterable[Entry]) -> Callable[[str, str, str], Calibration | None]:
    """(GPU, kind of tuning, stack) -> what earlier jobs say of such a job, or probes on another GPU, scaled."""
    found = list(entries)
    known = calibrations(found)

    def look(gpu: str, kind: str, stack: str) -> Calibration | None:
        own = known.get((gpu, kind, stack))
        return own if own or gpu == PROCESSOR.name else scaled_probe(found, kind, stack)

    return look


def _entry(record: JobRecord, events: Callable[[str], Sequence[Event]]) -> Entry:
    dry_run = record.spec.get("train", {}).get("dry_run_steps")
    # A resumed job is part of another, whose estimate was of the whole.
    done = record.state == "SUCCEEDED" and not dry_run and not record.resumes
    training = Training.read(record.estimate.get("training"))
    return Entry(
        job=record.id, backend=record.backend, state=record.state,
        hours=_hours(record) if done else None, cost=_cost(record) if done else None,
        training=training, step_s=None if training is None else _step_s(record, events),
        probe=bool(dry_run),
    )  # fmt: skip


def _hours(record: JobRecord) -> Compared:
    seconds = record.billable_s if record.billable_s is not None else record.actual.get("seconds")
    return _compared(record.estimate.get("hours"), None if seconds is None else seconds / 3600)


def _cost(record: JobRecord) -> Compared:
    return _compared(record.estimate, record.actual.get("cost"))


def _compared(estimate: Any, actual: Any) -> Compared:
    band = estimate if isinstance(estimate, dict) else {}
    low, expected, high = (_number(band.get(name)) for name in ("low", "expected", "high"))
    return Compared(low=low, expected=expected, high=high, actual=_number(actual))


def _number(value: Any) -> float | None:
    """Money is text in the record."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _step_s(record: JobRecord, events: Callable[[str], Sequence[Event]]) -> float | None:
    """Seconds of an optimizer step: of all of them, or of the few that came behind the first."""
    steps, train_s = _number(record.actual.get("steps")), _number(record.actual.get("train_s"))
    if steps is not None and train_s is not None and steps > FEW_STEPS:
        return train_s / steps
    seen = [
        step_s for event in events(record.id)
        if event.name == "step" and (step_s := _number(event.fields.get("step_s"))) is not None
    ]  # fmt: skip
    return fmean(seen[1:]) if len(seen) >= LEAST_STEPS else None
