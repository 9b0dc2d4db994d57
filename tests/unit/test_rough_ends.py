"""What costs money or data when it comes at the wrong moment: a full disk, a lock, a lost answer, a set clock."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backends.base import JobRef, JobState, JobStatus, Plan
from backends.local import LocalBackend, process
from launcher import store as store_module
from launcher.cli import cli
from launcher.client import Client
from launcher.errors import LaunchError, UnreachableError
from launcher.events import Event
from launcher.store import MIGRATIONS, JobRecord, Store
from tests.conftest import Launch
from tests.unit.local_jobs import folder_of, planned, sleeping


def record(job: str = "a-1", **changes: Any) -> JobRecord:
    return JobRecord(
        **{
            "id": job, "name": "a", "backend": "local", "state": "RUNNING", "created": datetime.now(UTC),
            "lineage": job, "bundle_sha256": "", "spec": {}, **changes,
        }
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "record.db")
    yield found
    found.close()


def test_a_full_disk_is_told_as_that_and_the_record_goes_on_when_there_is_room(store: Store) -> None:
    store.add(record())
    db = store._open()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LaunchError, match="full") as told:
        store.add(record("b-1", spec={"text": "x" * 100_000}))
    assert "free space" in (told.value.hint or "") and "move it away" not in (told.value.hint or "")
    db.execute("PRAGMA max_page_count = 1000000")
    store.add(record("c-1"))
    assert [job.id for job in store.find("")] == ["c-1", "a-1"]


def test_a_record_that_another_launcher_holds_is_not_called_damaged(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "WAIT_S", 0.1)
    store.add(record())
    other = sqlite3.connect(tmp_path / "record.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LaunchError, match="locked") as told:
        store.update("a-1", state="SUCCEEDED")
    assert "another launch holds it" in (told.value.hint or "")
    other.close()
    store.update("a-1", state="SUCCEEDED")


def test_a_connection_that_breaks_is_not_taken_for_a_reader_that_has_seen_enough(
    client: Client, typed: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: LocalBackend, plan: Plan, progress: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(LocalBackend, "stage", broken)
    assert typed("init").returncode == 0
    done = typed("run")
    assert done.returncode == 1 and "unexpected ConnectionError: [Errno 32] Broken pipe" in done.stderr
    assert [job.state for job in client.jobs()] == ["FAILED"]


def test_a_folder_that_cannot_be_written_is_no_bug(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert CliRunner().invoke(cli, ["init", str(tmp_path)]).exit_code == 0
    done = launch("plan", env={"LAUNCH_HOME": str(tmp_path / "file" / "home")})
    assert done.returncode == 1
    assert "Not a directory" in done.stderr and "this is a bug" not in done.stderr
    with pytest.raises(LaunchError, match="can't be made"):
        Store(tmp_path / "file" / "home" / "record.db").find("")


def test_completion_is_silent_about_a_record_of_a_newer_version(home: Path, store: Store, launch: Launch) -> None:
    home.mkdir()
    newer = sqlite3.connect(home / "record.db")
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    words = {"_LAUNCH_COMPLETE": "bash_complete", "COMP_WORDS": "launch show ", "COMP_CWORD": "2"}
    done = launch(env=words)
    assert (done.stdout.strip(), done.stderr) == ("", "")
    assert "newer finelaunch" in launch("list").stderr


def test_a_job_that_was_started_though_the_answer_was_lost_is_followed_on(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told that it failed starts another one, and pays for both."""
    submit = LocalBackend.submit

    def lost(self: LocalBackend, plan: Plan) -> JobRef:
        submit(self, plan)
        raise UnreachableError("the answer did not come", "later")

    monkeypatch.setattr(LocalBackend, "submit", lost)
    plan = planned(client, tmp_path / "project")
    started = client.submit(plan, lambda line: None)
    assert started.ref == f"local://localhost/{plan.plan.token}"
    list(client.follow(started.id))


def test_a_job_whose_start_cannot_be_noted_is_named(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Store, job_id: str, ref: str) -> bool:
        raise LaunchError("the disk is full", "free space")

    plan = planned(client, tmp_path / "project")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "adopt", full)
        with pytest.raises(LaunchError, match=f"{plan.plan.token} was started, but") as told:
            client.submit(plan, lambda line: None)
    assert f"launch cancel {plan.plan.token}" in (told.value.hint or "")


@pytest.mark.parametrize("started", [True, False])
def test_ctrl_c_while_a_job_is_sent_says_whether_it_runs(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: bool
) -> None:
    submit = LocalBackend.submit

    def interrupted(self: LocalBackend, plan: Plan) -> JobRef:
        if started:
            submit(self, plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalBackend, "submit", interrupted)
    planned(client, tmp_path)  # its rows
    spec = {"name": "demo", "model": "org/m", "task": "generation", "data": {"train": "rows.jsonl"}}
    (tmp_path / "launch.yaml").write_text(json.dumps(spec))
    done = CliRunner().invoke(cli, ["run", str(tmp_path / "launch.yaml")])
    (job,) = client.jobs()
    assert isinstance(done.exception, KeyboardInterrupt | SystemExit)
    assert (f"{job.id} runs all the same" in done.stderr) is started
    assert (f"launch cancel {job.id}" in done.stderr) is started
    assert (f"{job.id} was not started" in done.stderr) is not started


def test_a_job_that_runs_is_known_when_the_clock_has_been_set(client: Client, tmp_path: Path) -> None:
    """The time at which a process started is reckoned from the clock, and moves with it."""
    backend, ref, _ = sleeping(client, tmp_path)
    note = folder_of(client, ref) / "process.json"
    known = json.loads(note.read_text())
    note.write_text(json.dumps({**known, "created": known["created"] - 3600}))
    assert not backend.status(ref).state.terminal
    backend.cancel(ref)
    found = process.running(note)
    if found is not None:
        found.wait(timeout=30)
    assert backend.status(ref).state == JobState.CANCELLED
    # A process of another job that has the number now is not this one.
    note.write_text(json.dumps({**known, "pid": os.getpid()}))
    assert process.running(note) is None


def test_a_job_that_another_version_has_sent_can_be_followed_and_cancelled(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A colleague's, whose job file has fields that this version does not know."""
    monkeypatch.setenv("LAUNCH_POLL_S", "-1")  # no pace: the backend's own is taken
    _, ref, plan = sleeping(client, tmp_path)
    spec = {**plan.plan.job.model_dump(mode="json"), "next_year": True}
    client._store.add(record(ref.id, ref=str(ref), spec=spec))
    assert client.cancel(ref.id).unwanted
    assert list(client.follow(ref.id))[-1].state == JobState.CANCELLED  # type: ignore[union-attr]
    with pytest.raises(LaunchError, match=r"another version .*next_year"):
        client.plan_resume(ref.id)


def test_events_of_another_version_disturb_nobody(store: Store) -> None:
    from rich.console import Console

    from launcher.figures import figures_table
    from launcher.live import as_words, follow

    now = datetime.now(UTC)
    names = ("phase", "step", "data", "eval", "eval_loss", "checkpoint", "micro_batch", "stopped", "done", "new")
    events = [Event("r", seq, now, name, {"metrics": 5, "files": 7}) for seq, name in enumerate(names)]
    events.append(Event("r", 99, now, "done", {"files": [{"path": 1, "size": "x", "sha256": None}, 3]}))
    store.add(record())
    store.add_events("a-1", events, None)
    found = store.get("a-1")
    assert found is not None and figures_table(found.evaluation) is None
    follow(events, "a-1", Console(quiet=True))
    assert as_words(events[1]) == "step"


class Ahead:
    """Its clock is an hour ahead of this machine's, and its log has no last event."""

    capabilities = LocalBackend.capabilities.__class__(poll_s=0.01, drain_s=0.2)

    def status(self, ref: JobRef) -> JobStatus:
        return JobStatus(state=JobState.FAILED, ended=datetime.now(UTC) + timedelta(hours=1))

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[Any]:
        yield from ()


@pytest.mark.timeout(60)
def test_a_follower_does_not_wait_for_a_clock_that_is_ahead(store: Store) -> None:
    from launcher.observing import Observer

    store.add(record(ref="ahead://here/a-1"))
    observer = Observer(store, lambda name: Ahead())  # type: ignore[arg-type,return-value]
    assert list(observer.follow(record(ref="ahead://here/a-1"), True))


def test_json_loses_no_letter_where_the_terminal_takes_few() -> None:
    script = "from launcher.cli import _quiet_streams as q; q(); from launcher.screen import print_json as p; "
    done = subprocess.run(
        [sys.executable, "-c", f"{script}p({{'label': '\\u017eluť 日本'}})"], capture_output=True, check=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "1"}, timeout=60,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"label": "žluť 日本"}
