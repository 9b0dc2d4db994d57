"""The hours of a job: all of its starts count, and no other job's."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from train_entry.failure import JobError
from train_entry.hours import RECORD, Hours


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoints of job a-1."""
    (tmp_path / "input").mkdir()
    (tmp_path / "input/job.json").write_text("{}")
    monkeypatch.setenv("LAUNCH_JOB_ID", "a-1")
    monkeypatch.setenv("LAUNCH_INPUT_DIR", str(tmp_path / "input"))
    return tmp_path / "checkpoints"


def ran(folder: Path, hours: float) -> None:
    """A start of the job that ran for so long, which is not waited for, and then lost its machine."""
    Hours(folder, time.time() - hours * 3600).note()


def left(folder: Path, hours: float | None = 24, **env: str) -> float | None:
    """Hours until a start of now stops itself."""
    end = Hours(folder, time.time()).deadline(hours, env)
    return None if end is None else (end - time.time()) / 3600


def test_a_job_that_lost_its_machine_has_the_hours_left_that_its_vendor_leaves_it(folder: Path) -> None:
    assert left(folder) == pytest.approx(24, abs=0.01)
    ran(folder, 15)
    assert left(folder) == pytest.approx(9, abs=0.01)
    ran(folder, 5)
    assert left(folder) == pytest.approx(4, abs=0.01)
    assert left(folder, None, LAUNCH_MAX_HOURS="30") == pytest.approx(10, abs=0.01)
    assert left(folder, 19) == pytest.approx(-1, abs=0.01)


def test_its_resume_begins_with_all_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(folder, 20)
    monkeypatch.setenv("LAUNCH_JOB_ID", "a-1-r2")
    assert left(folder) == pytest.approx(24, abs=0.01)


def test_a_job_without_an_id_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH_JOB_ID")
    ran(folder, 20)
    assert not folder.exists()
    assert left(folder) == pytest.approx(24, abs=0.01)


def test_the_earlier_of_two_limits_holds(folder: Path) -> None:
    assert left(folder, None) is None
    assert left(folder, 24, LAUNCH_DEADLINE=str(time.time() + 3600)) == pytest.approx(1, abs=0.01)
    assert left(folder, 1, LAUNCH_DEADLINE=str(time.time() + 7200)) == pytest.approx(1, abs=0.01)
    with pytest.raises(JobError, match="LAUNCH_MAX_HOURS is 'long'"):
        left(folder, None, LAUNCH_MAX_HOURS="long")


@pytest.mark.parametrize("torn", ["", "{", "[]", "{}", json.dumps({"job": "a-1", "used_s": "much"})])
def test_a_torn_record_is_none(torn: str, folder: Path) -> None:
    folder.mkdir()
    (folder / RECORD).write_text(torn)
    assert left(folder) == pytest.approx(24, abs=0.01)
