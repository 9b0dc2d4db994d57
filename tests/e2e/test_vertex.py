"""`launch --backend vertex` from a laptop, with everything going wrong that can, on an emulated Vertex AI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.e2e.cases import LONG, QUICK, SHORT, CloudCases, events, ran, steps
from tests.e2e.google import Laptop, laptop
from tests.e2e.jobs import write_job
from tests.e2e.laptop import CloudLaptop
from tests.emulators.vertex.emulator import VertexEmulator

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def project(image: Callable[[str], Path]) -> Iterator[tuple[VertexEmulator, str, str]]:
    if problem := VertexEmulator.unavailable():
        pytest.skip(problem)
    with VertexEmulator(image("vertex"), grace_s=60.0) as google:
        yield google, google.account(), google.bucket()


@pytest.fixture
def another(
    project: tuple[VertexEmulator, str, str], tmp_path: Path
) -> Callable[[str], AbstractContextManager[Laptop]]:
    return lambda name: laptop(*project, tmp_path / name)


@pytest.fixture
def anna(another: Callable[[str], AbstractContextManager[Laptop]]) -> Iterator[Laptop]:
    with another("anna") as made:
        yield made


class TestVertex(CloudCases):
    planned = "SPOT"
    create = "CreateCustomJob"
    upload = "storage:Upload"
    busy = (
        ("unavailable", "CreateCustomJob", 1, 0), ("error", "storage:Upload", 2, 0), ("drop", "logging:*", 2, 0),
        ("throttle", "GetCustomJob", 2, 0), ("unavailable", "GetCustomJob", 2, 0), ("cut", "logging:*", 1, 0),
    )  # fmt: skip
    log_in = "gcloud auth application-default login"

    def test_what_fails_in_the_container_says_why(self, anna: CloudLaptop, tiny_model: Path) -> None:
        anna.cloud.set(worker_restarts=2, job_retries=1)
        super().test_what_fails_in_the_container_says_why(anna, tiny_model)
        (job, *_) = anna.jobs_there()
        assert len(anna.cloud.attempts(job)) == 6  # Vertex tries again as it always does
        said = anna.cloud.log(job)
        assert sum('"name": "setup"' in line for line in said) == 1
        assert sum("not tried again" in line for line in said) == 5  # and is not paid again

    def test_hours_that_are_over_are_not_paid_again(self, anna: CloudLaptop, tiny_model: Path) -> None:
        anna.cloud.set(worker_restarts=2, job_retries=1)
        done = ran(anna, tiny_model, "--set", "resources.max_hours=0.003", *QUICK, **LONG, max_steps="null")
        assert done.returncode == 1
        assert "its time limit" in done.stderr
        assert "launch resume" in done.stderr
        (job, *_) = anna.jobs_there()
        assert [attempt["codes"] for attempt in anna.cloud.attempts(job)] == [[143]] * 6
        said = anna.cloud.log(job)
        assert sum('"name": "setup"' in line for line in said) == 1
        assert sum("its hours are over" in line for line in said) == 5
        (stopped,) = [e for e in events(done) if e["event"] == "stopped"]
        assert (stopped["reason"], stopped["step"]) == ("deadline", (steps(done) or [None])[-1])
        assert events(done)[-1]["interruptions"] == 0

    def test_a_lost_answer_is_one_job(self, whole: Whole) -> None:
        assert whole.done.returncode == 0, whole.done.stderr
        assert (len(whole.jobs), whole.creations) == (1, 1)

    def test_a_job_reads_the_secret_that_was_put_and_nobody_sees_it(self, whole: Whole) -> None:
        assert whole.put.returncode == 0, whole.put.stderr
        said = "\n".join(whole.anna.google.log(whole.job))
        assert f"value *** {PLANTED[::-1]}" in said
        kept = [path.read_bytes() for path in whole.anna.folder.rglob("*") if path.is_file()]
        shown = whole.put.stdout + whole.put.stderr + whole.done.stdout + whole.done.stderr + said
        assert PLANTED not in shown
        assert not [content for content in kept if PLANTED.encode() in content]

    def test_lines_that_come_late_are_waited_for(self, whole: Whole) -> None:
        assert [e["event"] for e in events(whole.done)][-3:] == ["done", "state", "job"]
        assert events(whole.done)[-1]["artifacts"]

    def test_what_is_old_enough_is_released(self, whole: Whole) -> None:
        anna, job = whole.anna, whole.job
        assert anna.launch("release", "--older-than", "1d", "--yes").stdout == "nothing to remove\n"
        assert anna.launch("release", "--older-than", "0h", "--yes").returncode == 0
        assert job not in anna.jobs_there()
        assert [key for key in anna.objects() if job in key] == []
        assert anna.show(job)["state"] == "SUCCEEDED"


PLANTED = "planted-value"


@dataclass(kw_only=True)
class Whole:
    """One job from the secret to the last line: the answer to its creation was lost, its lines came late."""

    anna: Laptop
    put: CompletedProcess[str]
    done: CompletedProcess[str]
    jobs: set[str]
    creations: int

    @property
    def job(self) -> str:
        return str(events(self.done)[-1]["id"])


@pytest.fixture(scope="module")
def whole(
    project: tuple[VertexEmulator, str, str], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    with laptop(*project, tmp_path_factory.mktemp("whole") / "anna") as anna:
        before = set(anna.jobs_there())
        put = anna.launch("secrets", "put", "JOB_SECRET", "--backend", "vertex", said=f"{PLANTED}\n")
        anna.google.fault("lose", "CreateCustomJob")
        anna.google.set(log_delay_s=4.0)
        say = "print('value', os.environ['JOB_SECRET'], os.environ['JOB_SECRET'][::-1])"
        scorer = f"import os\ndef score(rows, answers):\n    {say}\n    return {{}}\n"
        (anna.folder / "scorer.py").write_text(scorer)
        sets = ("secrets=[JOB_SECRET]", "eval.baseline=false", "eval.scorer=scorer.py", "eval.max_rows=2")
        done = ran(anna, tiny_model, *(word for one in sets for word in ("--set", one)))
        creations = sum(c.operation == "CreateCustomJob" for c in anna.google.calls)
        return Whole(anna=anna, put=put, done=done, jobs=set(anna.jobs_there()) - before, creations=creations)


def test_setup_finds_what_the_project_has_and_advises_what_it_lacks(anna: Laptop) -> None:
    sites = anna.folder / "config" / "sites.yaml"
    sites.unlink()
    found = anna.launch("setup", "vertex", "--find")
    assert found.returncode == 0, found.stderr
    kept = sites.read_text()
    for fact in (anna.google.project, anna.google.region, anna.account, "finelaunch/train@sha256:"):
        assert fact in kept
    assert "not set yet" not in found.stdout
    advice = anna.launch("setup", "vertex", "--advice").stdout
    account = f"--member serviceAccount:{anna.account}"
    for said in (account, "roles/aiplatform.user", "docker build", "buckets create"):
        assert said in advice


def test_two_machines_that_start_again_together_are_paid_once_where_no_start_can_succeed(
    anna: Laptop, tiny_model: Path
) -> None:
    anna.google.set(worker_restarts=2, job_retries=1)
    assert anna.launch("secrets", "put", "GATED", "--backend", "vertex", said="x\n").returncode == 0
    anna.google.deny("secretmanager.versions.access", who=anna.account)
    done = ran(anna, tiny_model, "--set", "secrets=[GATED]", "--set", "resources.nodes=2")
    assert done.returncode == 1
    assert f"note: as far as can be seen, {anna.account} may not read secret GATED" in done.stderr
    assert "secret GATED (gcp-sm://" in done.stderr and "roles/secretmanager.secretAccessor" in done.stderr
    job = events(done)[-1]["id"]
    assert len(anna.google.attempts(job)) == 6
    said = anna.google.log(job)
    # None, where the second machine has failed before the first one's program began.
    assert sum('"name": "setup"' in line for line in said) <= 1
    assert sum("not tried again" in line for line in said) >= 5


def test_what_the_project_lacks_is_told_before_anything_is_sent(anna: Laptop, tiny_model: Path) -> None:
    anna.google.set(quotas={"custom_model_training_nvidia_l4_gpus": 0})
    anna.google.set(images={"*nowhere*": None})
    anna.google.deny("iam.serviceAccounts.actAs")
    sent, image = anna.uploads(), f"us-central1-docker.pkg.dev/{anna.google.project}/nowhere/train:1"
    done = ran(anna, tiny_model, "--set", "secrets=[HF_TOKEN]", "--set", f"resources.image={image}")
    assert done.returncode in (2, 4, 5)
    for said in (
        "iam.serviceAccounts.actAs", "launch secrets put HF_TOKEN --backend vertex",
        "custom_model_training_nvidia_l4_gpus", "there is no image",
    ):  # fmt: skip
        assert said in done.stderr.replace("\n", "") or said in done.stderr
    assert anna.uploads() == sent
    assert json.loads(anna.launch("list", "--json").stdout) == []


def test_nothing_is_sent_in_the_clear_to_another_machine(
    anna: Laptop, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_job(anna.folder, tiny_model, **SHORT)
    far = {**anna.env, "LAUNCH_VERTEX_ENDPOINT": "http://192.0.2.1:8080"}
    monkeypatch.setattr(Laptop, "env", property(lambda self: far))
    done = anna.launch("run", "--backend", "vertex", "--yes", *QUICK)
    assert done.returncode == 2
    assert "without TLS" in done.stderr
