"""What a job left in its folder says of it: its phase, its end and why, the files it vouches for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backends.base import JobState


def phase(folder: Path) -> str | None:
    """The last phase that the job told of."""
    return next((str(event["name"]) for event in _newest_first(folder, "phase") if "name" in event), None)


def ending(folder: Path) -> tuple[JobState, str | None]:
    """The final state and its reason, from what the entrypoint left."""
    cancelled = (folder / "cancel").exists()
    try:
        state = json.loads((folder / "output" / "state.json").read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        if cancelled:  # the signal came before the entrypoint could take it
            return JobState.CANCELLED, "cancelled"
        return JobState.FAILED, (
            "the job's process is gone without a word: killed, out of memory, or the machine restarted"
        )
    if state == "succeeded":
        return JobState.SUCCEEDED, None
    if state == "stopped":
        if cancelled:
            return JobState.CANCELLED, "cancelled"
        return (
            JobState.FAILED,
            "stopped before it was done (a signal or its time limit); launch resume goes on",
        )
    try:
        failure = json.loads((folder / "output" / "failure.json").read_text(encoding="utf-8"))
        return JobState.FAILED, f"{failure['kind']}: {failure['message']}"
    except (OSError, ValueError, KeyError, TypeError):
        return JobState.FAILED, "failed; see the log"


def last_change(folder: Path) -> datetime | None:
    """When the job last wrote: its state, else its log."""
    for path in (folder / "output" / "state.json", folder / "log.txt"):
        if path.exists():
            return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return None


def _newest_first(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The job's events of one kind, newest first; a torn line is passed over."""
    try:
        lines = (folder / "output" / "events.jsonl").read_bytes().splitlines()
    except OSError:
        return
    mark = f'"event": "{kind}"'.encode()
    for line in reversed(lines):
        if mark not in line:  # thousands of steps are not worth parsing
            continue
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == kind:
            yield event
