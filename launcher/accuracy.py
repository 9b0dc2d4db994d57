"""The ledger in words and as JSON: how far estimates were off, and by what the next ones are multiplied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from cost.calibration import Calibration, Key
from cost.ledger import Compared, Entry, middle_error
from launcher.screen import span

UNKNOWN = "unknown"
NEAR, FAR = 0.10, 0.25
"""Sizes of an error up to which it is good, and from which it is bad."""


def table(entries: Sequence[Entry]) -> Table:
    """One line a job that came to its end."""
    found = Table(box=None, pad_edge=False, header_style="bold")
    found.add_column("JOB", overflow="fold")
    found.add_column("BACKEND", no_wrap=True)
    for name in ("TIME EST.", "TOOK", "ERROR", "COST EST.", "COST", "ERROR", "STEP"):
        found.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        hours, cost = entry.hours or _NOTHING, entry.cost or _NOTHING
        step = UNKNOWN if entry.ratio is None else f"x {entry.ratio:.2f}"
        found.add_row(
            entry.job, entry.backend, _time(hours.expected), _time(hours.actual), _error(hours),
            _dollars(cost.expected), _dollars(cost.actual), _error(cost), step,
        )  # fmt: skip
    return found


_NOTHING = Compared(low=None, expected=None, high=None, actual=None)


def summary(entries: Sequence[Entry]) -> str:
    """What all of them say together."""
    known = [one.hours for one in entries if one.hours is not None and one.hours.error is not None]
    if not known:
        return "no estimate of these jobs' time is in the record: nothing to compare"
    inside = sum(bool(one.inside) for one in known)
    error = middle_error(known)
    assert error is not None
    jobs = f"{len(known)} job{'' if len(known) == 1 else 's'}"
    return (
        f"time: {jobs} compared, median error {100 * error:.0f} %, {inside} inside the band (ERROR: estimate "
        "above (+) or below (-) what it took; STEP: measured over modelled)"
    )


def calibration_table(known: Mapping[Key, Calibration]) -> Table:
    """What is in force for the next estimate."""
    found = Table(title="in force", title_justify="left", title_style="dim", box=None, header_style="bold",
                  pad_edge=False)  # fmt: skip
    for name in ("GPU", "TUNING", "STACK"):
        found.add_column(name, no_wrap=True)
    for name in ("TIMES", "BAND", "MEMORY", "JOBS"):
        found.add_column(name, justify="right", no_wrap=True)
    for (gpu, kind, stack), one in known.items():
        memory = "-" if one.memory is None else f"{one.memory:.2f}"
        found.add_row(gpu, kind, stack, f"{one.factor:.2f}", f"{one.low:.2f}-{one.high:.2f}", memory, str(one.n))
    return found


def as_json(entries: Sequence[Entry], known: Mapping[Key, Calibration]) -> dict[str, Any]:
    """The whole ledger, oldest job first; unknown is null."""
    hours = [entry.hours for entry in entries]
    compared = [one for one in hours if one is not None and one.inside is not None]
    return {
        "jobs": [_entry_json(entry) for entry in entries],
        "calibrations": [
            {"gpu": gpu, "method": kind, "stack": stack, "factor": round(one.factor, 4), "low": round(one.low, 4),
             "high": round(one.high, 4), "n": one.n, "source": one.source, "memory": _rounded(one.memory)}
            for (gpu, kind, stack), one in known.items()
        ],
        "summary": {
            "compared": len(compared),
            "median_error_hours": _rounded(middle_error(hours)),
            "median_error_cost": _rounded(middle_error(entry.cost for entry in entries)),
            "inside": sum(bool(one.inside) for one in compared),
        },
    }  # fmt: skip


def _entry_json(entry: Entry) -> dict[str, Any]:
    training = entry.training
    return {
        "job": entry.job,
        "backend": entry.backend,
        "state": entry.state,
        "gpu": training.gpu if training else None,
        "method": training.kind if training else None,
        "stack": training.stack if training else None,
        "packing": entry.packing,
        "hours": _compared_json(entry.hours),
        "cost": _compared_json(entry.cost),
        "step_s": {
            "modelled": training.step_s if training else None,
            "measured": _rounded(entry.step_s),
            "ratio": _rounded(entry.ratio),
        },
        "peak_gib": {
            "modelled": training.peak_gib if training else None,
            "measured": entry.peak_gib,
            "ratio": _rounded(entry.memory_ratio),
        },
    }


def _compared_json(one: Compared | None) -> dict[str, Any] | None:
    if one is None:
        return None
    figures = {name: _rounded(getattr(one, name)) for name in ("low", "expected", "high", "actual", "error")}
    return {**figures, "inside": one.inside}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _time(hours: float | None) -> str:
    return UNKNOWN if hours is None else span(hours * 3600)


def _dollars(value: float | None) -> str:
    return UNKNOWN if value is None else f"${value:.2f}"


def _error(one: Compared) -> Text:
    if one.error is None:
        return Text("-", style="dim")
    size = abs(one.error)
    style = "green" if size <= NEAR else "red" if size > FAR else "yellow"
    return Text(f"{100 * one.error:+.0f} %", style=style)
