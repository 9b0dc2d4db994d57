"""The record of this user's jobs on this machine: SQLite, so that kill -9 loses nothing that was finished.

WAL with synchronous=FULL: a write that returned is on disk, and two launchers can work at once. The record is
only a copy: jobs are rebuilt from what the backends know when the file is gone (client.Client.jobs).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backends.base import JobState
from launcher.errors import ConfigError, LaunchError
from launcher.events import Event
from launcher.spec import JobSpec

SUBMITTING = "SUBMITTING"
"""The state of a job whose token is stored and whose backend has not answered yet."""

WAIT_S = 30.0
"""How long one launcher waits for another that writes."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, backend TEXT NOT NULL, ref TEXT, state TEXT NOT NULL,
        reason TEXT, created TEXT NOT NULL, started TEXT, ended TEXT, interruptions INTEGER NOT NULL DEFAULT 0,
        lineage TEXT NOT NULL, resumes TEXT, folder TEXT, bundle_sha256 TEXT NOT NULL, cursor TEXT,
        submitter TEXT,
        spec TEXT NOT NULL, data TEXT NOT NULL, estimate TEXT NOT NULL
    ) STRICT;
    CREATE TABLE events (
        job TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE, run TEXT NOT NULL, seq INTEGER NOT NULL,
        time TEXT NOT NULL, name TEXT NOT NULL, fields TEXT NOT NULL, PRIMARY KEY (job, run, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE metrics (
        job TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE, which TEXT NOT NULL, metrics TEXT NOT NULL,
        PRIMARY KEY (job, which)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE artifacts (
        job TEXT NOT NULL REFERENCES jobs(id) ON DELETE CASCADE, path TEXT NOT NULL, size INTEGER NOT NULL,
        sha256 TEXT NOT NULL, PRIMARY KEY (job, path)
    ) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE jobs ADD COLUMN owner TEXT;
    ALTER TABLE jobs ADD COLUMN url TEXT;
    ALTER TABLE jobs ADD COLUMN billable_s REAL;
    ALTER TABLE jobs ADD COLUMN machine TEXT;
    ALTER TABLE jobs ADD COLUMN drained INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN released INTEGER NOT NULL DEFAULT 0;
    """,
    "ALTER TABLE jobs ADD COLUMN resubmits INTEGER NOT NULL DEFAULT 0;",
    "ALTER TABLE jobs ADD COLUMN unwanted INTEGER NOT NULL DEFAULT 0;",
    "ALTER TABLE jobs ADD COLUMN seen TEXT;",
    "ALTER TABLE jobs ADD COLUMN capacity TEXT NOT NULL DEFAULT '{}';",
)
"""Applied in order, one transaction each; the number applied is the file's user_version."""


ELSEWHERE = "give yourself the right to write there, or set LAUNCH_HOME to another folder"
DAMAGED = "it is damaged: move it away, and launch list --discover rebuilds what the backends still know"
MENDED_BY = {
    "SQLITE_BUSY": "another launch holds it: try again when that is done",
    "SQLITE_FULL": "free space on that disk, then repeat the command",
    "SQLITE_IOERR": "free space on that disk and look at its health, then repeat the command",
    "SQLITE_READONLY": ELSEWHERE, "SQLITE_CANTOPEN": ELSEWHERE, "SQLITE_PERM": ELSEWHERE,
    "SQLITE_CORRUPT": DAMAGED, "SQLITE_NOTADB": DAMAGED,
}  # fmt: skip
"""What SQLite calls a trouble (https://www.sqlite.org/rescode.html) -> what to do about it."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One job as recorded. `state` is a JobState value or SUBMITTING; money is text, times are aware UTC."""

    id: str
    name: str
    backend: str
    state: str
    created: datetime
    lineage: str
    bundle_sha256: str
    spec: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    estimate: Mapping[str, Any] = field(default_factory=dict)
    ref: str | None = None
    reason: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    interruptions: int = 0
    resumes: str | None = None
    resubmits: int = 0
    """How many times a follower has submitted the job anew, this one included; 0 of a job that a user started."""
    unwanted: int = 0
    """1 when the user has cancelled it: no follower submits it anew."""
    folder: str | None = None
    cursor: str | None = None
    submitter: str | None = None
    seen: datetime | None = None
    """When its backend last said how it stands."""
    owner: str | None = None
    url: str | None = None
    billable_s: float | None = None
    machine: str | None = None
    capacity: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for and waited for, where the vendor tells: see launcher.observing.capacity."""
    drained: int = 0
    """1 when the log of a job that is over has been read to its end."""
    released: int = 0
    """1 when what the job left stored has been removed."""
    actual: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    artifacts: tuple[Mapping[str, Any], ...] = ()

    @property
    def over(self) -> bool:
        """True when the state is final."""
        return self.state != SUBMITTING and JobState(self.state).terminal

    @property
    def never_started(self) -> bool:
        """True of a job that is over as far as is known since its backend has not shown it yet."""
        return self.over and self.ref is None

    def job(self) -> JobSpec:
        """What was asked for. Raises ConfigError where another version of finelaunch wrote it in its own way."""
        try:
            return JobSpec.model_validate(self.spec)
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"{self.id} was sent by another version of finelaunch, which this one does not understand "
                f"({where}: {first['msg']})",
                "upgrade finelaunch; launch cancel, logs and fetch work all the same",
            ) from exc

    @property
    def wants_spot(self) -> bool:
        """Was spot capacity asked for?"""
        return bool((self.spec.get("resources") or {}).get("spot"))

    @property
    def cut_short(self) -> bool:
        """True of a job whose launcher was stopped as it submitted it. One that was refused has no submitter."""
        return self.never_started and self.submitter is not None


_COLUMNS = (
    "id", "name", "backend", "ref", "state", "reason", "created", "started", "ended", "interruptions", "lineage",
    "resumes", "folder", "bundle_sha256", "cursor", "submitter", "owner", "url", "billable_s", "machine",
    "drained", "released", "resubmits", "unwanted", "seen", "capacity", "spec", "data", "estimate",
)  # fmt: skip
_JSON = ("spec", "data", "estimate", "capacity")
_TIMES = ("created", "started", "ended", "seen")


class Store:
    """The record at `path`; the file is made on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def add(self, job: JobRecord) -> None:
        """Record a new job. Raises ConfigError when another one has its id."""
        with self._write() as db:
            if not self._insert(db, job):
                raise ConfigError(f"the record has a job {job.id} already", f"launch show {job.id}")

    def add_missing(self, jobs: Iterable[JobRecord]) -> None:
        """Record those of `jobs` that are not there, all or none of them."""
        with self._write() as db:
            for job in jobs:
                self._insert(db, job)

    def update(self, job_id: str, **changes: Any) -> None:
        """Change columns of one job. A final state stays as it is (terminal states are final)."""
        names = [f"{name} = ?" for name in changes]
        values = [_encode(name, value) for name, value in changes.items()]
        final = [s.value for s in JobState if s.terminal]
        guard = f" AND state NOT IN ({', '.join('?' * len(final))})" if "state" in changes else ""
        with self._write() as db:
            db.execute(
                f"UPDATE jobs SET {', '.join(names)} WHERE id = ?{guard}",
                [*values, job_id, *(final if guard else [])],
            )

    def adopt(self, job_id: str, ref: str) -> bool:
        """Note the reference of a job that has none; was there such a job?

        The one way back from a final state: a job that was said never to have started runs after all.
        """
        with self._write() as db:
            done = db.execute(
                "UPDATE jobs SET ref = ?, state = ?, reason = NULL, ended = NULL, drained = 0"
                " WHERE id = ? AND ref IS NULL AND state IN (?, ?)",
                [ref, JobState.STARTING.value, job_id, SUBMITTING, JobState.FAILED.value],
            )
        return done.rowcount == 1

    def add_events(self, job_id: str, events: Iterable[Event], cursor: str | None) -> list[Event]:
        """Record the events that are new, with the log cursor behind them, in one transaction; the new ones."""
        new = []
        with self._write() as db:
            for event in events:
                done = db.execute(
                    "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        job_id, event.run, event.seq, event.time.isoformat(), event.name,
                        json.dumps(event.fields),
                    ),
                )  # fmt: skip
                if done.rowcount:
                    new.append(event)
                    self._keep_metrics(db, job_id, event)
            if cursor is not None:
                db.execute("UPDATE jobs SET cursor = ? WHERE id = ?", (cursor, job_id))
        return new

    def set_metrics(self, job_id: str, which: str, metrics: Mapping[str, Any]) -> None:
        """Keep one evaluation of the job: "baseline", "tuned", or "tuned@FILE" for other rows."""
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?)", (job_id, which, json.dumps(metrics)))

    def get(self, job_id: str) -> JobRecord | None:
        rows = self._read(f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE id = ?", (job_id,))
        return self._record(rows[0]) if rows else None

    def find(self, prefix: str) -> list[JobRecord]:
        """Jobs whose id begins with `prefix`, newest first."""
        rows = self._read(
            f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE substr(id, 1, ?) = ? ORDER BY created DESC, id DESC",
            (len(prefix), prefix),
        )
        return [self._record(row) for row in rows]

    def events(self, job_id: str, *names: str) -> list[Event]:
        """The job's events in the order in which they happened; with `names`: those alone."""
        only = f" AND name IN ({', '.join('?' * len(names))})" if names else ""
        rows = self._read(
            f"SELECT run, seq, time, name, fields FROM events WHERE job = ?{only} ORDER BY time, seq",
            (job_id, *names),
        )
        return [Event(r[0], r[1], datetime.fromisoformat(r[2]), r[3], json.loads(r[4])) for r in rows]

    def exists(self) -> bool:
        return self._path.exists()

    def _record(self, row: Sequence[Any]) -> JobRecord:
        values = dict(zip(_COLUMNS, row, strict=True))
        for name in _JSON:
            values[name] = json.loads(values[name])
        for name in _TIMES:
            values[name] = datetime.fromisoformat(values[name]) if values[name] else None
        job_id = values["id"]
        metrics = self._read("SELECT which, metrics FROM metrics WHERE job = ?", (job_id,))
        artifacts = self._read("SELECT path, size, sha256 FROM artifacts WHERE job = ? ORDER BY path", (job_id,))
        found = {which: json.loads(text) for which, text in metrics}
        return JobRecord(
            **values,
            evaluation={"baseline": None, "tuned": None, **{k: v for k, v in found.items() if k != "done"}},
            artifacts=tuple({"path": p, "size": s, "sha256": h} for p, s, h in artifacts),
            actual=_actual(values, found.get("done") or {}),
        )

    def _keep_metrics(self, db: sqlite3.Connection, job_id: str, event: Event) -> None:
        """What listings show of an event: each evaluation and the final figures."""
        if event.name == "eval":
            which, metrics = str(event.fields.get("which")), event.fields.get("metrics")
            if not isinstance(metrics, dict):  # a line that only looks like our event
                return
        elif event.name == "done":
            which, metrics = "done", {k: v for k, v in event.fields.items() if k != "files"}
            self._put_artifacts(db, job_id, event.fields.get("files"))
        else:
            return
        db.execute("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?)", (job_id, which, json.dumps(metrics)))

    def _insert(self, db: sqlite3.Connection, job: JobRecord) -> bool:
        marks = ", ".join("?" * len(_COLUMNS))
        sql = f"INSERT INTO jobs ({', '.join(_COLUMNS)}) VALUES ({marks}) ON CONFLICT (id) DO NOTHING"
        return db.execute(sql, _to_row(job)).rowcount == 1

    def _put_artifacts(self, db: sqlite3.Connection, job_id: str, files: Any) -> None:
        """A line that only looks like our event must not make the job unreadable."""
        named = [f for f in files if isinstance(f, dict)] if isinstance(files, list) else []
        rows = [(f.get("path"), f.get("size"), f.get("sha256")) for f in named]
        db.execute("DELETE FROM artifacts WHERE job = ?", (job_id,))
        db.executemany(
            "INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?)",
            [(job_id, *row) for row in rows if [type(value) for value in row] == [str, int, str]],
        )

    def _read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._open().execute(sql, values).fetchall()
        except sqlite3.DatabaseError as exc:
            raise self._broken(exc) from exc

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction, begun as a writer so that two launchers wait for each other."""
        db = self._open()
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # a full disk has ended it already
                    db.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as exc:
            raise self._broken(exc) from exc

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise LaunchError(f"{self._path.parent} can't be made: {exc}", ELSEWHERE) from exc
            # Autocommit: transactions are begun by hand, so that each starts as a writer.
            db = sqlite3.connect(self._path, timeout=WAIT_S, isolation_level=None)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = FULL")
                db.execute("PRAGMA foreign_keys = ON")
                self._migrate(db)
            except sqlite3.DatabaseError as exc:
                db.close()
                raise self._broken(exc) from exc
            except BaseException:
                db.close()
                raise
            self._connection = db
        return self._connection

    def _migrate(self, db: sqlite3.Connection) -> None:
        if db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS):
            return
        db.execute("BEGIN IMMEDIATE")
        # Read again inside the transaction: another launcher may have migrated while this one waited.
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            db.execute("ROLLBACK")
            raise LaunchError(
                f"{self._path} was written by a newer finelaunch (schema {version})",
                "upgrade finelaunch, or set LAUNCH_HOME to another folder",
            )
        for script in MIGRATIONS[version:]:
            for statement in script.split(";"):
                if statement.strip():
                    db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")

    def _broken(self, exc: sqlite3.DatabaseError) -> LaunchError:
        name = getattr(exc, "sqlite_errorname", "")
        hint = next((words for start, words in MENDED_BY.items() if name.startswith(start)), None)
        return LaunchError(f"the record {self._path} can't be used: {exc}", hint)


def _to_row(job: JobRecord) -> list[Any]:
    return [_encode(name, getattr(job, name)) for name in _COLUMNS]


def _encode(name: str, value: Any) -> Any:
    if name in _JSON:
        return json.dumps(value)
    if name in _TIMES:
        return value.astimezone(UTC).isoformat() if value else None
    return str(value) if isinstance(value, JobState) else value


def _cost(values: Mapping[str, Any]) -> str | None:
    """US dollars: billed seconds at the vendor's rate of the machine, this one's at the user's; else unknown."""
    hourly = values["estimate"].get("hourly")
    if values["backend"] == "local":
        started, ended = values["started"], values["ended"]
        if hourly is None or started is None or ended is None:
            return "0" if hourly is None else None
        return str(round(Decimal(hourly) * Decimal((ended - started).total_seconds()) / 3600, 2))
    if values["machine"] not in (None, values["estimate"].get("instance_type")):  # at another rate
        hourly = (values["estimate"].get("rates") or {}).get(values["machine"])
    if hourly is None or values["billable_s"] is None:
        return None
    return str(round(Decimal(hourly) * Decimal(values["billable_s"]) / 3600, 2))


def _actual(values: Mapping[str, Any], done: Mapping[str, Any]) -> dict[str, Any]:
    """What the job took: seconds from start to end, cost in dollars (on this machine 0 without a rate)."""
    started, ended = values["started"], values["ended"]
    return {
        "cost": _cost(values),
        "seconds": (ended - started).total_seconds() if started and ended else None,
        "steps": done.get("steps"),
        "train_s": done.get("train_s"),
        "tokens_per_s": done.get("tokens_per_s"),
        "peak_gib": done.get("peak_gib"),
    }
