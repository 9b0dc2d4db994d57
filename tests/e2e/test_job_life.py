"""A job's whole life on this machine, with everything that can be killed being killed.

Jobs are started, resumed and judged by `launch`, a process; looking at them is `typed` here.
"""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import pytest

from tests.e2e.jobs import kill_trainer, wait_for, write_job

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]

LONG = {"epochs": 400, "checkpoint_steps": 2}
warm = pytest.mark.usefixtures("warm_jobs")
"""The others start the training process with its imports, in the environment that users have."""


def shown(launch, job: str | None = None) -> dict:
    done = launch("show", *([job] if job else []), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def steps(launch, job: str) -> list[int]:
    lines = launch("logs", job, "--json").stdout.splitlines()
    return [e["step"] for e in map(json.loads, lines) if e["event"] == "step"]


def started(launch, home: Path, folder: Path, model: Path, **train) -> str:
    """A detached long job that has made two checkpoints."""
    write_job(folder, model, **{**LONG, **train})
    done = launch("run", "launch.yaml", "--detach", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout.splitlines()[0])["id"]
    wait_for(lambda: len(list((home / "jobs" / job / "checkpoints").glob("step-*/manifest.json"))) >= 2)
    return job


def test_a_job_from_file_to_artifact(launch, typed, home, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model)
    done = launch("launch.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "macro-F1" in done.stdout
    assert "general questions" in done.stdout
    assert "baseline" in done.stdout
    assert "artifact" in done.stdout
    assert "training" in done.stderr

    job = shown(typed)
    assert job["state"] == "SUCCEEDED"
    assert job["backend"] == "local"
    for which in ("baseline", "tuned"):
        assert 0 <= job["evaluation"][which]["accuracy"] <= 1
        assert 0 <= job["evaluation"][which]["macro_f1"] <= 1
        assert job["evaluation"][which]["general"]["log_prob"] < 0
    assert job["estimate"]["expected"] == "0"
    assert job["actual"]["steps"] == 6
    assert "artifact/adapter_model.safetensors" in {a["path"] for a in job["artifacts"]}

    assert json.loads(typed("status", "--json").stdout)["state"] == "SUCCEEDED"
    assert [j["id"] for j in json.loads(typed("list", "--json").stdout)] == [job["id"]]
    assert steps(typed, job["id"]) == [1, 2, 3, 4, 5, 6]
    assert typed("logs", "--tail", "1").stdout.count("\n") <= 1
    assert "general questions" in typed("show").stdout
    assert "step 6/6" in typed("logs", job["id"][:8]).stdout
    assert typed("watch", job["id"]).returncode == 0

    assert typed("fetch", job["id"], "--to", "copy", cwd=folder).returncode == 0
    for file in job["artifacts"]:
        assert hashlib.sha256((folder / "copy" / file["path"]).read_bytes()).hexdigest() == file["sha256"]

    again = launch("eval", job["id"], "--json")
    assert again.returncode == 0, again.stderr
    figures = json.loads(again.stdout)
    for which in ("baseline", "tuned"):
        assert figures["evaluation"][which]["confusion_matrix"] == job["evaluation"][which]["confusion_matrix"]
    (folder / "other.jsonl").write_text('{"instruction": "ticket 7: the screen is slow", "response": "Low"}\n')
    other = launch("eval", job["id"], "--data", "other.jsonl", "--json", cwd=folder)
    assert other.returncode == 0, other.stderr
    assert json.loads(other.stdout)["evaluation"]["tuned"]["rows"] == 1
    assert "tuned@other.jsonl" in shown(typed)["evaluation"]

    assert typed("resume", job["id"]).returncode == 2
    assert "over already" in typed("cancel", job["id"]).stdout

    # The record is a copy: without it, the job folders tell the same.
    for path in home.glob("record.db*"):
        path.unlink()
    rebuilt = shown(typed)
    assert {k: rebuilt[k] for k in ("id", "state", "artifacts")} == {
        k: job[k] for k in ("id", "state", "artifacts")
    }
    assert rebuilt["evaluation"]["tuned"] == job["evaluation"]["tuned"]


@warm
def test_a_dry_run_measures_and_keeps_nothing(launch, typed, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model)
    done = launch("--dry-run", "--set", "train.epochs=50", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "dry run" in done.stdout
    assert "tokens/s" in done.stdout
    job = shown(typed)
    assert job["actual"]["steps"] == 5
    assert job["actual"]["peak_gib"] > 0
    assert job["artifacts"] == []


@warm
def test_cancel_checkpoints_and_resume_goes_on_to_the_end(launch, typed, home, tmp_path, tiny_model):
    job = started(launch, home, tmp_path / "work", tiny_model)
    cancelled = typed("cancel", job)
    assert "CANCELLED" in cancelled.stdout
    assert shown(typed, job)["state"] == "CANCELLED"
    reached = max(steps(typed, job))
    # The schedule is part of the job, so the resumed one is cut short by a deadline far below its 400 epochs.
    again = launch("resume", job, "--detach", "--json")
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout.splitlines()[0])["id"]
    assert second == f"{job}-r2"
    wait_for(lambda: bool(steps(typed, second)))
    assert min(steps(typed, second)) == reached + 1
    busy = typed("resume", job)
    assert busy.returncode == 2
    assert second in busy.stderr
    assert typed("cancel", second).returncode == 0
    assert shown(typed, second)["resumes"] == job


@warm
def test_a_changed_job_file_goes_on_from_a_checkpoint_when_that_is_said(launch, typed, home, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model)
    done = launch("run", "--json", "--set", "train.max_steps=4", cwd=folder)
    assert done.returncode == 0, done.stderr
    job = shown(typed)["id"]
    refused = launch("run", "--from-checkpoint", job, "--set", "tuning.r=8", cwd=folder)
    assert refused.returncode == 2
    assert "tuning.r: 4 -> 8" in refused.stderr
    again = launch(
        "run", "--from-checkpoint", job, "--set", "train.max_steps=8", "--set", "train.epochs=2", cwd=folder
    )
    assert again.returncode == 0, again.stderr
    told = " ".join(again.stderr.split())
    assert f"from the newest checkpoint of {job} with train.epochs: 1.0 -> 2.0; train.max_steps: 4 -> 8" in told
    second = shown(typed)
    assert second["id"] == f"{job}-r2" and second["resumes"] == job
    assert steps(typed, second["id"]) == [5, 6, 7, 8]


@warm
def test_a_killed_launcher_leaves_the_job_alone(typed, start, home, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model, epochs=20)
    follower = start("run", "launch.yaml", "--json", cwd=folder)
    assert follower.stdout is not None
    job = json.loads(follower.stdout.readline())["id"]
    wait_for(lambda: bool(steps(typed, job)))
    follower.kill()
    follower.wait()
    done = typed("watch", job)
    assert done.returncode == 0, done.stderr
    assert shown(typed, job)["state"] == "SUCCEEDED"
    seen = steps(typed, job)
    assert seen == list(range(1, 121))


def killed(launch, typed, home, folder, model, whole) -> str:
    """A job whose processes, or whose trainer alone, were killed with SIGKILL, and that says so."""
    job = started(launch, home, folder, model)
    kill_trainer(home, job, whole)
    wait_for(lambda: shown(typed, job)["state"] == "FAILED")
    assert "killed" in shown(typed, job)["reason"]
    return job


def test_a_killed_job_fails_with_words_and_resumes(launch, typed, home, tmp_path, tiny_model):
    job = killed(launch, typed, home, tmp_path / "work", tiny_model, whole=True)
    watched = typed("watch", job)
    assert watched.returncode == 1
    assert f"launch resume {job}" in watched.stderr
    again = json.loads(launch("resume", job, "--detach", "--json").stdout.splitlines()[0])["id"]
    wait_for(lambda: bool(steps(typed, again)))
    assert min(steps(typed, again)) >= 5
    typed("cancel", again)


def test_a_trainer_that_is_killed_below_its_entrypoint_fails_with_words(launch, typed, home, tmp_path, tiny_model):
    killed(launch, typed, home, tmp_path / "work", tiny_model, whole=False)


@warm
def test_ctrl_c_detaches_and_says_how_to_come_back(typed, start, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model, **LONG)
    follower = start("run", "launch.yaml", cwd=folder)
    wait_for(lambda: any(s["state"] == "RUNNING" for s in json.loads(typed("list", "--json").stdout)))
    follower.send_signal(signal.SIGINT)
    _, stderr = follower.communicate(timeout=30)
    job = shown(typed)
    assert follower.returncode == 130
    assert f"launch watch {job['id']}" in stderr
    assert f"launch cancel {job['id']}" in stderr
    assert "interrupted" not in stderr
    assert job["state"] in ("STARTING", "RUNNING")
    reader = start("logs", "-f", job["id"])
    assert reader.stdout.readline()
    reader.send_signal(signal.SIGINT)
    _, stderr = reader.communicate(timeout=30)
    assert reader.returncode == 130
    assert f"launch watch {job['id']}" in stderr
    assert f"launch cancel {job['id']}" in stderr
    typed("cancel", job["id"])


@warm
def test_two_launchers_work_at_once(typed, start, tmp_path, tiny_model):
    for name in ("one", "two"):
        write_job(tmp_path / name, tiny_model)
    both = [start("run", "launch.yaml", "--json", cwd=tmp_path / name) for name in ("one", "two")]
    for process in both:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
    jobs = json.loads(typed("list", "--json").stdout)
    assert [j["state"] for j in jobs] == ["SUCCEEDED", "SUCCEEDED"]
    assert len({j["id"] for j in jobs}) == 2


@warm
def test_a_failed_job_says_why_and_how_to_go_on(launch, typed, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model)
    (folder / "scorer.py").write_text(
        "def score(rows, answers):\n    raise ValueError('no truth stands in row 3')\n"
    )
    done = launch("run", "--set", "eval.scorer=scorer.py", cwd=folder)
    assert done.returncode == 1
    assert "no truth stands in row 3" in done.stderr
    job = shown(typed)
    assert job["state"] == "FAILED"
    assert f"launch logs {job['id']}" in done.stderr


def test_rows_that_are_too_long_are_named_before_a_job_starts(launch, typed, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model)
    done = launch("run", "--set", "data.max_length=8", cwd=folder)
    assert done.returncode == 2
    assert "train.jsonl:" in done.stderr and "set data.max_length: " in done.stderr
    assert json.loads(typed("list", "--json").stdout) == []


@warm
def test_secrets_reach_the_job_and_nothing_else(launch, typed, home, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model)
    (folder / "scorer.py").write_text(
        "import os\ndef score(rows, answers):\n"
        "    print('the key is', os.environ['MY_KEY'], flush=True)\n"
        "    return {'length': len(os.environ['MY_KEY'])}\n"
    )
    missing = launch("run", "--set", "secrets=[MY_KEY]", cwd=folder)
    assert missing.returncode == 4
    assert "MY_KEY" in missing.stderr
    value = "planted-" + "value-1234567890"
    done = launch(
        "run", "--set", "secrets=[MY_KEY]", "--set", "eval.scorer=scorer.py", cwd=folder, env={"MY_KEY": value}
    )
    assert done.returncode == 0, done.stderr
    assert shown(typed)["evaluation"]["tuned"]["scorer"]["length"] == len(value)
    assert "the key is ***" in typed("logs").stdout
    leaks = [p for p in home.rglob("*") if p.is_file() and value.encode() in p.read_bytes()]
    assert leaks == []
    assert value not in done.stdout + done.stderr
