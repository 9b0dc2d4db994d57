"""What a job's marks in the store and SkyPilot's word say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.base import JobRef, JobState
from backends.skypilot import SkyPilotBackend
from backends.skypilot.seen import PEERS_S, Seen
from backends.skypilot.seen import seen as seen_in
from backends.skypilot.states import QUIET_S, is_to_be_asked, status_of, told
from backends.skypilot.stores import Kept
from launcher.errors import JobNotFoundError


def seen(*names: str, managed: bool = False, quiet_s: float = 10) -> Seen:
    """Of a job that was submitted, with these files of its nodes, the newest `quiet_s` old."""
    every = ("staged", "submitted", *(["managed"] if managed else []), *names)
    return seen_in(Kept(key=f"finelaunch/jobs/x/told/{name}", size=5, age_s=quiet_s) for name in every)


def said(phase: str, recoveries: int = 0) -> dict[str, Any]:
    return {"phase": phase, "detail": "", "reason": f"SkyPilot says {phase}", "recoveries": recoveries}


def test_a_folder_is_read_as_its_nodes_left_it() -> None:
    found = seen(
        "node-0.log.800000.000001", "node-1.log.800000.000000", "node-0.start.870000", "node-0.end.143.850500",
        "node-0.start.800000", "node-1.start.900000", "node-0.log.800000.000000", "record of something else",
    )  # fmt: skip
    assert sorted((part.node, part.began, part.number) for part in found.logs) == [
        ("node-0", 800000, 0), ("node-0", 800000, 1), ("node-1", 800000, 0)
    ]  # fmt: skip
    assert (found.starts, found.end, found.quiet_s) == ((800, 870), None, 10)
    assert seen("node-0.start.800000", "node-0.end.143.850500").end == ("end", 143, 850.5)


@pytest.mark.parametrize(
    ("names", "managed", "state"),
    [
        (("node-0.start.1000", "node-0.end.0.2000"), False, JobState.SUCCEEDED),
        (("node-0.start.1000", "node-0.end.1.2000"), False, JobState.FAILED),
        (("node-0.start.1000", "node-0.end.143.2000"), False, JobState.FAILED),
        (("node-0.start.1000", "node-0.end.143.2000"), True, None),  # its machine may have been taken
        (("node-0.start.1000", "node-0.end.1.2000"), True, None),  # or its peer's
        (("node-0.setup.1.2000",), True, None),
        (("node-0.start.1000", "node-0.end.143.2000", "cancel"), True, JobState.CANCELLED),
        (("node-0.start.1000", "node-0.end.0.2000", "cancel"), True, JobState.SUCCEEDED),
        (("node-0.setup.1.2000",), False, JobState.FAILED),
        (("node-0.start.1000",), False, None),
        (("node-0.start.1000", "node-1.end.1.2000"), False, None),  # the first node speaks for all
    ],
)
def test_how_it_ended(names: tuple[str, ...], managed: bool, state: JobState | None) -> None:
    assert told(seen(*names, managed=managed)) == state


@pytest.mark.parametrize(
    ("phase", "detail", "state"),
    [
        ("over", "FAILED", JobState.FAILED),
        ("none", "", JobState.FAILED),
        ("over", "FAILED_NO_RESOURCE", None),  # no other machine was found: SkyPilot has the reason
        ("over", "SUCCEEDED", None),  # a later start, whose marks are missing
    ],
)
def test_the_failure_of_a_managed_job_is_its_own_where_skypilot_says_so(
    phase: str, detail: str, state: JobState | None
) -> None:
    failed = seen("node-0.start.1000", "node-0.end.1.2000", managed=True)
    assert told(failed, {**said(phase), "detail": detail}) == state


def test_what_succeeded_by_skypilots_word_has_succeeded() -> None:
    over = {**said("over"), "detail": "SUCCEEDED"}
    for unmarked in (seen("node-0.start.900000"), seen("node-0.start.900000", "cancel", managed=True)):
        status = status_of(unmarked, over)
        assert (status.state, status.reason) == (JobState.SUCCEEDED, None)


def test_a_set_up_that_fails_on_any_node_fails_the_job_and_that_node_says_why() -> None:
    found = seen("node-0.log.800000.000000", "node-1.setup.2.900000")
    assert told(found) == JobState.FAILED
    assert found.spokesman == "node-1"


def test_the_end_waits_a_moment_for_the_other_nodes() -> None:
    spoken = ("node-0.log.800000.000000", "node-1.log.800000.000000", "node-0.start.810000", "node-0.end.0.900000")
    assert seen(*spoken).ending
    assert not seen(*spoken, "node-1.end.0.900500").ending
    assert not seen(*spoken, quiet_s=PEERS_S).ending
    again = ("node-1.log.700000.000000", "node-1.end.143.750000")  # of a start before this one
    assert seen(*spoken, *again).ending
    assert not seen(*spoken, *again, "node-1.end.0.900500").ending
    assert not seen("node-0.log.800000.000000", "node-0.start.810000", "node-0.end.1.900000").ending


def test_a_taken_machine_is_an_interruption_counted_once() -> None:
    first = seen("node-0.start.900000", managed=True)
    again = seen("node-0.start.900000", "node-0.end.143.950000", "node-0.start.990000", managed=True)
    for now, phase, recoveries, expected in (
        (first, "running", 0, (JobState.RUNNING, 0)),
        (first, "recovering", 0, (JobState.STARTING, 1)),
        (again, "recovering", 0, (JobState.RUNNING, 1)),  # SkyPilot's word comes later than the job's
        (again, "running", 1, (JobState.RUNNING, 1)),
        (again, "recovering", 1, (JobState.STARTING, 2)),
    ):
        status = status_of(now, said(phase, recoveries))
        assert (status.state, status.interruptions) == expected


def test_a_job_without_machines_has_failed_or_was_cancelled() -> None:
    lost = status_of(seen("node-0.start.900000"), said("none"))
    assert (lost.state, lost.reason) == (JobState.FAILED, "SkyPilot says none")
    assert status_of(seen("cancel"), said("none")).state == JobState.CANCELLED
    refused = status_of(seen(), said("failed"))
    assert (refused.state, refused.started) == (JobState.FAILED, None)


def test_skypilot_is_left_alone_while_the_job_speaks() -> None:
    assert not is_to_be_asked(seen("node-0.start.900000"))
    assert is_to_be_asked(seen("node-0.start.900000", quiet_s=QUIET_S))
    assert is_to_be_asked(seen("node-0.log.800000.000000"))
    assert is_to_be_asked(seen("node-0.start.900000", managed=True))


@pytest.mark.parametrize("scope", ["localhost", "-oProxyCommand=true:%2Fsrv", "a%20b:%2Fsrv", "s3:a%2Fb", "az:b"])
def test_a_reference_that_is_none_of_ours_reaches_no_shell(scope: str, tmp_path: Path) -> None:
    with pytest.raises(JobNotFoundError):
        SkyPilotBackend(tmp_path).status(JobRef("skypilot", scope, "job-1"))
