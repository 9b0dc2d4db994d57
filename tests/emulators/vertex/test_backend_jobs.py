"""The Vertex backend's jobs on emulated Vertex AI: lists that lag, lost answers, denials, reasons, removal."""

from __future__ import annotations

import copy
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backends.base import JobRef, JobState, Plan, Site
from backends.vertex import VertexBackend, jobs
from backends.vertex.places import JOB_LABEL
from launcher.errors import BackendError, QuotaError
from tests.emulators.vertex.conftest import IMAGE, Project
from tests.unit.rendering import job as job_file
from tests.unit.rendering import plan_of

LONG = "import time; print('here', flush=True); time.sleep(60)"


@pytest.fixture
def backend(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VertexBackend:
    for name, value in project.google.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jobs, "WAITS_S", (0.01,) * 4)
    monkeypatch.setattr(jobs, "LOOKS_S", (0.5,) * 8)
    monkeypatch.setattr(jobs, "REMOVAL_POLL_S", 0.05)
    return VertexBackend(tmp_path)


def site(project: Project) -> Site:
    facts = {"project": project.google.project, "region": project.google.region, "bucket": project.bucket}
    return Site(backend="vertex", facts=facts)


def plan(project: Project, code: str, token: str, **resources: Any) -> Plan:
    """Of one replica that runs the Python `code`."""
    facts = {**site(project).facts, "service_account": project.account, "image": IMAGE}
    made = plan_of(VertexBackend(Path("unused")), job_file(resources=resources), facts)
    request = copy.deepcopy(dict(made.request))
    body = request["customJob"]
    body |= {"displayName": token, "labels": {JOB_LABEL: token}}
    body["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["command"] = ["python3", "-c", code]
    output = f"gs://{project.bucket}/finelaunch/jobs/{token}/output"
    body["jobSpec"]["baseOutputDirectory"]["outputUriPrefix"] = output
    return dataclasses.replace(made, token=token, lineage=token, request=request)


def live(project: Project, token: str) -> list[str]:
    """Names of the token's jobs that nobody has stopped, oldest first."""
    project.google.set(list_delay_s=0)
    found = project.google.jobs().list_custom_jobs(
        request={"parent": project.google.parent, "filter": f'labels.{JOB_LABEL}="{token}"'}
    )
    return [j.name for j in found if j.state.name not in ("JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED")][::-1]


def creations(project: Project) -> int:
    return sum(call.operation == "CreateCustomJob" for call in project.google.calls)


def ended(backend: VertexBackend, project: Project, code: str, token: str) -> JobRef:
    ref = backend.submit(plan(project, code, token))
    project.google.wait(live(project, token)[0])
    return ref


def event(run: str, kind: str) -> str:
    return json.dumps({"run": run, "seq": 1, "time": "", "event": kind})


@pytest.mark.parametrize("lost", [1, 2])
def test_of_jobs_made_twice_while_the_list_lagged_the_oldest_runs_on(
    lost: int, project: Project, backend: VertexBackend
) -> None:
    project.google.set(list_delay_s=1.5)
    project.google.fault("lose", "CreateCustomJob", times=lost)
    ref = backend.submit(plan(project, LONG, f"lagging-{lost}"))
    assert creations(project) == lost + 1
    (left,) = live(project, ref.id)
    number = left.rpartition("/")[2]
    assert f"/{number}?" in (backend.status(ref).url or "")
    assert not VertexBackend(Path("unused")).status(ref).state.terminal, "another launcher sees the one that runs"
    backend.cancel(ref)


def test_eight_jobs_sent_at_once_to_a_broken_service_are_eight_jobs_and_wait_for_quota(
    project: Project, backend: VertexBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "LOOKS_S", (0.1,))
    before = set(project.google.job_names())
    project.google.set(quotas={"custom_model_training_nvidia_a100_gpus": 2})
    for kind in ("lose", "unavailable", "drop", "error"):
        project.google.fault(kind, "CreateCustomJob")
    tokens = [f"at-once-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as launchers:
        plans = [plan(project, "import time; time.sleep(0.3)", token) for token in tokens]
        refs = list(launchers.map(lambda one: VertexBackend(Path("unused")).submit(one), plans))
    assert [ref.id for ref in refs] == tokens
    assert set(project.google.job_names()) - before == set(tokens)
    for token in tokens:
        (name,) = live(project, token)
        assert project.google.wait(name).state.name == "JOB_STATE_SUCCEEDED"


def test_a_job_whose_answer_was_lost_is_found_where_the_list_shows_it(
    project: Project, backend: VertexBackend
) -> None:
    project.google.fault("lose", "CreateCustomJob")
    ref = backend.submit(plan(project, LONG, "lost"))
    assert creations(project) == 1
    assert len(live(project, ref.id)) == 1
    backend.cancel(ref)


def test_an_interrupted_submits_job_is_found_when_the_list_shows_it_late(
    project: Project, backend: VertexBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.google.set(list_delay_s=1.5)
    ref = backend.submit(plan(project, LONG, "interrupted"))
    late = VertexBackend(Path("unused"))
    assert late.find(site(project), "interrupted") == ref
    monkeypatch.setattr(jobs, "LOOKS_S", (0.01,))
    assert late.find(site(project), "never-made") is None
    backend.cancel(ref)


def test_a_job_that_was_refused_is_not_waited_for(project: Project, backend: VertexBackend) -> None:
    project.google.set(quotas={"custom_model_training_nvidia_a100_gpus": 0})
    with pytest.raises(QuotaError):
        backend.submit(plan(project, LONG, "refused"))
    before = [call.operation for call in project.google.calls].count("ListCustomJobs")
    assert backend.find(site(project), "refused") is None
    assert [call.operation for call in project.google.calls].count("ListCustomJobs") == before + 1


def test_cancel_stops_every_job_of_the_token_and_may_be_repeated(project: Project, backend: VertexBackend) -> None:
    wanted = plan(project, LONG, "twice")
    ref = backend.submit(wanted)
    second = project.google.jobs().create_custom_job(
        parent=project.google.parent, custom_job=jobs.parsed(wanted.request["customJob"])
    )
    both = live(project, ref.id)
    assert len(both) == 2 and second.name in both
    backend.cancel(ref)
    assert live(project, ref.id) == []
    backend.cancel(ref)
    assert [found.id for found in backend.discover(site(project))].count("twice") == 1
    for name in both:
        project.google.wait(name, "CANCELLED")
    backend.release(ref)
    assert "twice" not in project.google.job_names()


def test_an_operation_that_is_not_done_or_fails_is_told(
    project: Project, backend: VertexBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.google.set(operation_error="the job is held")
    with pytest.raises(BackendError, match="the job is held"):
        backend.release(ended(backend, project, "pass", "held"))
    project.google.set(operation_error=None, operation_s=60)
    monkeypatch.setattr(jobs, "REMOVED_S", 0.2)
    with pytest.raises(BackendError, match="has not done it"):
        backend.release(ended(backend, project, "pass", "slow"))


def test_a_job_that_left_no_word_is_told_with_the_last_errors_of_its_log(
    project: Project, backend: VertexBackend
) -> None:
    code = "print('step 1', flush=True)\nraise RuntimeError('no driver')"
    ref = ended(backend, project, code, "wordless")
    reason = backend.status(ref).reason or ""
    assert "non-zero status of 1" in reason and "RuntimeError: no driver" in reason
    assert "step 1" not in reason
    assert reason.count("non-zero status") == 1, "Vertex says it in the job and in the log"
    assert "\n" not in reason and "https://" not in reason


def test_a_line_that_is_cut_on_its_way_is_one_line(project: Project, backend: VertexBackend) -> None:
    ref = ended(
        backend, project, "print('a'); print('x' * 40_000 + 'end'); print('b' * 16_383); print('c')", "cut"
    )
    assert len(project.google.log(ref.id)) > 5, "the emulator cuts it"
    found = [line for line in backend.logs(ref) if line.source == "workerpool0-0"]
    assert [(len(line.text), line.text[-3:]) for line in found] == [
        (1, "a"),
        (40_003, "end"),
        (16_383, "bbb"),
        (1, "c"),
    ]
    for index, line in enumerate(found):
        rest = [one.text for one in backend.logs(ref, line.cursor) if one.source == "workerpool0-0"]
        assert rest == [one.text for one in found[index + 1 :]]


def test_a_job_in_another_region_is_followed_found_and_removed_there(
    project: Project, backend: VertexBackend
) -> None:
    wanted = plan(project, LONG, "far-away", region="europe-west4")
    ref = backend.submit(wanted)
    assert ref.scope == f"europe-west4.{project.google.project}"
    project.google.wait_for_line(ref.id, "here")
    other = VertexBackend(Path("unused"))
    assert ref not in list(other.discover(site(project)))
    assert list(other.discover(site(project), "europe-west4")) == [ref]
    assert other.find(site(project), ref.id, "europe-west4") == ref
    assert "/locations/europe-west4/" in (other.status(ref).url or "")
    assert "here" in [line.text for line in other.logs(ref)]
    other.cancel(ref)
    project.google.wait(project.google.named(ref.id), "CANCELLED")
    other.release(ref)
    assert list(backend.discover(site(project), "europe-west4")) == []


def test_a_job_that_waited_in_vain_for_machines_says_so(project: Project, backend: VertexBackend) -> None:
    wanted = plan(project, LONG, "in-vain", max_wait_hours=1 / 3600)
    project.google.set(stockout=["a2-highgpu-1g"])
    ref = backend.submit(wanted)
    project.google.wait(project.google.named(ref.id))
    status = backend.status(ref)
    assert (status.state, status.started) == (JobState.FAILED, None)
    assert status.reason and status.reason.startswith("Resources are insufficient in region: us-central1")
    assert "resources.max_wait_hours" in status.reason


def test_a_job_is_seen_though_its_bucket_may_not_be(project: Project, backend: VertexBackend) -> None:
    ref = ended(backend, project, "pass", "hidden")
    events = project.google.storage().bucket(project.bucket).blob("finelaunch/jobs/hidden/output/events.jsonl")
    project.google.deny("storage.*")
    assert backend.status(ref).state is JobState.SUCCEEDED
    project.google.clear()
    events.upload_from_string("\n".join(event(run, "start") for run in "ab"))
    assert backend.status(ref).interruptions == 1
    project.google.deny("storage.*")
    assert backend.status(ref).interruptions == 1


def test_a_start_that_gives_up_at_once_is_no_interruption(project: Project, backend: VertexBackend) -> None:
    ref = ended(backend, project, "raise SystemExit(1)", "gave-up")
    events = project.google.storage().bucket(project.bucket).blob("finelaunch/jobs/gave-up/output/events.jsonl")
    kinds = [("a", "start"), ("a", "failure"), ("b", "failure"), ("c", "failure")]
    events.upload_from_string("\n".join(event(*kind) for kind in kinds))
    assert backend.status(ref).interruptions == 0
