"""Jobs as processes of this machine: started apart, known again, stopped, lost and found."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from backends.base import JobRef, JobState, Site
from backends.local import LocalBackend, process
from launcher.client import Client
from launcher.errors import BackendError, ConfigError, CredentialsError
from tests.unit.local_jobs import SLEEP, folder_of, planned, sleeping, until

# One process


def test_a_process_is_known_again_by_another_launcher_and_not_by_a_reused_pid(tmp_path: Path) -> None:
    note = tmp_path / "process.json"
    process.start([sys.executable, "-c", SLEEP], os.environ, tmp_path, tmp_path / "log", note)
    found = process.running(note)
    assert found is not None
    assert os.getsid(found.pid) == found.pid  # not of this terminal's session
    script = "import sys, pathlib, backends.local.process as p; print(p.running(pathlib.Path(sys.argv[1])).pid)"
    asked = [sys.executable, "-c", script, str(note)]
    seen = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert int(seen) == found.pid
    known = json.loads(note.read_text())
    note.write_text(json.dumps({**known, "created": known["created"] - 60}))
    assert process.running(note) is None
    found.kill()


def test_a_process_that_ended_is_over_at_once_and_leaves_no_zombie(tmp_path: Path) -> None:
    note = tmp_path / "process.json"
    process.start([sys.executable, "-c", "pass"], os.environ, tmp_path, tmp_path / "log", note)
    pid = json.loads(note.read_text())["pid"]
    until(lambda: process.running(note) is None)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"pid": 1}'])
def test_a_note_that_is_missing_or_damaged_means_no_process(content: str | None, tmp_path: Path) -> None:
    note = tmp_path / "process.json"
    if content is not None:
        note.write_text(content)
    assert process.running(note) is None
    assert process.started(note) is None


# A job


def test_a_cancelled_job_is_cancelled_even_if_it_had_no_time_to_say_so(client: Client, tmp_path: Path) -> None:
    backend, ref, _ = sleeping(client, tmp_path)
    backend.cancel(ref)
    until(lambda: backend.status(ref).state.terminal)
    assert backend.status(ref).state == JobState.CANCELLED


def test_a_killed_job_has_failed_without_a_word(client: Client, tmp_path: Path) -> None:
    backend, ref, _ = sleeping(client, tmp_path)
    found = process.running(folder_of(client, ref) / "process.json")
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: backend.status(ref).state.terminal)
    status = backend.status(ref)
    assert status.state == JobState.FAILED
    assert "without a word" in (status.reason or "")
    assert status.started is not None and status.ended is not None and status.started <= status.ended


def test_many_submits_at_once_start_one_process(client: Client, tmp_path: Path) -> None:
    backend, plan = LocalBackend(client.home), planned(client, tmp_path / "project").plan
    backend.stage(plan, lambda line: None)
    jobs = client.home / "jobs"
    (jobs / plan.token / "input" / "code" / "train_entry" / "__main__.py").write_text(SLEEP)
    threads = [threading.Thread(target=LocalBackend(client.home).submit, args=(plan,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started = [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-1:] == [plan.token]]
    assert len(started) == 1


def test_a_job_whose_launcher_died_before_the_note_is_found_again(client: Client, tmp_path: Path) -> None:
    backend, ref, plan = sleeping(client, tmp_path)
    note = folder_of(client, ref) / "process.json"
    pid = json.loads(note.read_text())["pid"]
    note.unlink()
    assert backend.status(ref).started is not None
    assert json.loads(note.read_text())["pid"] == pid
    note.unlink()
    assert ref in list(backend.discover(Site(backend="local")))
    note.unlink()
    assert backend.submit(plan.plan) == ref
    assert json.loads(note.read_text())["pid"] == pid


def test_a_staged_job_that_was_never_started_is_no_job(client: Client, tmp_path: Path) -> None:
    backend, plan = LocalBackend(client.home), planned(client, tmp_path / "project").plan
    backend.stage(plan, lambda line: None)
    assert list(backend.discover(Site(backend="local"))) == []
    assert backend.status(JobRef("local", "localhost", plan.token)).state == JobState.QUEUED


def test_a_staged_file_that_was_damaged_is_put_right(client: Client, tmp_path: Path) -> None:
    backend, plan = LocalBackend(client.home), planned(client, tmp_path / "project").plan
    backend.stage(plan, lambda line: None)
    rows = client.home / "jobs" / plan.token / "input" / "data" / "train.jsonl"
    whole = rows.read_bytes()
    rows.write_bytes(b"x" * len(whole))
    backend.stage(plan, lambda line: None)
    assert rows.read_bytes() == whole


def test_data_that_changes_after_the_plan_is_not_staged(client: Client, tmp_path: Path) -> None:
    plan = planned(client, tmp_path / "project").plan
    (tmp_path / "project" / "rows.jsonl").write_text("changed")
    with pytest.raises(BackendError, match="has changed"):
        LocalBackend(client.home).stage(plan, lambda line: None)


def test_an_output_that_no_longer_is_what_the_job_vouched_for_is_refused(client: Client, tmp_path: Path) -> None:
    backend, ref, _ = sleeping(client, tmp_path)
    output = folder_of(client, ref) / "output"
    (output / "artifact").mkdir()
    (output / "artifact" / "weights").write_text("damaged")
    done = {"event": "done", "files": [{"path": "artifact/weights", "size": 7, "sha256": "0" * 64}]}
    (output / "events.jsonl").write_text(json.dumps(done) + "\n")
    with pytest.raises(BackendError, match="weights is not what it was"):
        backend.download(ref, tmp_path / "to")
    assert not (tmp_path / "to" / "artifact" / "weights").exists()


def test_checkpoints_are_not_removed_under_a_job_that_resumes_from_them(client: Client, tmp_path: Path) -> None:
    backend, first, plan = sleeping(client, tmp_path)
    backend.cancel(first)
    until(lambda: backend.status(first).state.terminal)
    resumed = dataclasses.replace(plan.plan, token=f"{first.id}-r2")
    resumed = dataclasses.replace(
        resumed,
        request=backend.render(
            plan.plan.job, plan.plan.offer, plan.plan.bundle, plan.plan.site, resumed.token, first.id
        ),
    )
    backend.stage(resumed, lambda line: None)
    (client.home / "jobs" / resumed.token / "input" / "code" / "train_entry" / "__main__.py").write_text(SLEEP)
    second = backend.submit(resumed)
    with pytest.raises(ConfigError, match=f"{second.id} still runs"):
        backend.release(first)
    backend.cancel(second)
    until(lambda: backend.status(second).state.terminal)
    backend.release(first)
    assert not folder_of(client, first).exists()


def test_env_and_options_reach_the_process_and_look_alikes_of_placeholders_stay(
    client: Client, tmp_path: Path
) -> None:
    backend = LocalBackend(client.home)
    plan = planned(
        client, tmp_path / "project", env={"MINE": "{cache} stays"}, backend_options={"local": {"threads": 3}}
    ).plan
    backend.stage(plan, lambda line: None)
    folder = client.home / "jobs" / plan.token
    wanted = ("MINE", "LAUNCH_THREADS", "LAUNCH_OUTPUT_DIR", "LAUNCH_CHECKPOINT_DIR")
    (folder / "input" / "code" / "train_entry" / "__main__.py").write_text(
        f"import json, os\nprint(json.dumps([os.environ[n] for n in {wanted}]))\n"
    )
    ref = backend.submit(plan)
    until(lambda: backend.status(ref).state.terminal)
    (line,) = backend.logs(ref)
    assert json.loads(line.text) == ["{cache} stays", "3", str(folder / "output"), str(folder / "checkpoints")]


def test_a_secret_that_is_nowhere_is_named_before_anything_starts(client: Client, tmp_path: Path) -> None:
    plan = planned(client, tmp_path / "project", secrets=["NO_SUCH_SECRET_HERE"])
    with pytest.raises(CredentialsError, match="NO_SUCH_SECRET_HERE"):
        client.submit(plan, lambda line: None)
    record = client.get(plan.plan.token)
    assert (record.state, record.ref) == ("FAILED", None)
    assert "NO_SUCH_SECRET_HERE" in (record.reason or "")


def test_on_windows_a_job_is_asked_to_stop_by_the_file_that_its_ranks_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "process.json"
    process.start([sys.executable, "-c", SLEEP], os.environ, tmp_path, tmp_path / "log", note)
    found = process.running(note)
    assert found is not None
    stop_file = tmp_path / "output" / ".work" / "stop"
    with monkeypatch.context() as there:
        there.setattr(sys, "platform", "win32")
        process.ask_to_stop(found, stop_file)
    assert stop_file.exists()
    assert process.running(note) is not None  # not killed: it checkpoints first
    found.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threads": 0}, "threads: '0'"), ({"proceses": 2}, "proceses"), ({"processes": "x"}, "'x'")],
)
def test_options_that_make_no_sense_are_refused_by_name(
    options: dict[str, Any], message: str, client: Client, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(client, tmp_path / "project", backend_options={"local": options})


def test_a_line_that_is_still_being_written_waits_for_its_end(client: Client, tmp_path: Path) -> None:
    backend, ref, _ = sleeping(client, tmp_path)
    log = folder_of(client, ref) / "log.txt"
    log.write_bytes("one\ntwo and h\u00e4".encode()[:-1])  # cut within a character
    (first,) = backend.logs(ref)
    assert first.text == "one"
    with log.open("ab") as file:
        file.write("\u00e4".encode()[-1:] + b"lf\nthree, unfinished")
    assert [line.text for line in backend.logs(ref, first.cursor)] == ["two and h\u00e4lf"]
    backend.cancel(ref)
    until(lambda: backend.status(ref).state.terminal)
    assert [line.text for line in backend.logs(ref, first.cursor)] == ["two and h\u00e4lf", "three, unfinished"]
