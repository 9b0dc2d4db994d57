"""`launch --backend vertex` from a laptop, with everything going wrong that can, on an emulated Vertex AI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.google import Laptop, laptop
from tests.e2e.jobs import wait_for, write_job
from tests.e2e.laptop import STEP
from tests.emulators.vertex.emulator import VertexEmulator

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

SHORT = {"max_steps": 2}
LONG = {"epochs": 400, "checkpoint_steps": 2}
QUICK = ("--set", "eval.baseline=false", "--set", "eval.tuned=false")


@pytest.fixture(scope="module")
def project(train_python: Path) -> Iterator[tuple[VertexEmulator, str, str]]:
    if problem := VertexEmulator.unavailable():
        pytest.skip(problem)
    with VertexEmulator(train_python, grace_s=60.0) as google:
        yield google, google.account(), google.bucket()


@pytest.fixture
def anna(project: tuple[VertexEmulator, str, str], tmp_path: Path) -> Iterator[Laptop]:
    with laptop(*project, tmp_path / "anna") as made:
        yield made


def ran(anna: Laptop, model: Path, *args: str, **train: object) -> subprocess.CompletedProcess[str]:
    write_job(anna.folder, model, **{**SHORT, **train})
    return anna.launch("run", "--backend", "vertex", "--yes", "--json", *args)


def events(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def detached(anna: Laptop, model: Path, *args: str, **train: object) -> str:
    done = ran(anna, model, "--detach", *args, **{**LONG, "max_steps": "null", **train})
    assert done.returncode == 0, done.stderr
    return str(events(done)[0]["id"])


def has_said(anna: Laptop, job: str, what: str, times: int = 1) -> bool:
    return sum(what in line for line in anna.google.log(job)) >= times


def test_the_real_model_is_tuned_through_a_preemption(anna: Laptop, train_python: Path, tmp_path: Path) -> None:
    assert anna.launch("init", "--template", "support_triage").returncode == 0
    sets = [
        "train.max_steps=4", "train.checkpoint_steps=2", "train.batch_size=2", "eval.max_rows=4",
        "eval.generation=false", "resources.spot=true", "resources.max_hours=1",
        f"env.PIP_FIND_LINKS={os.environ['PIP_FIND_LINKS']}", "env.PIP_NO_INDEX='1'",
    ]  # fmt: skip
    args = [word for line in sets for word in ("--set", line)]
    planned = anna.launch("plan", "--backend", "vertex", *args)
    assert planned.returncode == 0, planned.stderr
    assert "SPOT" in planned.stdout
    anna.google.interrupt(after_line=STEP, count=3)
    done = anna.launch("run", "--backend", "vertex", "--yes", "--json", *args, timeout=800)
    assert done.returncode == 0, done.stderr
    job = events(done)[-1]
    assert (job["state"], job["interruptions"]) == ("SUCCEEDED", 1)
    assert job["evaluation"]["baseline"]["rows"] == job["evaluation"]["tuned"]["rows"] == 4
    assert len([e for e in events(done) if e["event"] == "resumed"]) == 1
    fetched = anna.launch("fetch", job["id"], "--to", str(tmp_path / "out"))
    assert fetched.returncode == 0, fetched.stderr
    sizes = {a["path"]: a["size"] for a in job["artifacts"]}
    assert {p: (tmp_path / "out" / p).stat().st_size for p in sizes} == sizes
    loads = "import sys, safetensors.torch as s; print(len(s.load_file(sys.argv[1])))"
    (adapter,) = (tmp_path / "out").rglob("adapter_model.safetensors")
    loaded = subprocess.run([train_python, "-c", loads, adapter], capture_output=True, text=True, check=True)
    assert int(loaded.stdout) > 100


def test_a_job_that_is_cancelled_goes_on_where_it_was(anna: Laptop, tiny_model: Path) -> None:
    job = detached(anna, tiny_model, *QUICK)
    wait_for(lambda: has_said(anna, job, STEP, 3))
    done = anna.launch("cancel", job)
    assert done.returncode == 0, done.stderr
    wait_for(lambda: anna.show(job)["state"] == "CANCELLED")
    again = anna.launch("resume", job, "--detach", "--json")
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout.splitlines()[0])["id"]
    assert second == f"{job}-r2"
    wait_for(lambda: has_said(anna, second, '"event": "resumed"'))
    assert anna.launch("cancel", second).returncode == 0


def test_what_fails_in_the_container_says_why_and_is_not_paid_again(anna: Laptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, **SHORT)
    (anna.folder / "scorer.py").write_text(
        "def score(rows, answers):\n    raise ValueError('the queue is on fire')\n"
    )
    anna.google.set(worker_restarts=2, job_retries=1)
    done = anna.launch("run", "--backend", "vertex", "--yes", "--set", "eval.scorer=scorer.py")
    assert done.returncode == 1
    assert "the queue is on fire" in done.stderr
    assert "launch resume" in done.stderr
    (job, *_) = anna.google.job_names()
    said = anna.google.log(job)
    assert len(anna.google.attempts(job)) == 6  # Vertex tries again as it always does
    assert sum('"name": "setup"' in line for line in said) == 1
    assert sum("not tried again" in line for line in said) == 5


def test_two_replicas_train_one_model(anna: Laptop, tiny_model: Path) -> None:
    done = ran(anna, tiny_model, "--set", "resources.nodes=2", *QUICK)
    assert done.returncode == 0, done.stderr + "\n".join(anna.google.log(anna.google.job_names()[0]))
    assert events(done)[-1]["state"] == "SUCCEEDED"
    assert [e["step"] for e in events(done) if e["event"] == "step"] == [1, 2]


def test_a_busy_and_broken_endpoint_is_waited_out(anna: Laptop, tiny_model: Path) -> None:
    for kind, operation, times in (
        ("unavailable", "CreateCustomJob", 1), ("error", "storage:Upload", 2), ("drop", "logging:*", 2),
        ("throttle", "GetCustomJob", 2), ("unavailable", "GetCustomJob", 2), ("cut", "logging:*", 1),
    ):  # fmt: skip
        anna.google.fault(kind, operation, times=times)
    before = set(anna.google.job_names())
    done = ran(anna, tiny_model, *QUICK)
    assert done.returncode == 0, done.stderr
    assert events(done)[-1]["state"] == "SUCCEEDED"
    assert [e["step"] for e in events(done) if e["event"] == "step"] == [1, 2]
    assert len(set(anna.google.job_names()) - before) == 1


def test_a_lost_answer_is_one_job(anna: Laptop, tiny_model: Path) -> None:
    before = set(anna.google.job_names())
    anna.google.fault("lose", "CreateCustomJob")
    done = ran(anna, tiny_model, *QUICK)
    assert done.returncode == 0, done.stderr
    assert len(set(anna.google.job_names()) - before) == 1
    assert sum(c.operation == "CreateCustomJob" for c in anna.google.calls) == 1


def test_a_laptop_killed_while_it_uploads_goes_on_from_there(anna: Laptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, **SHORT, seed=4711)  # a bundle that no other test has sent
    before = set(anna.google.job_names())
    files = json.loads(anna.launch("plan", "--backend", "vertex", "--json").stdout)["bundle"]["files"]
    anna.google.fault("slow", "storage:Upload", times=100, skip=10, seconds=2.0)
    process = anna.start("run", "--backend", "vertex", "--yes", *QUICK)
    wait_for(lambda: anna.uploads() >= 12)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    anna.google.clear()
    (job,) = json.loads(anna.launch("list", "--json").stdout)
    assert job["state"] == "FAILED"
    assert "nothing runs" in job["reason"]
    assert set(anna.google.job_names()) == before
    again = anna.launch("run", "--backend", "vertex", "--yes", "--json", *QUICK)
    assert again.returncode == 0, again.stderr
    assert 3 < anna.uploads() < len(files)  # its use, its list and its record are sent in any case


def test_a_laptop_killed_while_it_follows_misses_nothing(anna: Laptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, epochs=3, checkpoint_steps=2)
    before = set(anna.google.job_names())
    process = anna.start("run", "--backend", "vertex", "--yes", *QUICK)
    wait_for(lambda: any(has_said(anna, job, STEP, 2) for job in set(anna.google.job_names()) - before))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = anna.launch("watch", "--json")
    assert done.returncode == 0, done.stderr
    seen = [e["step"] for e in events(done) if e["event"] == "step"]
    assert seen == list(range(1, 19))


def test_an_expired_login_is_told_and_followed_on_after_the_next(anna: Laptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, **{**LONG, "epochs": 8})
    lines: list[dict] = []
    with anna.start("run", "--backend", "vertex", "--yes", "--json", *QUICK) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "step" and lines[-1]["step"] == 2:
                anna.google.expire()
            if lines[-1]["event"] == "trouble":
                assert "gcloud auth application-default login" in lines[-1]["hint"]
                anna.google.login()
    assert process.returncode == 0
    assert [e["event"] for e in lines].count("trouble") == 1
    assert [e["step"] for e in lines if e["event"] == "step"] == list(range(1, 49))


def test_another_laptop_finds_the_jobs_and_whose_they_are(
    project: tuple[VertexEmulator, str, str], anna: Laptop, tiny_model: Path, tmp_path: Path
) -> None:
    done = ran(anna, tiny_model, *QUICK)
    assert done.returncode == 0, done.stderr
    job = events(done)[-1]["id"]
    with laptop(*project, tmp_path / "ben") as ben:
        assert json.loads(ben.launch("list", "--json").stdout) == []
        found = json.loads(ben.launch("list", "--discover", "--json").stdout)
        known = next(j for j in found if j["id"] == job)
        assert (known["owner"], known["state"]) == ("anna", "SUCCEEDED")
        assert ben.launch("fetch", job).returncode == 0
        assert ben.launch("release", job).returncode == 2
        released = ben.launch("release", job, "--yes")
        assert released.returncode == 0, released.stderr
        assert [key for key in ben.objects() if job in key] == []
    assert job not in anna.google.job_names()


def test_what_the_project_lacks_is_told_before_anything_is_sent(anna: Laptop, tiny_model: Path) -> None:
    anna.google.set(quotas={"custom_model_training_nvidia_l4_gpus": 0})
    anna.google.deny("iam.serviceAccounts.actAs")
    sent = anna.uploads()
    done = ran(anna, tiny_model, "--set", "secrets=[HF_TOKEN]")
    assert done.returncode in (2, 4, 5)
    for said in (
        "iam.serviceAccounts.actAs", "launch secrets put HF_TOKEN --backend vertex",
        "custom_model_training_nvidia_l4_gpus",
    ):  # fmt: skip
        assert said in done.stderr.replace("\n", "") or said in done.stderr
    assert anna.uploads() == sent
    assert json.loads(anna.launch("list", "--json").stdout) == []


def test_an_image_that_is_not_there_is_told_before_anything_is_sent(anna: Laptop, tiny_model: Path) -> None:
    anna.google.set(images={"*nowhere*": None})
    done = ran(
        anna, tiny_model, "--set", "resources.image=us-central1-docker.pkg.dev/demo-project/nowhere/train:1"
    )
    assert done.returncode != 0
    assert "there is no image" in done.stderr


def test_nothing_is_sent_in_the_clear_to_another_machine(
    anna: Laptop, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_job(anna.folder, tiny_model, **SHORT)
    far = {**anna.env, "LAUNCH_VERTEX_ENDPOINT": "http://192.0.2.1:8080"}
    monkeypatch.setattr(Laptop, "env", property(lambda self: far))
    done = anna.launch("run", "--backend", "vertex", "--yes", *QUICK)
    assert done.returncode == 2
    assert "without TLS" in done.stderr


def test_a_rehearsal_survives_losing_its_machine_and_asks_nothing_of_google(
    anna: Laptop, tiny_model: Path
) -> None:
    write_job(anna.folder, tiny_model, epochs=2, checkpoint_steps=2)
    before = len(anna.google.calls)
    done = anna.launch("rehearse", "--backend", "vertex", "--preempt-after", "3", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["starts"], found["interrupted_at"]) == (2, 3)
    assert found["resumed_at"] in (2, 3, 4)
    assert (Path(found["output"]) / "artifact").is_dir()
    assert len(anna.google.calls) == before
