"""The Azure ML backend's look at jobs, on emulated ones of a line of shell each."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from backends.azureml import AzureMLBackend
from backends.azureml.azure import Azure, workspace_path
from backends.azureml.storage import Storage
from backends.base import JobRef, JobState, JobStatus
from launcher.errors import BackendError, UnreachableError
from tests.emulators.azureml.emulator import AzureMLEmulator

WAITS = "trap 'exit 143' TERM; echo up; while true; do sleep 0.05; done"
FAILS = "echo up; exit 3"
SPOT = {"queueSettings": {"jobTier": "Spot"}}
NUMBERS = itertools.count()


class Jobs:
    """Starts and watches."""

    def __init__(self, azure: AzureMLEmulator) -> None:
        self.azure = azure
        self.backend = AzureMLBackend(Path("unused"))
        self.scope = f"{azure.subscription}:{azure.group}:{azure.workspace}"
        self.path = workspace_path(self.scope)

    def start(self, command: str, **properties: Any) -> JobRef:
        name = f"job-{next(NUMBERS)}"
        environment = f"{self.path}/environments/any/versions/{name}"
        output = f"azureml://datastores/workspaceblobstore/paths/finelaunch/jobs/{name}/output/"
        body = {
            "jobType": "Command", "command": command, "environmentId": environment, "experimentName": "e",
            "outputs": {"output": {"jobOutputType": "uri_folder", "uri": output, "mode": "ReadWriteMount"}},
            **properties,
        }  # fmt: skip
        if "computeId" not in body:
            body["resources"] = {"instanceType": "Standard_NC8as_T4_v3", "instanceCount": 1}
        for path, given in ((environment, {"image": "any"}), (f"{self.path}/jobs/{name}", body)):
            Azure().call("PUT", path, "starting", version="2025-01-01-preview", body={"properties": given})
        return JobRef("azureml", self.scope, name)

    def leave(self, ref: JobRef, name: str, content: Any) -> None:
        store = Storage(Azure(), self.path, "workspaceblobstore")
        store.put(f"finelaunch/jobs/{ref.id}/output/{name}", json.dumps(content).encode())

    def end(self, ref: JobRef) -> JobStatus:
        until = time.monotonic() + 30
        while not (status := self.backend.status(ref)).state.terminal:
            assert time.monotonic() < until, status
            time.sleep(0.05)
        return status


@pytest.fixture
def jobs(signed_in: AzureMLEmulator) -> Jobs:
    return Jobs(signed_in)


@pytest.mark.parametrize("kind", ["fail", "signal", "lost"])
@pytest.mark.parametrize("where", ["serverless", "cluster"])
def test_a_spot_job_that_lost_its_machine_is_told_however_azure_ends_it(jobs: Jobs, kind: str, where: str) -> None:
    jobs.azure.set(computes={"cheap": {"vmSize": "Standard_NC8as_T4_v3", "vmPriority": "LowPriority"}})
    jobs.azure.interrupt(kind=kind, after_line="up")
    status = jobs.end(
        jobs.start(WAITS, **(SPOT if where == "serverless" else {"computeId": f"{jobs.path}/computes/cheap"}))
    )
    assert (status.state, status.preempted) == (JobState.FAILED, True)
    assert "spot capacity was taken" in (status.reason or "")


@pytest.mark.parametrize("kind", ["fail", "signal"])
@pytest.mark.parametrize("where", ["serverless", "cluster"])
def test_a_job_at_full_price_is_not_preempted(jobs: Jobs, kind: str, where: str) -> None:
    jobs.azure.set(computes={"own": {"vmSize": "Standard_NC8as_T4_v3"}})
    ref = jobs.start(WAITS, **({} if where == "serverless" else {"computeId": f"{jobs.path}/computes/own"}))
    jobs.azure.interrupt(ref.id, kind=kind, after_line="up")
    status = jobs.end(ref)
    assert (status.state, status.preempted) == (JobState.FAILED, False)


def test_a_job_that_ended_by_itself_or_was_cancelled_is_not_preempted(jobs: Jobs) -> None:
    over = jobs.start("sleep 0.3; exit 143", **SPOT)
    jobs.leave(over, "state.json", {"state": "stopped", "exit": 143, "over": "its hours"})
    final = jobs.start("sleep 0.3; exit 143", **SPOT)
    jobs.leave(final, "failure.json", {"message": "no such column", "retry": False})
    stopped = jobs.start(WAITS, **SPOT)
    jobs.azure.wait_for_line(stopped.id, "up")
    jobs.backend.cancel(stopped)
    assert [jobs.end(ref).preempted for ref in (over, final, stopped)] == [False] * 3
    assert jobs.backend.status(final).reason == "no such column"


def test_a_cancelled_job_whose_cluster_was_lost_meanwhile_stays_cancelled(jobs: Jobs) -> None:
    ref = jobs.start(WAITS, **SPOT)
    jobs.azure.wait_for_line(ref.id, "up")
    jobs.azure.deny("arm:CancelJob")  # the mark is left, and the cluster goes before Azure has heard of it
    with pytest.raises(BackendError, match="refuses"):
        jobs.backend.cancel(ref)
    jobs.azure.interrupt(ref.id, kind="lost")
    status = jobs.end(ref)
    assert (status.state, status.preempted) == (JobState.CANCELLED, False)


def test_a_reason_that_cannot_be_read_now_is_not_taken_for_none(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = jobs.start(FAILS)
    jobs.leave(ref, "failure.json", {"message": "no such column"})
    assert jobs.end(ref).reason == "no such column"
    monkeypatch.setattr("backends.azureml.storage.ATTEMPTS", 0)
    backend = AzureMLBackend(Path("unused"))
    jobs.azure.fault("unavailable", "GetBlob", times=1)
    with pytest.raises(UnreachableError):
        backend.status(ref)
    assert backend.status(ref).reason == "no such column"


def test_an_interruption_on_a_low_priority_cluster_is_counted(jobs: Jobs) -> None:
    jobs.azure.set(computes={"cheap": {"vmSize": "Standard_NC8as_T4_v3", "vmPriority": "LowPriority"}})
    events = "${{outputs.output}}/events.jsonl"
    command = f"echo '{{\"run\": \"'$$'\"}}' >>{events}; {WAITS.replace('up', 'up $(wc -l <' + events + ')')}"
    ref = jobs.start(command, computeId=f"{jobs.path}/computes/cheap")
    jobs.azure.interrupt(ref.id, after_line="up 1")
    jobs.azure.wait_for_line(ref.id, "up 2")
    assert jobs.backend.status(ref).interruptions == 1
    jobs.backend.cancel(ref)
    jobs.end(ref)
