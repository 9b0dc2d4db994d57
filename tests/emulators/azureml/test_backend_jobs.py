"""The Azure ML backend's look at jobs, on emulated ones of a line of shell each."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.azureml import AzureMLBackend
from backends.azureml.azure import Azure, workspace_path
from backends.azureml.places import JOB_TAG
from backends.azureml.storage import Storage
from backends.base import JobRef, JobState, JobStatus, Plan, Site
from cost.estimate import estimate
from launcher.errors import BackendError, CredentialsError, QuotaError, UnreachableError
from tests.emulators.azureml.emulator import AzureMLEmulator
from tests.emulators.azureml.names import ACCOUNT, CLIENT, DEVELOPER, GROUP, SUBSCRIPTION, TENANT
from tests.unit.azureml_jobs import bundle, job

WAITS = "trap 'exit 143' TERM; echo up; while true; do sleep 0.05; done"
FAILS = "echo up; exit 3"
SIZE = "Standard_NC8as_T4_v3"
ARTIFACTS = "workspaceartifactstore"
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

    def site(self) -> Site:
        facts = {
            "subscription": self.azure.subscription, "resource_group": self.azure.group,
            "workspace": self.azure.workspace, "key_vault": self.azure.vault, "region": "eastus",
        }  # fmt: skip
        return Site(backend="azureml", facts=facts)

    def leave(self, ref: JobRef, name: str, content: Any) -> None:
        store = Storage(Azure(), self.path, "workspaceblobstore")
        store.put(f"finelaunch/jobs/{ref.id}/output/{name}", json.dumps(content).encode())

    def write_log(self, ref: JobRef, content: bytes, name: str = "std_log.txt") -> None:
        """The log as if its machine had written this."""
        store, key = Storage(Azure(), self.path, ARTIFACTS), f"ExperimentRun/dcid.{ref.id}/user_logs/{name}"
        store.remove(key)
        store.put(key, content)

    def end(self, ref: JobRef) -> JobStatus:
        until = time.monotonic() + 30
        while not (status := self.backend.status(ref)).state.terminal:
            assert time.monotonic() < until, status
            time.sleep(0.05)
        return status


def planned(jobs: Jobs, spot: bool = False, name: str = "triage-1", site: Site | None = None) -> Plan:
    spec = job(resources={"gpu": "T4", "spot": spot})
    offer = next(offer for offer in jobs.backend.offers(spec.resources) if offer.instance_type == SIZE)
    site = site or jobs.site()
    request = jobs.backend.render(spec, offer, bundle(), site, name, name)
    return Plan(
        job=spec, offer=offer, bundle=bundle(), site=site, token=name, lineage=name,
        request=request, estimate=estimate(offer, 24.0),
    )  # fmt: skip


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
    ref = jobs.start(WAITS.replace("'exit", "'sleep 2; exit"), **SPOT)
    jobs.azure.wait_for_line(ref.id, "up")
    jobs.backend.cancel(ref)
    jobs.azure.interrupt(ref.id, kind="lost")
    status = jobs.end(ref)
    assert jobs.azure.attempts(ref.id)[-1]["why"] == "cancel"
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


def test_a_last_line_without_its_end_is_held_until_no_more_can_come(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = jobs.start("printf 'whole\\nhalf'")
    jobs.end(ref)
    first = list(jobs.backend.logs(ref))
    assert [line.text for line in first] == ["whole"]
    jobs.write_log(ref, b"whole\nhalf is whole, too")  # flushed late
    monkeypatch.setattr("backends.azureml.jobs.SETTLED_S", 0)
    assert [line.text for line in jobs.backend.logs(ref, first[-1].cursor)] == ["half is whole, too"]


def test_eight_jobs_at_once_that_are_sent_twice_each_are_eight_jobs(jobs: Jobs) -> None:
    plans = [planned(jobs, name=f"many-{number}") for number in range(8)]
    for plan in plans:
        plan.request["job"]["properties"]["command"] = "cat ${{inputs.bundle}}/job.json"
    jobs.backend._put_environment(plans[0].request["environment"])
    bucket = Storage(Azure(), jobs.path, "workspaceblobstore")
    bucket.put(f"finelaunch/bundles/{plans[0].bundle.sha256}/job.json", b"up\n")
    with ThreadPoolExecutor(16) as pool:  # as many launchers
        refs = list(pool.map(lambda plan: AzureMLBackend(Path("unused")).submit(plan), [*plans, *plans]))
    assert sorted({ref.id for ref in refs}) == [plan.token for plan in plans]
    assert sum(name.startswith("many-") for name in jobs.azure.jobs()) == 8
    assert {jobs.end(ref).state for ref in refs} == {JobState.SUCCEEDED}
    for ref in set(refs):
        assert [line.text for line in jobs.backend.logs(ref)] == ["up"]


def test_a_log_that_another_machine_writes_anew_loses_and_repeats_no_line_however_long_it_is(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.azureml.logs.MOST", 500)  # several requests a look
    ref = jobs.start("seq 100 140 | sed 's/^/the first machine, line /'")
    jobs.end(ref)
    old = [f"the first machine, line {number}" for number in range(100, 141)]
    told = list(jobs.backend.logs(ref))
    assert [line.text for line in told] == old
    cursor = told[20].cursor
    for count in (1, 20, 21, 41, 60):  # shorter, as long as what was read, and longer
        new = [f"the other machine, line {number}" for number in range(100, 100 + count)]
        jobs.write_log(ref, "".join(f"{line}\n" for line in new).encode())
        assert [line.text for line in jobs.backend.logs(ref, cursor)] == new
    jobs.write_log(ref, "".join(f"{line}\n" for line in [*old, "and one more"]).encode())
    assert [line.text for line in jobs.backend.logs(ref, cursor)] == [*old[21:], "and one more"]


def test_a_removal_that_takes_too_long_is_told(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = jobs.start("true")
    jobs.end(ref)
    jobs.azure.set(removes=False)
    monkeypatch.setattr("backends.azureml.jobs.REMOVAL_S", 0)
    with pytest.raises(BackendError, match="still removes"):
        jobs.backend.release(ref)
    jobs.azure.set(removes=True)
    jobs.backend.release(ref)
    assert jobs.backend.find(jobs.site(), ref.id) is None


def test_a_workspace_without_a_run_history_and_a_deleted_secret_are_told(jobs: Jobs) -> None:
    ref = jobs.start("true")
    jobs.azure.set(discovery=False, deleted_secrets=["HF-TOKEN"])
    with pytest.raises(BackendError, match="where its run history is"):
        jobs.backend.status(ref)
    with pytest.raises(BackendError, match="recovered") as problem:
        jobs.backend.put_secret(jobs.site(), "HF_TOKEN", "x")
    assert "az keyvault secret recover --vault-name fakevault --name HF-TOKEN" in (problem.value.hint or "")


@pytest.mark.parametrize(
    ("fact", "value", "fix"),
    [
        ("subscription", "0" * 8 + "-0000-0000-0000-" + "0" * 12, "az account set"),
        ("resource_group", "elsewhere", "az group create --name elsewhere"),
        ("workspace", "elsewhere", "az ml workspace create --name elsewhere"),
    ],
)
def test_what_is_not_there_is_told_by_its_kind(jobs: Jobs, fact: str, value: str, fix: str) -> None:
    site = Site(backend="azureml", facts={**jobs.site().facts, fact: value})
    (problem,) = jobs.backend.check(site)
    assert fix in problem.fix


@pytest.mark.parametrize("spot", [False, True])
@pytest.mark.parametrize(
    ("quota", "used", "fatal"), [(8, 0, None), (1000, 996, False), (4, 0, True), (None, 0, False)]
)
def test_quota_that_is_in_use_is_waited_for_and_quota_that_is_too_small_is_not(
    jobs: Jobs, quota: int | None, used: int, fatal: bool | None, spot: bool
) -> None:
    plan = planned(jobs, spot)
    row = "low-priority" if spot else "standardNCASv3_T4Family"  # the first is on the list's second page
    jobs.azure.set(quotas={row: quota}, used={row: used})
    told = [p for p in jobs.backend.check(jobs.site(), plan) if p.kind == "quota"]
    assert [p.fatal for p in told] == ([] if fatal is None else [fatal])
    assert all("list-usage --location eastus" in p.fix for p in told)
    if (quota or 0) < 8:  # Azure ML's own answer, where it was not looked at before
        jobs.backend._put_environment(plan.request["environment"])
        with pytest.raises(QuotaError, match="exceed") as refused:
            jobs.backend.submit(plan)
        assert "ml.azure.com/quota" in (refused.value.hint or "")


def test_a_cluster_at_full_price_is_told_to_a_spot_job_with_the_command_that_makes_a_cheap_one(jobs: Jobs) -> None:
    jobs.azure.set(computes={"own": {"vmSize": SIZE}, "cheap": {"vmSize": SIZE, "vmPriority": "LowPriority"}})
    told = {}
    for name in ("own", "cheap"):
        site = Site(backend="azureml", facts={**jobs.site().facts, "spot_compute": name})
        told[name] = jobs.backend.check(site, planned(jobs, spot=True, site=site))
    (problem,) = told["own"]
    assert "billed in full" in problem.what
    assert "az ml compute create --name NAME" in problem.fix
    assert f"--tier low_priority --size {SIZE}" in problem.fix
    assert told["cheap"] == []


def test_a_name_that_another_job_has_is_not_taken_for_ones_own(jobs: Jobs) -> None:
    taken = jobs.start("true")
    with pytest.raises(BackendError, match="another job named") as refused:
        jobs.backend.submit(planned(jobs, name=taken.id))
    assert refused.value.hint
    jobs.end(taken)


def test_a_datastore_that_may_not_be_read_is_told_with_the_command_that_opens_it(jobs: Jobs) -> None:
    account = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Storage/storageAccounts/"
    jobs.azure.deny("blob:*")
    (problem,) = jobs.backend.check(jobs.site())
    assert f"--assignee {DEVELOPER} --scope {account}{ACCOUNT}" in problem.fix
    assert f"you (application {CLIENT}, by environment variables" in problem.what
    jobs.azure.set(blob_denial="AuthorizationFailure")
    (problem,) = jobs.backend.check(jobs.site())
    assert f"az storage account network-rule add --account-name {ACCOUNT}" in problem.fix


def test_in_another_region_the_jobs_of_all_its_workspaces_are_found(jobs: Jobs) -> None:
    ref = jobs.start("true", tags={JOB_TAG: "any"})
    abroad = Site(backend="azureml", facts={**jobs.site().facts, "workspace": "abroad", "region": "westus3"})
    assert ref in list(jobs.backend.discover(abroad, "eastus"))
    assert list(jobs.backend.discover(jobs.site(), "westus3")) == []
    assert ref in list(jobs.backend.discover(jobs.site(), "eastus"))
    jobs.end(ref)


def test_who_asks_and_where_is_told_in_a_line(jobs: Jobs) -> None:
    said = jobs.backend.signed_in(jobs.site())
    assert said.startswith(f"application {CLIENT}, by environment variables (AZURE_CLIENT_ID")
    assert said.endswith(f"tenant {TENANT}, subscription {SUBSCRIPTION}")
    jobs.azure.expire()
    with pytest.raises(CredentialsError, match="sign"):
        AzureMLBackend(Path("unused")).signed_in(jobs.site())


@pytest.mark.filterwarnings("ignore")  # azure-ai-ml's and marshmallow's own, hundreds
def test_azures_own_client_sees_the_job_that_was_sent(jobs: Jobs) -> None:
    pytest.importorskip("azure.ai.ml")
    from azure.ai.ml import MLClient
    from azure.identity import EnvironmentCredential

    plan, azure = planned(jobs), jobs.azure
    jobs.backend._put_environment(plan.request["environment"])
    ref = jobs.backend.submit(plan)
    ml = MLClient(EnvironmentCredential(), azure.subscription, azure.group, azure.workspace, show_progress=False)
    seen = ml.jobs.get(ref.id)
    assert (seen.name, seen.tags[JOB_TAG]) == (ref.id, ref.id)
    assert {"output", "checkpoints"} <= set(seen.outputs)
    named = [found.name for found in ml.jobs.list(tag=JOB_TAG)]
    assert ref.id in named
    assert {found.id for found in jobs.backend.discover(jobs.site())} == set(named)
