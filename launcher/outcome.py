"""Staying with a job until it ends, and what is said then; run, resume and watch share it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from backends.base import JobStatus
from launcher import screen
from launcher.client import Client
from launcher.errors import JobFailedError, LaunchError
from launcher.events import Event
from launcher.figures import confusion_table, figures_table
from launcher.live import follow
from launcher.observing import Heard, Resubmitted, Spending, Trouble
from launcher.store import JobRecord

TAIL = 12
MOST_WAITS = 5
DETACHED = 130
"""Exit code of a launcher that stopped following (as Ctrl-C's own)."""


UNKNOWN_ESTIMATE: dict[str, Any] = {"low": None, "expected": None, "high": None, "assumptions": [], "missing": []}
"""Of a job whose record was lost and rebuilt."""


def stay(client: Client, job_id: str, as_json: bool, from_start: bool = True) -> None:
    """Follow the job to its end and print the result.

    Raises JobFailedError when it failed or was cancelled. Ctrl-C detaches.
    """
    items = client.follow(job_id, from_start=from_start)
    with detaching(client, job_id):
        if as_json:
            _follow_json(items)
        else:
            follow(items, job_id, screen.err())
    record = client.latest(job_id)
    if as_json:
        print(json.dumps({"event": "job", **describe(record)}, default=str), flush=True)
    _raise_if_failed(client, record)
    if not as_json:
        print_result(record)


@contextlib.contextmanager
def detaching(client: Client, job_id: str) -> Iterator[None]:
    """Ctrl-C in here ends the program, not the job: says how to come back and raises click's Exit(130)."""
    try:
        yield
    except KeyboardInterrupt:
        console, record = screen.err(), client.recorded(job_id)
        if record.over:  # its end was being read, or another submitted in its place
            console.print(f"\ndetached; {record.id} is over: {record.state}", style="bold")
            console.print(f"  launch show {record.id}   tells how it ended", soft_wrap=True)
            if record.state == "FAILED":
                console.print(f"  launch resume {record.id}   goes on from its checkpoints", soft_wrap=True)
            raise click.exceptions.Exit(DETACHED) from None
        console.print(f"\ndetached; {record.id} goes on", style="bold")
        console.print(f"  launch watch {record.id}    follows it again", soft_wrap=True)
        console.print(f"  launch cancel {record.id}   checkpoints and stops it", soft_wrap=True)
        if client.needs_follower(record):
            console.print(unfollowed(record), soft_wrap=True)
        raise click.exceptions.Exit(DETACHED) from None


def unfollowed(record: JobRecord) -> str:
    """What a job that `needs_follower` does without one, and how to run one later."""
    return (
        "  when its spot capacity is taken for good, only a follower submits it anew: "
        f"launch watch {record.id} is one\n"
        f"  once it has ended without one, launch resume {record.id} goes on from its checkpoints"
    )


def describe(record: JobRecord) -> dict[str, Any]:
    """A job as JSON: the stable names that `show --json` promises."""
    return {
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "reason": record.reason,
        "backend": record.backend,
        "owner": record.owner,
        "ref": record.ref,
        "created": record.created.isoformat(),
        "started": record.started.isoformat() if record.started else None,
        "ended": record.ended.isoformat() if record.ended else None,
        "seen": record.seen.isoformat() if record.seen else None,
        "interruptions": record.interruptions,
        "resumes": record.resumes,
        "resubmits": record.resubmits,
        "folder": record.folder,
        "url": record.url,
        "machine": record.machine,
        "capacity": dict(record.capacity),
        "model": record.spec["model"]["id"],
        "task": record.spec["task"],
        "data": dict(record.data),
        "evaluation": dict(record.evaluation),
        "estimate": {**UNKNOWN_ESTIMATE, **record.estimate},
        "actual": dict(record.actual),
        "artifacts": [dict(a) for a in record.artifacts],
    }


def capacity_rows(record: JobRecord) -> Iterator[tuple[str, str]]:
    """What was asked for, what became of it, and the last waits of a second or more in the vendor's words."""
    tries, given = record.capacity.get("tries") or {}, "given"
    if len(tries) > 1 or any(what != given for what in tries.values()):
        yield "asked for", ", then ".join(f"{name} ({what})" for name, what in tries.items())
    shown = []
    for wait in record.capacity.get("waits") or ():
        since, until = (
            datetime.fromisoformat(wait["since"]),
            wait["until"] and datetime.fromisoformat(wait["until"]),
        )
        took = ((until or datetime.now(UTC)) - since).total_seconds()
        if took >= 1 and not (until is None and record.over):
            at = f"from {since.astimezone():%H:%M:%S}"
            shown.append(("waited" if until else "waits", f"{screen.span(took)} {at}: {'; '.join(wait['said'])}"))
    yield from shown[-MOST_WAITS:]


def print_result(record: JobRecord, more: Sequence[tuple[str, str]] = ()) -> None:
    """State, `more` facts, time, figures before and after, where the artifact is, what to type next."""
    console = screen.out()
    actual = record.actual
    state = ("state", screen.state(record.state))
    console.print(screen.facts([("job", record.id), state, *more, *_took(record)]))
    judged = figures_table(record.evaluation)
    if judged is not None:
        console.print(judged)
    matrix = confusion_table(record.evaluation.get("tuned") or {})
    if matrix is not None:
        console.print(matrix)
    if not record.artifacts:
        if actual.get("steps") and record.spec["train"]["dry_run_steps"]:
            console.print("dry run: the steps were real; nothing was kept.  Next: launch run", style="bold")
        return
    where = Path(record.folder) / "artifact" if record.folder else f"launch fetch {record.id}"
    console.print(f"artifact  {where}", style="bold", soft_wrap=True)
    console.print("next", style="bold")
    console.print(
        screen.commands(
            (f"launch show {record.id}", "everything about it"),
            (f"launch fetch {record.id} --to DIR", "a verified copy of the artifact"),
            (f"launch eval {record.id} --data FILE", "judge it on other rows"),
        )
    )


def _took(record: JobRecord) -> list[tuple[str, str]]:
    actual = record.actual
    rows = []
    if actual.get("seconds") is not None:
        rows.append(("time", screen.span(actual["seconds"])))
    if actual.get("train_s") and actual.get("steps"):
        speed = f", {actual['tokens_per_s']:.0f} tokens/s" if actual.get("tokens_per_s") else ""
        per_step = actual["train_s"] / actual["steps"]
        rows.append(
            ("training", f"{actual['steps']} steps in {screen.span(actual['train_s'])}"
             f" ({per_step:.2f} s a step{speed})")
        )  # fmt: skip
    if actual.get("peak_gib"):
        rows.append(("memory", f"{actual['peak_gib']:.1f} GiB at most"))
    if actual.get("cost") is not None:
        rows.append(("cost", f"${actual['cost']}"))
    return rows


def _follow_json(items: Iterator[Heard]) -> None:
    """Every event as a JSON line, and every change of state."""
    state = None
    for item in items:
        if isinstance(item, Event):
            print(screen.json_text(item.as_json()), flush=True)
        elif isinstance(item, JobStatus) and item.state != state:
            state = item.state
            body = {"event": "state", "state": item.state.value, "reason": item.reason}
            print(json.dumps(body), flush=True)
        elif isinstance(item, Resubmitted):
            again = {"id": item.job, "resumes": item.after, "resubmits": item.number}
            print(json.dumps({"event": "resubmitted", **again}), flush=True)
        elif isinstance(item, Trouble):
            print(json.dumps({"event": "trouble", "message": item.message, "hint": item.hint}), flush=True)
        elif isinstance(item, Spending):
            body = {"event": "spending", "dollars": str(item.dollars), "budget": str(item.budget)}
            print(json.dumps(body), flush=True)


def _raise_if_failed(client: Client, record: JobRecord) -> None:
    if record.state == "SUCCEEDED":
        return
    if record.state == "CANCELLED":
        raise JobFailedError(f"{record.id} was cancelled", f"launch resume {record.id} goes on")
    failure = next((e.fields for e in reversed(client.events(record.id)) if e.name == "failure"), None)
    tail: list[str] = []
    with contextlib.suppress(LaunchError):  # why it failed is known without its log
        tail = [line.text for line in client.log_lines(record.id) if "::launch::" not in line.text][-TAIL:]
    hint = f"{failure['hint']}; " if failure and failure.get("hint") else ""
    raise JobFailedError(
        f"{record.id} failed: {record.reason}",
        f"{hint}launch logs {record.id} shows all of it; launch resume {record.id} goes on from its checkpoints",
        log_tail=tail,
    )
