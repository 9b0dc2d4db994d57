"""The record: two writers, kill -9, migrations, damage."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backends.base import JobState
from launcher.errors import ConfigError, LaunchError
from launcher.events import Event
from launcher.store import MIGRATIONS, SUBMITTING, JobRecord, Store

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def record(id: str = "demo-1", **changes: object) -> JobRecord:
    base = JobRecord(
        id=id, name="demo", backend="local", state=JobState.RUNNING, created=NOW, lineage=id,
        bundle_sha256="0" * 64, spec={"name": "demo"},
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def event(seq: int, name: str = "step", run: str = "r1", **fields: object) -> Event:
    return Event(run, seq, NOW + timedelta(seconds=seq), name, fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "record.db"


def test_a_job_comes_back_as_it_was_recorded(path: Path) -> None:
    job = record(ref="local://localhost/demo-1", started=NOW, data={"labels": {"a": 1}}, estimate={"low": "0"})
    Store(path).add(job)
    found = Store(path).get("demo-1")
    assert found is not None
    assert dataclasses.replace(found, actual={}, evaluation={}) == job
    assert found.evaluation == {"baseline": None, "tuned": None}


def test_a_store_that_is_only_made_leaves_no_file(path: Path) -> None:
    assert not Store(path).exists()
    assert not path.parent.exists()


def test_a_second_job_of_the_same_id_is_refused_and_changes_nothing(path: Path) -> None:
    store = Store(path)
    store.add(record())
    with pytest.raises(ConfigError, match="demo-1"):
        store.add(record(name="other"))
    found = store.get("demo-1")
    assert found is not None and found.name == "demo"


def test_a_final_state_is_final(path: Path) -> None:
    store = Store(path)
    store.add(record())
    store.update("demo-1", state=JobState.FAILED, reason="oom: no memory")
    store.update("demo-1", state=JobState.RUNNING, reason=None)
    found = store.get("demo-1")
    assert found is not None
    assert (found.state, found.reason, found.over) == ("FAILED", "oom: no memory", True)


@pytest.mark.parametrize(
    ("changes", "known_again"),
    [
        ({"state": SUBMITTING}, True),
        ({"state": JobState.FAILED, "reason": "nothing runs", "ended": NOW, "drained": 1}, True),
        ({"state": JobState.FAILED, "ref": "local://localhost/demo-1", "reason": "oom", "ended": NOW}, False),
        ({"state": JobState.SUCCEEDED, "ended": NOW}, False),
    ],
)
def test_only_a_job_that_was_not_seen_to_start_comes_back_from_its_end(
    path: Path, changes: dict[str, object], known_again: bool
) -> None:
    store = Store(path)
    store.add(record(**changes))
    before = store.get("demo-1")
    assert store.adopt("demo-1", "local://localhost/demo-1") is known_again
    after = store.get("demo-1")
    assert before is not None and after is not None
    if known_again:
        assert (after.ref, after.state, after.reason) == ("local://localhost/demo-1", "STARTING", None)
        assert (after.ended, after.drained, after.over) == (None, 0, False)
    else:
        assert after == before


def test_a_record_of_the_version_before_keeps_its_jobs(path: Path) -> None:
    store = Store(path)
    store.add(record())
    store.close()
    db = sqlite3.connect(path)
    db.execute("ALTER TABLE jobs DROP COLUMN seen")
    db.execute("ALTER TABLE jobs DROP COLUMN capacity")
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) - 2}")
    db.close()
    found = Store(path).get("demo-1")
    assert found is not None and found.seen is None and found.capacity == {}


def test_a_job_that_is_being_submitted_is_not_over(path: Path) -> None:
    assert not record(state=SUBMITTING).over


def test_events_seen_twice_are_recorded_once_and_only_the_new_ones_returned(path: Path) -> None:
    store = Store(path)
    store.add(record())
    assert [e.seq for e in store.add_events("demo-1", [event(0), event(1)], "10")] == [0, 1]
    assert [e.seq for e in store.add_events("demo-1", [event(1), event(2)], "20")] == [2]
    assert store.events("demo-1") == [event(0), event(1), event(2)]
    found = store.get("demo-1")
    assert found is not None and found.cursor == "20"


def test_the_same_number_of_another_start_is_another_event(path: Path) -> None:
    store = Store(path)
    store.add(record())
    assert len(store.add_events("demo-1", [event(0), event(0, run="r2")], None)) == 2


def test_evaluations_and_artifacts_come_from_events(path: Path) -> None:
    store = Store(path)
    store.add(record(started=NOW, ended=NOW + timedelta(seconds=90)))
    file = {"path": "artifact/a", "size": 3, "sha256": "ab"}
    store.add_events(
        "demo-1",
        [
            event(0, "eval", which="baseline", metrics={"accuracy": 0.5}),
            event(1, "eval", which="tuned", metrics={"accuracy": 0.9}),
            event(2, "done", steps=7, train_s=1.5, files=[file]),
        ],
        None,
    )
    found = store.get("demo-1")
    assert found is not None
    assert found.evaluation == {"baseline": {"accuracy": 0.5}, "tuned": {"accuracy": 0.9}}
    assert found.artifacts == (file,)
    assert (found.actual["seconds"], found.actual["steps"], found.actual["cost"]) == (90.0, 7, "0")


def test_a_line_that_only_looks_like_our_last_event_breaks_nothing(path: Path) -> None:
    store = Store(path)
    store.add(record())
    store.add_events("demo-1", [event(0, "done", files=["text", {"path": "a"}])], "9")
    found = store.get("demo-1")
    assert found is not None and found.artifacts == () and found.cursor == "9"


def test_jobs_are_found_by_the_beginning_of_their_id_newest_first(path: Path) -> None:
    store = Store(path)
    for number, id in enumerate(("a%1", "ab2", "b_3")):
        store.add(record(id, created=NOW + timedelta(seconds=number)))
    assert [job.id for job in store.find("")] == ["b_3", "ab2", "a%1"]
    assert [job.id for job in store.find("a%")] == ["a%1"]
    assert [job.id for job in store.find("b_")] == ["b_3"]


def test_writes_are_durable_and_do_not_lock_out_readers(path: Path) -> None:
    store = Store(path)
    store.add(record())
    assert store._open().execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._open().execute("PRAGMA synchronous").fetchone() == (2,)
    with store._write() as db:
        db.execute("UPDATE jobs SET reason = 'half'")
        seen = Store(path).get("demo-1")
        assert seen is not None and seen.reason is None


def test_a_write_that_fails_in_the_middle_leaves_nothing(path: Path) -> None:
    store = Store(path)
    store.add(record())
    unwritable = event(1, metrics={1, 2})
    with pytest.raises(TypeError):
        store.add_events("demo-1", [event(0), unwritable], "10")
    found = store.get("demo-1")
    assert store.events("demo-1") == []
    assert found is not None and found.cursor is None


# Several launchers at once, and launchers that are killed

WRITER = textwrap.dedent(
    """
    import sys
    from datetime import UTC, datetime
    from pathlib import Path
    from launcher.events import Event
    from launcher.store import Store
    path, run, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    store = Store(path)
    for seq in range(count):
        store.add_events("demo-1", [Event(run, seq, datetime.now(UTC), "step", {"step": seq})], str(seq))
        print(seq, flush=True)
    """
)


def writer(path: Path, run: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), run, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_write_at_once_and_lose_nothing(path: Path) -> None:
    Store(path).add(record())
    both = [writer(path, run, 60) for run in ("one", "two")]
    for process in both:
        _, complaints = process.communicate(timeout=60)
        assert process.returncode == 0, complaints
    events = Store(path).events("demo-1")
    for run in ("one", "two"):
        assert sorted(e.seq for e in events if e.run == run) == list(range(60))


def test_two_processes_make_the_record_at_once(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from launcher.store import Store; Store(Path(sys.argv[1])).find('')"
    )
    both = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in both] == [0, 0, 0, 0]
    assert Store(path).find("") == []


def test_kill_9_loses_no_event_that_was_reported_written(path: Path) -> None:
    Store(path).add(record())
    for kill in range(6):
        process = writer(path, f"run{kill}", 100_000)
        assert process.stdout is not None and process.stderr is not None
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.013 * kill)
        os.kill(process.pid, signal.SIGKILL)
        told = 3 + len([line for line in process.stdout.read().split("\n") if line.isdigit()])
        process.wait()
        process.stdout.close()
        process.stderr.close()
        store = Store(path)
        kept = [e.seq for e in store.events("demo-1") if e.run == f"run{kill}"]
        assert kept[:told] == list(range(told))
        assert len(kept) <= told + 1
        assert store._open().execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = store.get("demo-1")
        assert found is not None and found.cursor == str(kept[-1])
        store.close()


# The file itself


def test_an_empty_file_is_migrated_to_the_newest_schema(path: Path) -> None:
    path.parent.mkdir()
    sqlite3.connect(path).close()
    store = Store(path)
    store.add(record())
    assert store._open().execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def test_a_record_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    Store(path).add(record())
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(LaunchError, match="newer finelaunch") as refusal:
        Store(path).find("")
    assert "upgrade" in (refusal.value.hint or "")


def test_a_damaged_record_is_named_with_what_to_do(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database, " * 500)
    with pytest.raises(LaunchError) as refusal:
        Store(path).find("")
    assert str(path) in refusal.value.message
    assert "launch list --discover rebuilds" in (refusal.value.hint or "")


def test_a_record_cut_in_the_middle_is_named_not_a_traceback(path: Path) -> None:
    store = Store(path)
    for number in range(40):
        store.add(record(f"demo-{number}", spec={"text": "x" * 3000}))
    store._open().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LaunchError, match="can't be used"):
        Store(path).find("")


def test_recorded_json_is_plain_json(path: Path) -> None:
    Store(path).add(record(spec={"name": "größe"}))
    db = sqlite3.connect(path)
    (text,) = db.execute("SELECT spec FROM jobs").fetchone()
    db.close()
    assert json.loads(text) == {"name": "größe"}
