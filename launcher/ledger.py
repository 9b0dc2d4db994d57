"""Estimate against actual of every job in the record, and the calibrations that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Protocol

from cost.calibration import Calibration, Training
from cost.ledger import Compared, Entry, Trained, calibrations_for, scaled_probe, telling
from cost.processor import PROCESSOR
from launcher.events import Event
from launcher.store import JobRecord

FEW_STEPS = 10
"""Of a job with so few, the first is left out: kernels are chosen and memory is fetched in it."""
LEAST_STEPS = 3
"""A job with fewer says nothing of the next one."""


class Events(Protocol):
    """Reads events of one job: those of some names, or all."""

    def __call__(self, job: str, /, *names: str) -> Sequence[Event]: ...


def entries_of(records: Iterable[JobRecord], events: Events) -> list[Entry]:
    """The ledger, oldest job first."""
    found = [_entry(record, events) for record in records if record.over and record.spec]
    return found[::-1]


def calibrations_of(
    entries: Iterable[Entry], rows: Trained | None = None
) -> Callable[[str, str, str], Calibration | None]:
    """(GPU, kind of tuning, stack) -> what earlier jobs say of such a job, or probes on another GPU, scaled.

    `rows`: those of the job in question.
    """
    found = list(entries)
    known, told = calibrations_for(found, rows), telling(found, rows)

    def look(gpu: str, kind: str, stack: str) -> Calibration | None:
        own = known.get((gpu, kind, stack))
        return (
            own if own or gpu == PROCESSOR.name else scaled_probe(told, kind, stack, rows.model if rows else None)
        )

    return look


def trained(spec: Mapping[str, Any], rows: int, tokens: int) -> Trained:
    """What a job file (as the record keeps it) and its counted rows say of how they share passes."""
    train = spec.get("train", {})
    return Trained(
        model=_model(spec), rows=rows, tokens=tokens, batch_size=train.get("batch_size"),
        micro_batch=train.get("micro_batch"), loss_on=train.get("loss_on"),
    )  # fmt: skip


def _model(spec: Mapping[str, Any]) -> str:
    return str(spec.get("model", {}).get("id"))


def _entry(record: JobRecord, events: Events) -> Entry:
    dry_run = record.spec.get("train", {}).get("dry_run_steps")
    # A resumed job is part of another, whose estimate was of the whole.
    done = record.state == "SUCCEEDED" and not dry_run and not record.resumes
    training = Training.read(record.estimate.get("training"))
    packing, rows = (None, None) if training is None else _packing(record, events)
    return Entry(
        job=record.id, backend=record.backend, state=record.state,
        hours=_hours(record) if done else None, cost=_cost(record) if done else None,
        training=training, step_s=None if training is None else _step_s(record, events),
        peak_gib=_peak_gib(record, events), probe=bool(dry_run), packing=packing, rows=rows,
        model=_model(record.spec),
    )  # fmt: skip


def _packing(record: JobRecord, events: Events) -> tuple[str | None, Trained | None]:
    """How the job's rows were put into passes, and which rows they were; None: its events don't say."""
    told = {event.name: event.fields for event in events(record.id, "packing", "data")}
    kind, rows = told.get("packing", {}).get("kind"), told.get("data", {})
    count, tokens = rows.get("train_rows"), rows.get("train_tokens")
    if not isinstance(count, int) or not isinstance(tokens, int):
        return kind, None
    return kind, trained(record.spec, count, tokens)


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


def _step_s(record: JobRecord, events: Events) -> float | None:
    """Seconds of an optimizer step: of all of them, or of the few that came behind the first."""
    steps, train_s = _number(record.actual.get("steps")), _number(record.actual.get("train_s"))
    if steps is not None and train_s is not None and steps > FEW_STEPS:
        return train_s / steps
    seen = [
        step_s for event in events(record.id, "step")
        if (step_s := _number(event.fields.get("step_s"))) is not None
    ]  # fmt: skip
    return fmean(seen[1:]) if len(seen) >= LEAST_STEPS else None


def _peak_gib(record: JobRecord, events: Events) -> float | None:
    """The most that the steps took; None where memory ran out, for then fewer rows shared a pass than modelled.

    What `done` says is not it: judging is in that, and of a job that was started again only the last process.
    """
    told = events(record.id, "step", "micro_batch")
    if any(event.name == "micro_batch" for event in told):
        return None
    peaks = [peak for event in told if (peak := _number(event.fields.get("peak_gib"))) is not None]
    return max(peaks, default=None)
