"""What a job's marks in the store and SkyPilot's word say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.base import JobRef, JobState
from backends.skypilot import SkyPilotBackend
from backends.skypilot.seen import Seen, parse
from backends.skypilot.states import QUIET_S, is_to_be_asked, status_of, told
from launcher.errors import JobNotFoundError


def seen(*lines: str, managed: bool = False) -> Seen:
    plan = 'json plan {"managed": true}' if managed else 'json plan {"managed": false}'
    return parse(["now 1000", "has record.json", "has submitted", plan, *lines])


def said(phase: str, recoveries: int = 0) -> dict[str, Any]:
    return {"phase": phase, "detail": "", "reason": f"SkyPilot says {phase}", "recoveries": recoveries}


def test_a_folder_is_read_as_its_nodes_left_it() -> None:
    found = seen("file 10 900 logs/node-0.log", "file 5 990 logs/node-1.log", "mark start 800", "mark end 143 850",
                 "mark start 870")  # fmt: skip
    assert found.logs == {"node-0.log": 10, "node-1.log": 5}
    assert (found.starts, found.end, found.quiet_s) == ((800, 870), None, 10)


@pytest.mark.parametrize(
    ("lines", "managed", "state"),
    [
        (("mark start 1", "mark end 0 2"), False, JobState.SUCCEEDED),
        (("mark start 1", "mark end 1 2"), False, JobState.FAILED),
        (("mark start 1", "mark end 143 2"), False, JobState.FAILED),
        (("mark start 1", "mark end 143 2"), True, None),  # its machine may have been taken
        (("mark start 1", "mark end 143 2", "has cancel"), True, JobState.CANCELLED),
        (("mark start 1", "mark end 0 2", "has cancel"), True, JobState.SUCCEEDED),
        (("mark setup 1 2",), False, JobState.FAILED),
        (("mark start 1",), False, None),
    ],
)
def test_how_it_ended(lines: tuple[str, ...], managed: bool, state: JobState | None) -> None:
    assert told(seen(*lines, managed=managed)) == state


def test_a_taken_machine_is_an_interruption_counted_once() -> None:
    first = seen("mark start 900", managed=True)
    again = seen("mark start 900", "mark end 143 950", "mark start 990", managed=True)
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
    lost = status_of(seen("mark start 900"), said("none"))
    assert (lost.state, lost.reason) == (JobState.FAILED, "SkyPilot says none")
    assert status_of(seen("has cancel"), said("none")).state == JobState.CANCELLED
    refused = status_of(seen(), said("failed"))
    assert (refused.state, refused.started) == (JobState.FAILED, None)


def test_skypilot_is_left_alone_while_the_job_speaks() -> None:
    assert not is_to_be_asked(seen("mark start 900", "file 10 990 logs/node-0.log"))
    assert is_to_be_asked(seen("mark start 900", f"file 10 {1000 - QUIET_S} logs/node-0.log"))
    assert is_to_be_asked(seen("file 10 990 logs/node-0.log"))
    assert is_to_be_asked(seen("mark start 900", "file 10 990 logs/node-0.log", managed=True))


@pytest.mark.parametrize("scope", ["localhost", "-oProxyCommand=true:%2Fsrv", "a%20b:%2Fsrv"])
def test_a_reference_that_is_none_of_ours_reaches_no_shell(scope: str, tmp_path: Path) -> None:
    with pytest.raises(JobNotFoundError):
        SkyPilotBackend(tmp_path).status(JobRef("skypilot", scope, "job-1"))
