"""What the SageMaker backend tells of a job's way to its machine, on emulated AWS with machines missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.base import JobRef, JobState, JobStatus
from backends.sagemaker import SageMakerBackend
from backends.sagemaker.states import status_of
from tests.emulators.sagemaker.conftest import Account

TYPES = ("ml.g6e.2xlarge", "ml.g6.2xlarge", "ml.g5.2xlarge")
LIST = {"InstancePreferences": [{"InstanceType": name} for name in TYPES], "InstanceCount": 1}


@pytest.fixture
def backend(account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SageMakerBackend:
    for name, value in account.aws.environment.items():
        monkeypatch.setenv(name, value)
    return SageMakerBackend(tmp_path)


def ended(backend: SageMakerBackend, account: Account, resources: dict[str, Any], **changed: Any) -> JobStatus:
    job = account.start(hyper={"steps": 1}, ResourceConfig=resources, **changed)
    account.aws.wait(job)
    return backend.status(JobRef("sagemaker", account.aws.region, job))


def test_the_machine_that_was_given_tells_which_had_no_capacity(
    account: Account, backend: SageMakerBackend
) -> None:
    account.aws.capacity(TYPES[0], available=False)
    status = ended(backend, account, LIST)
    assert (status.state, status.machine) == (JobState.SUCCEEDED, TYPES[1])
    assert list(status.tries.items()) == [
        (TYPES[0], "no capacity"), (TYPES[1], "given"), (TYPES[2], "not needed"),
    ]  # fmt: skip
    assert [wait.said for wait in status.waits] == [
        "Starting the training job", "Preparing the instances for training",
    ]  # fmt: skip
    assert all(wait.until is not None and wait.since <= wait.until for wait in status.waits)


def test_a_job_says_what_it_waits_for_and_since_when(account: Account, backend: SageMakerBackend) -> None:
    for name in TYPES:
        account.aws.capacity(name, available=False)
    account.aws.set(capacity_wait_s=30)
    job = account.start(hyper={"steps": 1}, ResourceConfig=LIST)
    account.aws.wait(job, "Pending")
    status = backend.status(JobRef("sagemaker", account.aws.region, job))
    assert (status.state, status.detail) == (
        JobState.QUEUED, "waits for capacity (Training job waiting for capacity)",
    )  # fmt: skip
    assert status.tries == dict.fromkeys(TYPES, "asked for")
    assert (status.waits[-1].until, status.waits[-1].said) == (None, "Training job waiting for capacity")
    account.aws.capacity(TYPES[2], available=True)
    account.aws.wait(job)
    assert backend.status(JobRef("sagemaker", account.aws.region, job)).tries[TYPES[2]] == "given"


def test_where_nothing_can_be_had_every_machine_and_the_ways_out_are_named(
    account: Account, backend: SageMakerBackend
) -> None:
    for name in TYPES:
        account.aws.capacity(name, available=False)
    status = ended(backend, account, LIST)
    assert status.state == JobState.FAILED
    assert status.tries == dict.fromkeys(TYPES, "no capacity")
    assert "Unable to provision" in str(status.reason)
    assert "resources.fallback" in str(status.reason)


def test_a_wait_that_has_become_too_long_is_no_cancellation(account: Account, backend: SageMakerBackend) -> None:
    account.aws.capacity(TYPES[0], available=False)
    account.aws.set(pending_scale=1 / 1800)
    limits = {"MaxRuntimeInSeconds": 300, "MaxPendingTimeInSeconds": 1800}
    one = {"InstanceType": TYPES[0], "InstanceCount": 1}
    job = account.start(hyper={"steps": 1}, ResourceConfig=one, StoppingCondition=limits)
    told = account.aws.wait(job)
    assert (told["TrainingJobStatus"], told["SecondaryStatus"]) == ("Stopped", "Stopped")
    told["StoppingCondition"]["MaxPendingTimeInSeconds"] = 1  # as this account counts
    status = status_of(told, "")
    assert status.state == JobState.FAILED
    assert "no capacity came in time" in str(status.reason)
    assert status.tries == {TYPES[0]: "no capacity"}
    early = {**told, "StoppingCondition": {"MaxPendingTimeInSeconds": 7200}}
    assert status_of(early, "").state == JobState.CANCELLED


def test_groups_of_machines_are_no_alternatives() -> None:
    groups = [{"InstanceType": name, "InstanceCount": 1} for name in TYPES]
    told = {"TrainingJobStatus": "Completed", "SecondaryStatus": "Completed"}
    assert status_of({**told, "ResourceConfig": {"InstanceGroups": groups}}, "").tries == {}


def test_an_end_in_a_word_that_is_not_known_is_an_end() -> None:
    status = status_of({"TrainingJobStatus": "Stopped", "SecondaryStatus": "MaxPatienceExceeded"}, "")
    assert (status.state, status.reason) == (JobState.FAILED, "SageMaker ended it: MaxPatienceExceeded")
