"""Restarts, preemption, quota, time limits and secrets of jobs that really run."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import aiplatform_v1 as v1

from tests.emulators.vertex.conftest import Project

COUNT = """
import os, signal, sys, time
place = os.environ["AIP_CHECKPOINT_DIR"].replace("gs://", "/gcs/", 1)
os.makedirs(place, exist_ok=True)
have = len(os.listdir(place))
print("goes on from", have, flush=True)
signal.signal(15, lambda *a: sys.exit(143))
for step in range(have, 6):
    time.sleep(0.1)
    open(f"{place}{step}", "w").write("x")
    print("step", step, flush=True)
"""


def test_a_preempted_job_goes_back_to_pending_and_finds_its_checkpoints(project: Project) -> None:
    project.google.interrupt(after_line="step 2")
    name = project.start(COUNT, name="preempted", strategy="SPOT")
    done = project.google.wait(name)
    assert done.state == v1.JobState.JOB_STATE_SUCCEEDED
    assert [attempt["why"] for attempt in project.google.attempts(name)] == ["spot", "exit"]
    said = [line for line in project.google.log(name) if line.startswith("goes on")]
    assert said[0] == "goes on from 0" and int(said[1].split()[-1]) >= 3


def test_a_job_on_demand_is_not_preempted(project: Project) -> None:
    project.google.interrupt(after_line="step 0")
    name = project.start(COUNT, name="on-demand")
    assert project.google.wait(name).state == v1.JobState.JOB_STATE_SUCCEEDED
    assert len(project.google.attempts(name)) == 1


def test_an_error_is_tried_again_in_place_then_as_a_whole_and_told(project: Project) -> None:
    name = project.start("import sys; sys.exit(3)")
    done = project.google.wait(name)
    assert done.state == v1.JobState.JOB_STATE_FAILED
    assert "workerpool0-0 exited with a non-zero status of 3" in done.error.message
    assert [attempt["codes"] for attempt in project.google.attempts(name)] == [[3]] * 4


@pytest.mark.parametrize("together", [True, False])
def test_a_replica_that_fails_starts_again_alone_unless_the_job_says_all(together: bool, project: Project) -> None:
    code = """
import json, os, sys, time
task = json.loads(os.environ["CLUSTER_SPEC"])["task"]["type"]
place = os.environ["AIP_CHECKPOINT_DIR"].replace("gs://", "/gcs/", 1)
os.makedirs(place, exist_ok=True)
print("start of", task, flush=True)
first = task == "workerpool1" and not os.path.exists(place + "failed")
if first:
    time.sleep(1)
    open(place + "failed", "w").write("x")
    sys.exit(3)
if task == "workerpool1":
    open(place + "done", "w").write("x")
while not os.path.exists(place + "done"):
    time.sleep(0.05)
"""
    own = f"together-{together}".lower()
    name = project.start(code, replicas=2, name=own, restart_job_on_worker_restart=together)
    assert project.google.wait(name).state == v1.JobState.JOB_STATE_SUCCEEDED
    said = [line for line in project.google.log(name) if line.startswith("start of")]
    assert said.count("start of workerpool1") == 2
    assert said.count("start of workerpool0") == (2 if together else 1)


def test_retries_can_be_turned_off(project: Project) -> None:
    name = project.start("import sys; sys.exit(3)", disable_retries=True)
    project.google.wait(name)
    assert len(project.google.attempts(name)) == 1


def test_a_job_waits_for_quota_that_another_holds(project: Project) -> None:
    project.google.set(quotas={"custom_model_training_nvidia_l4_gpus": 1})
    first = project.start("import time; print('here', flush=True); time.sleep(60)", name="first")
    project.google.wait_for_line(first, "here")
    second = project.start("pass", name="second")
    project.google.wait(second, "QUEUED")
    project.google.jobs().cancel_custom_job(name=first)
    assert project.google.wait(second).state == v1.JobState.JOB_STATE_SUCCEEDED


def test_where_there_are_no_machines_a_flex_start_job_waits_and_the_others_fail(project: Project) -> None:
    project.google.set(stockout=["g2-standard-12"])
    failed = project.google.wait(project.start("pass", name="on-demand-without"))
    assert failed.state == v1.JobState.JOB_STATE_FAILED
    assert "Resources are insufficient in region: us-central1" in failed.error.message
    short, long = (
        project.start("pass", name=f"waits-{s}", strategy="FLEX_START", max_wait_duration={"seconds": s})
        for s in (1, 0)
    )
    late = project.google.wait(short)
    assert late.state == v1.JobState.JOB_STATE_FAILED and not late.start_time
    project.google.wait(long, "PENDING")
    project.google.set(stockout=[])
    assert project.google.wait(long).state == v1.JobState.JOB_STATE_SUCCEEDED


def test_a_job_ends_at_its_timeout(project: Project) -> None:
    name = project.start("import time; time.sleep(60)", timeout={"seconds": 1})
    done = project.google.wait(name)
    assert (done.state, done.error.code) == (v1.JobState.JOB_STATE_FAILED, 4)


def test_a_secret_is_read_by_the_jobs_service_account_alone(project: Project) -> None:
    google, session = project.google, AuthorizedSession(AnonymousCredentials())
    home = f"{google.endpoint}/v1/projects/{google.project}/secrets"
    made = {"replication": {"automatic": {}}}
    assert session.post(f"{home}?secretId=TOKEN", json=made).ok
    value = {"payload": {"data": base64.b64encode(b"hunter2").decode()}}
    assert session.post(f"{home}/TOKEN:addVersion", json=value).ok
    code = """
import base64, json, os, urllib.request
def ask(url, **headers):
    return json.load(urllib.request.urlopen(urllib.request.Request(url, headers=headers)))
host, store = os.environ["GCE_METADATA_HOST"], os.environ["CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER"]
token = ask(f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token",
            **{"Metadata-Flavor": "Google"})["access_token"]
url = store + "v1/projects/demo-project/secrets/TOKEN/versions/latest:access"
print(base64.b64decode(ask(url, Authorization=f"Bearer {token}")["payload"]["data"]).decode()[::-1])
try:
    ask(url)
except urllib.error.HTTPError as exc:
    print("without a token:", exc.code)
"""
    name = project.start(code)
    google.wait(name)
    assert {"2retnuh", "without a token: 401"} <= set(google.log(name))


@pytest.mark.parametrize("kind", ["throttle", "error", "unavailable"])
def test_a_fault_meets_the_calls_that_it_is_for(kind: str, project: Project) -> None:
    project.google.fault(kind, "ListCustomJobs")
    session: Any = AuthorizedSession(AnonymousCredentials(), refresh_status_codes=())
    url = f"{project.google.endpoint}/v1/{project.google.parent}/customJobs"
    statuses = [session.request("GET", url, max_allowed_time=20).status_code for _ in range(2)]
    assert statuses[0] in (429, 500, 503) or statuses == [200, 200]  # the session itself tries again
    assert statuses[1] == 200
    told = [call.status for call in project.google.calls if call.operation == "ListCustomJobs"]
    assert told[0] in (429, 500, 503)


def test_an_entry_can_be_listed_only_after_a_while(project: Project) -> None:
    project.google.set(log_delay_s=1.0)
    name = project.start("print('late', flush=True)")
    project.google.wait(name)
    number = name.rpartition("/")[2]
    wanted = f'resource.type="ml_job" resource.labels.job_id="{number}" timestamp>="2026-01-01T00:00:00Z"'
    url, session = f"{project.google.endpoint}/v2/entries:list", AuthorizedSession(AnonymousCredentials())

    def listed() -> list[str]:
        found = session.post(url, json={"filter": wanted, "orderBy": "timestamp asc", "pageSize": 100}).json()
        return [entry.get("jsonPayload", {}).get("message", "").strip() for entry in found["entries"]]

    until = time.monotonic() + 20
    assert "late" in project.google.log(name)
    while "late" not in listed():
        assert time.monotonic() < until
        time.sleep(0.1)
