"""One event of the training process, as the launcher reads it from any backend's log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from train_entry.events import parse


@dataclass(frozen=True)
class Event:
    """Kinds (`name`) and their fields are listed in train_entry.events. (run, seq) is its identity."""

    run: str
    seq: int
    time: datetime
    name: str
    fields: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The same flat object that the training process wrote."""
        return {
            "run": self.run,
            "seq": self.seq,
            "time": self.time.isoformat(timespec="milliseconds"),
            "event": self.name,
            **self.fields,
        }


def from_line(text: str) -> Event | None:
    """The event in one log line, or None when the line is something else."""
    record = parse(text)
    return None if record is None else from_record(record)


def from_record(record: Mapping[str, Any]) -> Event | None:
    """An event from its JSON object; None when it is malformed (a line cut by a crash, a foreign line)."""
    try:
        return Event(
            run=str(record["run"]),
            seq=int(record["seq"]),
            time=datetime.fromisoformat(record["time"]).astimezone(UTC),
            name=str(record["event"]),
            fields={k: v for k, v in record.items() if k not in ("run", "seq", "time", "event")},
        )
    except (KeyError, TypeError, ValueError):
        return None
