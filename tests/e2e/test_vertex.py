"""`launch --backend vertex` from a laptop, with everything going wrong that can, on an emulated Vertex AI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

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
        done = ran(anna, tiny_model, "--set", "resources.max_hours=0.006", *QUICK, **LONG, max_steps="null")
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

    def test_a_lost_answer_is_one_job(self, anna: CloudLaptop, tiny_model: Path) -> None:
        super().test_a_lost_answer_is_one_job(anna, tiny_model)
        assert sum(c.operation == "CreateCustomJob" for c in anna.cloud.calls) == 1


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
