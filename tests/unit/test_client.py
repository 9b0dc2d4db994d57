"""A job's life in the record: followed, adopted, rebuilt, resumed. Real processes, no torch."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from backends.base import JobRef, JobState, JobStatus, LogLine
from backends.local import LocalBackend
from launcher.client import Client
from launcher.errors import LaunchError
from launcher.events import Event
from launcher.planning import Planned
from launcher.store import SUBMITTING, JobRecord
from tests.unit.local_jobs import folder_of, planned, sleeping


def record_of(plan: Planned, ref: JobRef | None, **changes: Any) -> JobRecord:
    base = JobRecord(
        id=plan.plan.token, name="demo", backend="local", state=JobState.STARTING, created=datetime.now(UTC),
        lineage=plan.plan.token, bundle_sha256=plan.plan.bundle.sha256, spec=plan.plan.job.model_dump(mode="json"),
        ref=str(ref) if ref else None,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def resumed(client: Client, job: str) -> JobRecord:
    return client.submit(client.plan_resume(job), lambda line: None)


def dead_submitter() -> str:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    created = psutil.Process(gone.pid).create_time()
    gone.wait()
    return json.dumps({"pid": gone.pid, "created": created})


def test_a_lost_record_is_rebuilt_from_the_job_folders(client: Client, tmp_path: Path) -> None:
    record = client.submit(planned(client, tmp_path / "project"), lambda line: None)
    list(client.follow(record.id))
    before = client.get(record.id)
    client._store.close()
    for file in client.home.glob("record.db*"):
        file.unlink()
    (again,) = Client(client.home).jobs()
    same = (
        "id",
        "name",
        "state",
        "reason",
        "ref",
        "lineage",
        "bundle_sha256",
        "spec",
        "started",
        "ended",
        "folder",
    )
    assert {n: getattr(again, n) for n in same} == {n: getattr(before, n) for n in same}
    assert Client(client.home).events(record.id) == client.events(record.id)


def test_a_new_job_does_not_hide_those_of_a_lost_record(client: Client, tmp_path: Path) -> None:
    first = client.submit(planned(client, tmp_path / "project"), lambda line: None)
    list(client.follow(first.id))
    client._store.close()
    for file in client.home.glob("record.db*"):
        file.unlink()
    anew = Client(client.home)
    second = anew.submit(planned(anew, tmp_path / "project"), lambda line: None)
    assert {job.id for job in anew.jobs()} == {first.id, second.id}


def test_a_damaged_job_folder_does_not_stop_the_rebuilding(client: Client, tmp_path: Path) -> None:
    record = client.submit(planned(client, tmp_path / "project"), lambda line: None)
    list(client.follow(record.id))
    damaged = client.home / "jobs" / "damaged-1"
    damaged.mkdir()
    (damaged / "record.json").write_text("{")
    (damaged / "process.json").write_text("{}")
    client._store.close()
    (client.home / "record.db").unlink()
    assert [job.id for job in Client(client.home).jobs()] == [record.id]


def test_a_job_whose_folder_is_gone_is_unknown_and_the_others_are_listed(client: Client, tmp_path: Path) -> None:
    backend, ref, plan = sleeping(client, tmp_path)
    client._store.add(record_of(plan, ref))
    client._store.add(record_of(plan, JobRef("local", "localhost", "gone-1"), id="gone-1"))
    states = {job.id: job.state for job in client.jobs()}
    assert states == {ref.id: "STARTING", "gone-1": "UNKNOWN"}
    backend.cancel(ref)


def test_a_launcher_that_died_while_submitting_has_its_running_job_adopted(client: Client, tmp_path: Path) -> None:
    _, ref, plan = sleeping(client, tmp_path)
    (folder_of(client, ref) / "process.json").unlink()
    client._store.add(record_of(plan, None, state=SUBMITTING, submitter=dead_submitter()))
    found = client.get(ref.id)
    assert (found.ref, found.state) == (str(ref), "STARTING")


def test_a_launcher_that_died_before_the_start_leaves_a_job_that_says_so(client: Client, tmp_path: Path) -> None:
    plan = planned(client, tmp_path / "project")
    LocalBackend(client.home).stage(plan.plan, lambda line: None)
    client._store.add(record_of(plan, None, state=SUBMITTING, submitter=dead_submitter()))
    found = client.get(plan.plan.token)
    assert found.state == "FAILED"
    assert "nothing runs" in (found.reason or "")


def test_a_job_that_another_launcher_submits_now_is_left_to_it(client: Client, tmp_path: Path) -> None:
    plan = planned(client, tmp_path / "project")
    me = psutil.Process()
    submitter = json.dumps({"pid": me.pid, "created": me.create_time()})
    client._store.add(record_of(plan, None, state=SUBMITTING, submitter=submitter))
    assert client.get(plan.plan.token).state == SUBMITTING


def test_an_interrupt_after_the_start_does_not_lose_the_job(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(client, tmp_path / "project")
    submit = LocalBackend.submit

    def interrupted(self: LocalBackend, plan: Any) -> JobRef:
        submit(self, plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalBackend, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.submit(plan, lambda line: None)
    found = client.get(plan.plan.token)
    assert found.ref == f"local://localhost/{plan.plan.token}"
    assert "not submitted" not in (found.reason or "")


def test_resumes_are_numbered_on_and_share_the_checkpoints(client: Client, tmp_path: Path) -> None:
    first = client.submit(planned(client, tmp_path / "project"), lambda line: None)
    list(client.follow(first.id))
    second = resumed(client, first.id)
    list(client.follow(second.id))
    third = resumed(client, second.id)
    list(client.follow(third.id))
    assert [second.id, third.id] == [f"{first.id}-r2", f"{first.id}-r3"]
    assert {second.lineage, third.lineage} == {first.id}
    assert (second.resumes, third.resumes) == (first.id, second.id)
    assert second.bundle_sha256 == third.bundle_sha256 == first.bundle_sha256


def test_a_job_that_runs_is_not_resumed(client: Client, tmp_path: Path) -> None:
    _, ref, plan = sleeping(client, tmp_path)
    client._store.add(record_of(plan, ref))
    with pytest.raises(LaunchError, match="needs no resume"):
        client.plan_resume(ref.id)


def test_the_beginning_of_an_id_is_enough_when_it_is_unique(client: Client, tmp_path: Path) -> None:
    one, other = (client.submit(planned(client, tmp_path / "project"), lambda line: None) for _ in range(2))
    assert client.get(one.id[:-1]).id == one.id or one.id[:-1] == other.id[:-1]
    assert client.get(str(other.ref)).id == other.id
    with pytest.raises(LaunchError, match="the beginning of 2 jobs"):
        client.get("demo-")
    with pytest.raises(LaunchError, match="no job 'nope'"):
        client.get("nope")


def test_a_job_that_cannot_train_fails_with_its_reason_and_times_in_order(client: Client, tmp_path: Path) -> None:
    record = client.submit(planned(client, tmp_path / "project"), lambda line: None)
    seen = list(client.follow(record.id))
    last = seen[-1]
    assert isinstance(last, JobStatus)
    assert last.state == JobState.FAILED
    assert "torch" in (last.reason or "")
    ended = client.get(record.id)
    assert ended.started is not None and ended.ended is not None
    assert record.created <= ended.started <= ended.ended <= datetime.now(UTC)
    assert [e.name for e in client.events(record.id)] == [e.name for e in seen if isinstance(e, Event)]
    assert client.events(record.id)[-1].name == "failure"


def test_following_is_not_disturbed_by_another_launcher_that_looks(client: Client, tmp_path: Path) -> None:
    backend, ref, plan = sleeping(client, tmp_path)
    log = folder_of(client, ref) / "log.txt"
    client._store.add(record_of(plan, ref))
    follower = client.follow(ref.id, from_start=False)
    lines = [f"line {n}" for n in range(3)]
    log.write_text("line 0\n")
    seen = [item.text for item in [next(follower)] if isinstance(item, LogLine)]
    for line in lines[1:]:
        with log.open("a") as file:
            file.write(f"{line}\n")
        Client(client.home).get(ref.id)
    backend.cancel(ref)
    seen += [item.text for item in follower if isinstance(item, LogLine)]
    assert seen == lines


def ended(client: Client, tmp_path: Path) -> JobRecord:
    """A job that is over; that it lost its machine is what the tests below take for granted."""
    record = client.submit(planned(client, tmp_path / "project"), lambda line: None)
    list(client.follow(record.id))
    return client.get(record.id)


def put_in_place_of(client: Client, lost: JobRecord, watched: bool) -> JobRecord | None:
    """What Client.follow does with a job that its vendor won't start again."""
    going_on = client._resuming.in_place_of(lost, watched)
    while True:
        try:
            next(going_on)
        except StopIteration as end:
            found: JobRecord | None = end.value
            return found


def test_a_lost_job_is_submitted_anew_once_whoever_follows_it(client: Client, tmp_path: Path) -> None:
    lost = ended(client, tmp_path)
    assert put_in_place_of(client, lost, watched=False) is None
    first, second = (put_in_place_of(client, lost, watched) for watched in (True, False))
    assert first is not None and second is not None
    assert (first.id, first.resumes, first.resubmits) == (f"{lost.id}-r2", lost.id, 1)
    assert second.id == client.latest(lost.id).id == first.id
    assert len(client.jobs()) == 2
    list(client.follow(first.id))
    by_hand = resumed(client, first.id)
    assert (by_hand.id, by_hand.resubmits) == (f"{lost.id}-r3", 0)
    list(client.follow(by_hand.id))


@pytest.mark.parametrize("looked", [False, True])
def test_a_follower_that_died_before_the_start_is_followed_by_one_that_starts_it(
    client: Client, tmp_path: Path, looked: bool
) -> None:
    """Also where somebody has looked at what it left, and found that nothing runs."""
    lost = ended(client, tmp_path)
    half = dataclasses.replace(
        lost, id=f"{lost.id}-r2", ref=None, state=SUBMITTING, submitter=dead_submitter(), resumes=lost.id,
        resubmits=1,
    )  # fmt: skip
    client._store.add(half)
    if looked:
        assert client.get(half.id).over
    found = put_in_place_of(client, lost, watched=False)
    assert found is not None and found.id == f"{lost.id}-r3"
    assert "nothing runs" in (client.get(half.id).reason or "")
    list(client.follow(found.id))


def test_a_job_that_cannot_be_submitted_anew_says_why_and_is_tried_once(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, tries = ended(client, tmp_path), []

    def refuse(self: LocalBackend, plan: Any) -> JobRef:
        tries.append(plan.token)
        raise LaunchError("no quota is left")

    monkeypatch.setattr(LocalBackend, "submit", refuse)
    assert put_in_place_of(client, lost, watched=True) is None
    assert tries == [f"{lost.id}-r2"]
    assert "not submitted again: no quota is left" in (client.get(lost.id).reason or "")
    # Whoever looks at it later spends nothing, though one attempt stands in the record.
    assert put_in_place_of(client, client.get(lost.id), watched=False) is None
    assert tries == [f"{lost.id}-r2"]


def test_a_job_that_is_cancelled_before_it_is_submitted_anew_is_not(client: Client, tmp_path: Path) -> None:
    lost = ended(client, tmp_path)
    assert client.cancel(lost.id).state == "FAILED"
    assert put_in_place_of(client, lost, watched=True) is None
    assert "not submitted again: launch cancel" in (client.get(lost.id).reason or "")
    assert [job.id for job in client.jobs()] == [lost.id]
    by_hand = resumed(client, lost.id)  # what the user asks for later is another matter
    assert by_hand.id == f"{lost.id}-r2"
    list(client.follow(by_hand.id))


def test_a_job_that_is_cancelled_while_it_is_submitted_anew_is_cancelled_then(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, submit, cancelled = ended(client, tmp_path), LocalBackend.submit, []
    cancel = LocalBackend.cancel

    def slow(self: LocalBackend, plan: Any) -> JobRef:
        assert Client(client.home).cancel(lost.id).id == lost.id  # from another terminal
        return submit(self, plan)

    def noted(self: LocalBackend, ref: JobRef) -> None:
        cancelled.append(ref.id)
        cancel(self, ref)

    monkeypatch.setattr(LocalBackend, "submit", slow)
    monkeypatch.setattr(LocalBackend, "cancel", noted)
    after = put_in_place_of(client, lost, watched=True)
    assert after is not None and cancelled == [after.id] == [f"{lost.id}-r2"]
    list(client.follow(after.id))
    # Nor is it gone on from when it loses its machine before it has stopped.
    assert put_in_place_of(client, client.get(after.id), watched=True) is None


@pytest.mark.parametrize(("spot", "owner"), [(True, "anna"), (False, "anna"), (True, "ben")])
def test_only_a_spot_job_of_ones_own_is_submitted_anew(
    spot: bool, owner: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another is asked to pay for their own; and that they have cancelled a job stands in their record."""
    monkeypatch.setenv("LAUNCH_OWNER", "anna")
    status, lost = LocalBackend.status, ended(client, tmp_path)
    resources = {**lost.spec["resources"], "spot": spot}
    first = dataclasses.replace(lost, id=f"{lost.id}x", spec={**lost.spec, "resources": resources})
    client._store.add(dataclasses.replace(first, lineage=first.id, state=JobState.RUNNING, owner=owner))

    def preempted(self: LocalBackend, ref: JobRef) -> JobStatus:
        return dataclasses.replace(status(self, ref), preempted=True)

    asked: list[str] = []

    def in_place_of(lost: JobRecord, watched: bool) -> Any:
        asked.append(lost.id)
        yield from ()

    monkeypatch.setattr(LocalBackend, "status", preempted)
    monkeypatch.setattr(client._resuming, "in_place_of", in_place_of)
    list(client.follow(first.id))
    assert asked == ([first.id] if spot and owner == "anna" else [])
