"""What a job says and does: into the record, and to whoever follows. The same for every backend."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from backends.base import Backend, JobRef, JobState, JobStatus, LogLine
from launcher.errors import CredentialsError, JobNotFoundError, LaunchError, UnreachableError
from launcher.events import Event, from_line
from launcher.store import JobRecord, Store

LAST_EVENTS = {
    JobState.SUCCEEDED: ("done",), JobState.FAILED: ("failure", "stopped"), JobState.CANCELLED: ("stopped",),
}  # fmt: skip
"""The events behind which a job that ended so says nothing more: one that stopped itself may count as failed."""
WAITING = (JobState.QUEUED, JobState.STARTING)
"""States in which the vendor's own words are all that there is to hear."""
GIVE_UP_S = 3600.0
"""How long a follower goes on asking a vendor that refuses it or can't be reached."""
MOST_WAIT_S = 60.0
WARN_AT = Decimal("0.8")
"""The share of its budget behind which a job's followers are warned."""


@dataclass(frozen=True)
class Trouble:
    """The job can't be looked at now; it goes on by itself, and so does whoever follows it."""

    message: str
    hint: str | None


@dataclass(frozen=True)
class Resubmitted:
    """The job that was followed lost its spot capacity for good; `job` goes on from its checkpoints."""

    job: str
    after: str
    number: int
    most: int


@dataclass(frozen=True)
class Spending:
    """Most of the job's budget is spent, by the time since its start and the price an hour; told once."""

    dollars: Decimal
    budget: Decimal


Heard = LogLine | Event | JobStatus | Trouble | Resubmitted | Spending
"""What a follower hears."""


class Patience:
    """Waits out what passes by itself or after a login: told once, asked again for an hour."""

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s
        self._since: float | None = None

    def wait(self, trouble: LaunchError) -> Iterator[Trouble]:
        """Until the next try. Raises `trouble` when that has gone on for too long."""
        if self._since is None:
            self._since = time.monotonic()
            yield Trouble(trouble.message, trouble.hint)
        elif time.monotonic() - self._since > GIVE_UP_S:
            raise trouble
        time.sleep(min(MOST_WAIT_S, _poll_s(self._poll_s) * 4))

    def end(self) -> None:
        """It has passed."""
        self._since = None


@dataclass
class _Look:
    """One look: what came after the cursor, the cursor behind it, and what ended the look early."""

    cursor: str | None
    items: list[LogLine | Event] = field(default_factory=list)
    status: JobStatus | None = None
    drained: bool = False
    trouble: LaunchError | None = None
    unread: LaunchError | None = None
    """Why the log could not be read, where that keeps nobody from looking at the job itself."""


class Observer:
    """Looks at jobs through their backends and keeps what it sees in the record."""

    def __init__(self, store: Store, backend: Callable[[str], Backend]) -> None:
        self._store = store
        self._backend = backend
        self._seen_over: dict[str, float] = {}
        self._capacity: dict[str, Mapping[str, Any]] = {}

    def refresh(self, record: JobRecord) -> None:
        """One look from where the recorded one ended. Raises what the backend does."""
        if record.over and record.drained:
            return
        try:
            look = self._look(record, record.cursor)
        except JobNotFoundError as exc:
            self._store.update(record.id, state=JobState.UNKNOWN, reason=exc.message)
            return
        if look.trouble is not None:
            raise look.trouble

    def follow(self, record: JobRecord, from_start: bool) -> Generator[Heard, None, JobStatus]:
        """What the job says and does, live, until it is over and its log is drained. Nothing twice.

        Returns its last status.

        An expired login and a lost network are told once and waited out: nothing is missed.
        """
        # Its own cursor: another launcher that looks at the job moves the recorded one.
        cursor = None if from_start else record.cursor
        can = self._backend(record.backend).capabilities
        state, detail = record.state, ""
        patience = Patience(can.poll_s)
        warned = told = False
        while True:
            look = self._look(record, cursor)
            yield from look.items
            if look.unread is not None and not told:
                told = True
                yield Trouble(look.unread.message, look.unread.hint)
            if not warned and (spending := spent(record, look.status)) is not None:
                warned = True
                yield spending
            cursor = look.cursor
            if look.trouble is not None:
                yield from patience.wait(look.trouble)
                continue
            patience.end()
            status = look.status
            assert status is not None
            told_anew = status.state != state or (status.state in WAITING and status.detail != detail)
            if look.drained or (told_anew and not status.state.terminal):
                yield status
                state, detail = status.state, status.detail
            if look.drained:
                return status
            time.sleep(_poll_s(can.poll_s))

    def _look(self, record: JobRecord, cursor: str | None) -> _Look:
        """Events and status are recorded, also those that came before trouble."""
        assert record.ref is not None
        ref = JobRef.parse(record.ref)
        target = self._backend(record.backend)
        look = _Look(cursor)
        try:
            # Status before log: what the log holds after a final status is all there will be, once drained.
            look.status = target.status(ref)
            _read(look, target.logs(ref, cursor))
        except (CredentialsError, UnreachableError) as exc:
            look.trouble = exc
        self._store.add_events(record.id, [i for i in look.items if isinstance(i, Event)], look.cursor)
        if (status := look.status) is not None:
            # Whoever follows holds the record as it was when that began.
            known = self._capacity.get(record.id, record.capacity)
            self._capacity[record.id] = capacity(known, status)
            self._store.update(
                record.id, state=status.state, reason=status.reason, started=status.started, ended=status.ended,
                interruptions=max(record.interruptions, status.interruptions), folder=_local_path(status.url),
                url=status.url, billable_s=status.billable_s, machine=status.machine, seen=datetime.now(UTC),
                capacity=self._capacity[record.id],
            )  # fmt: skip
            late = {"billable_s": status.billable_s, "machine": status.machine}
            if status.state.terminal and any(late.values()):  # also told after the first final look
                self._store.update(record.id, **{name: value for name, value in late.items() if value is not None})
            if status.state.terminal and look.trouble is None:
                look.drained = self._is_drained(record.id, status, target.capabilities.drain_s)
                if look.drained:
                    self._store.update(record.id, drained=1)
        return look

    def _is_drained(self, job_id: str, status: JobStatus, drain_s: float) -> bool:
        """Has everything been read that a job which is over had to say?"""
        now = time.monotonic()
        # A vendor may not say when it ended, or say so by a clock that is ahead of this one.
        waited = now - self._seen_over.setdefault(job_id, now)
        since = (datetime.now(UTC) - status.ended).total_seconds() if status.ended else 0.0
        if not drain_s or max(waited, since) > drain_s:
            return True
        events = self._store.events(job_id)
        return bool(events) and events[-1].name in LAST_EVENTS[status.state]


def _read(look: _Look, lines: Iterable[LogLine]) -> None:
    """Whoever may not read a job's log can still see how it stands. Raises CredentialsError, UnreachableError."""
    try:
        for line in lines:
            look.items.append(from_line(line.text) or line)
            look.cursor = line.cursor
    except (CredentialsError, UnreachableError):
        raise
    except LaunchError as exc:
        look.unread = exc


def capacity(known: Mapping[str, Any], status: JobStatus) -> dict[str, Any]:
    """{"tries": {machine: what became of it}, "waits": [{"since", "until", "said": [...]}]}, JSON-able.

    A vendor keeps the last words of a wait only; `known`, of the look before, has those that it has said before.
    """
    heard = {wait["since"]: wait["said"] for wait in known.get("waits", ())}
    waits = []
    for wait in status.waits:
        since = wait.since.astimezone(UTC).isoformat()
        until = wait.until.astimezone(UTC).isoformat() if wait.until else None
        said = [*(words for words in heard.get(since, ()) if words != wait.said), wait.said]
        waits.append({"since": since, "until": until, "said": said})
    return {"tries": dict(status.tries), "waits": waits}


def spent(record: JobRecord, status: JobStatus | None, now: datetime | None = None) -> Spending | None:
    """What a running job has cost, once that is WARN_AT of its budget or more.

    Example: $2.50 an hour, started 4 h ago, a budget of $12: 10.00 of 12.00, which is 83 %.
    """
    budget, hourly = record.spec.get("budget"), record.estimate.get("hourly")
    if not budget or not hourly or status is None or status.started is None or status.state.terminal:
        return None
    seconds = ((now or datetime.now(UTC)) - status.started).total_seconds()
    dollars = Decimal(hourly) * Decimal(seconds) / 3600
    return Spending(round(dollars, 2), Decimal(budget)) if dollars >= WARN_AT * Decimal(budget) else None


def _poll_s(usual: float) -> float:
    """LAUNCH_POLL_S, or the backend's own pace."""
    try:
        chosen = float(os.environ["LAUNCH_POLL_S"])
    except (KeyError, ValueError):
        return usual
    return chosen if 0 < chosen <= GIVE_UP_S else usual


def _local_path(url: str | None) -> str | None:
    """The path of a file:// URL, None for any other."""
    parts = urlsplit(url or "")
    return url2pathname(parts.path) if parts.scheme == "file" else None
