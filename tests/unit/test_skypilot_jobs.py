"""A job in a store that two machines share, each with a SkyPilot of its own. SkyPilot's word is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.base import JobRef, JobState, Site
from backends.skypilot import SkyPilotBackend, states
from backends.skypilot.jobs import JOBS, scope_of
from backends.skypilot.seen import told
from backends.skypilot.sender import Sender
from launcher.errors import BackendError
from train_entry.failure import FAILURE

JOB = "job-1"


class SkyPilot:
    """What is asked of it, and what it says of every job."""

    def __init__(self, phase: str) -> None:
        self.phase, self.detail, self.asked = phase, "", list[str]()

    def ask(self, op: str, timeout_s: float = 0, **argument: Any) -> Any:
        self.asked.append(op)
        if op != "look":
            return {}
        return {"phase": self.phase, "detail": self.detail, "reason": f"it is {self.phase}", "recoveries": 0}


class Machine:
    """One user's backend, and the job as it is seen from there."""

    def __init__(self, folder: Path, name: str, phase: str) -> None:
        (folder / "store").mkdir(exist_ok=True)
        self.site = Site(backend="skypilot", facts={"store": str(folder / "store")})
        self.backend, self.skypilot = SkyPilotBackend(folder / name), SkyPilot(phase)
        self.backend._service = self.skypilot  # type: ignore[assignment]
        self.ref = JobRef("skypilot", scope_of(self.site, None), JOB)
        self.store = self.backend._store(self.ref.scope)

    def mark(self, *names: str) -> None:
        for name in names:
            self.store.put(told(JOB, name), b"")

    def send(self, *names: str) -> None:
        self.mark("staged", *names)
        self.backend._note_submitted(self.store, JOB)

    def has(self, name: str) -> bool:
        return self.store.get(told(JOB, name)) is not None


Machines = Callable[[str, str], Machine]


@pytest.fixture
def machine(tmp_path: Path) -> Machines:
    return lambda name, phase: Machine(tmp_path, name, phase)


@pytest.mark.parametrize(
    ("names", "state"),
    [((), JobState.STARTING), (("managed", "node-0.start.1000"), JobState.RUNNING)],
)
def test_a_machine_that_did_not_send_a_job_does_not_end_it(
    machine: Machines, names: tuple[str, ...], state: JobState
) -> None:
    ana, ben = machine("ana", "up"), machine("ben", "none")
    ana.send(*names)
    status = ben.backend.status(ben.ref)
    assert (status.state, status.detail) == (state, states.ELSEWHERE)
    assert not ana.has("final.json")
    assert "down" not in ben.skypilot.asked


@pytest.mark.parametrize("links", [True, False])
def test_a_sender_has_one_word_and_no_other_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuses(*_: object) -> None:
        raise PermissionError

    if not links:
        monkeypatch.setattr("os.link", refuses)
    word = Sender(tmp_path / "ana").id()
    assert len(word) == 32
    assert Sender(tmp_path / "ana").id() == word != Sender(tmp_path / "ben").id()
    assert len(list((tmp_path / "ana").iterdir())) == 1


def test_only_the_sender_takes_the_machines_down(machine: Machines) -> None:
    ana, ben = machine("ana", "up"), machine("ben", "none")
    ana.send("node-0.start.1000", "node-0.end.0.2000")
    assert ben.backend.status(ben.ref).state == JobState.SUCCEEDED
    assert (ana.has("final.json"), ana.has("down"), ben.skypilot.asked) == (True, False, [])
    assert ana.backend.status(ana.ref).state == JobState.SUCCEEDED
    assert (ana.has("down"), ana.skypilot.asked) == (True, ["down"])


def test_a_job_that_is_gone_where_it_was_sent_has_failed(machine: Machines) -> None:
    ana = machine("ana", "none")
    ana.send()
    assert ana.backend.status(ana.ref).state == JobState.FAILED
    assert ana.has("down")


def test_a_job_that_does_not_name_its_sender_is_everyones(machine: Machines) -> None:
    ben = machine("ben", "none")
    ben.mark("staged", "submitted")
    assert ben.backend.status(ben.ref).state == JobState.FAILED


def test_a_node_that_failed_as_its_peer_was_taken_does_not_end_a_job_that_starts_again(machine: Machines) -> None:
    ana = machine("ana", "running")
    ana.send("managed", "node-0.start.1000", "node-0.end.1.2000")
    assert "ended with 1" in (ana.backend.status(ana.ref).detail or "")
    ana.skypilot.phase = "recovering"
    assert not ana.has("down")
    ana.backend._asked.clear()
    status = ana.backend.status(ana.ref)
    assert (status.state, status.interruptions) == (JobState.STARTING, 1)
    ana.skypilot.phase, ana.skypilot.detail = "over", "FAILED"
    ana.backend._asked.clear()
    ana.store.put(f"finelaunch/jobs/{JOB}/output/{FAILURE}", b'{"message": "out of memory"}')
    status = ana.backend.status(ana.ref)
    assert (status.state, status.reason) == (JobState.FAILED, "out of memory")
    assert ana.has("down")


def test_what_another_node_says_after_the_end_of_the_first_is_shown(machine: Machines) -> None:
    ana = machine("ana", "up")
    ana.send("node-1.log.1000.000000", "node-0.start.1000", "node-0.end.0.2000")
    status = ana.backend.status(ana.ref)
    assert (status.state, status.detail) == (JobState.RUNNING, "ending")
    ana.store.put(told(JOB, "node-1.log.1000.000001"), b"the last\n")
    ana.mark("node-1.end.0.3000")
    assert ana.backend.status(ana.ref).state == JobState.SUCCEEDED
    assert [line.text for line in ana.backend.logs(ana.ref)] == ["the last"]


@pytest.mark.parametrize(("phase", "asked"), [("recovering", ["look", "down"]), ("running", ["look"])])
def test_a_cancel_while_no_node_listens_goes_to_skypilot(machine: Machines, phase: str, asked: list[str]) -> None:
    ana = machine("ana", phase)
    ana.send("managed", "node-0.start.1000")
    ana.backend.cancel(ana.ref)
    assert (ana.has("cancel"), ana.skypilot.asked) == (True, asked)


def test_a_sending_that_was_not_noted_to_its_end_is_repaired_by_find(
    machine: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    ana = machine("ana", "up")
    ana.mark("staged")
    put = ana.store.put
    noted: list[str] = []

    def fails_the_second_time(key: str, content: bytes) -> None:
        noted.append(key)
        if len(noted) == 2:
            raise BackendError("no space", "")
        put(key, content)

    monkeypatch.setattr(ana.store, "put", fails_the_second_time)
    with pytest.raises(BackendError):
        ana.backend._note_submitted(ana.store, JOB)
    assert ana.backend.find(ana.site, JOB) == ana.ref
    assert [key for key, _ in ana.store.keys(JOBS)] == [f"{JOBS}{JOB}"]
    assert list(ana.backend.discover(ana.site)) == [ana.ref]
