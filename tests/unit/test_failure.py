"""Which failures the next start of the same job may not meet again."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from train_entry.failure import (
    JobError,
    classify,
    failed_before,
    final_failure,
    may_be_mended,
    no_further,
    write_failure,
)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class Response:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class HubError(OSError):
    """As the hub's library raises it: a kind of OSError with the answer in it."""

    def __init__(self, status_code: int) -> None:
        super().__init__("hub")
        self.response = Response(status_code)


def caused(error: JobError, cause: Exception) -> JobError:
    try:
        raise error from cause
    except JobError as exc:
        return exc


@pytest.mark.parametrize(
    ("exc", "again"),
    [
        (JobError("data", "row 3"), False),
        (JobError("config", "lr"), False),
        (JobError("killed", "SIGKILL"), True),
        (JobError("setup", "pip could not install x"), True),
        (JobError("secrets", "busy", retry=True), True),
        (JobError("secrets", "none of that name"), False),
        (OutOfMemoryError("out of memory"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError(errno.EIO, "the mount is gone"), True),
        (ValueError("the scorer's own"), False),
        (RuntimeError("CUDA error: uncorrectable ECC error"), True),
        (caused(JobError("model", "could not load"), ConnectionResetError()), True),
        (caused(JobError("model", "could not load"), HubError(503)), True),
        (caused(JobError("model", "could not load: gated"), HubError(403)), False),
        (caused(JobError("model", "could not load"), ValueError("no such file")), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_may_pass_is_tried_again_and_nothing_else(exc: Exception, again: bool) -> None:
    assert may_be_mended(classify(exc), exc) is again


def test_a_failure_is_final_for_the_job_that_met_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input/job.json").write_text("{}")
    monkeypatch.setenv("LAUNCH_JOB_ID", "a-1")
    monkeypatch.setenv("LAUNCH_INPUT_DIR", str(tmp_path / "input"))
    write_failure(tmp_path, JobError("data", "no rows", "add some"), None)
    found = final_failure(tmp_path)
    assert found is not None
    assert (found.kind, found.message, found.hint) == ("data", "no rows", "add some")
    (tmp_path / "input/rows.jsonl").write_text("{}\n")
    assert final_failure(tmp_path) is None  # mended by hand
    (tmp_path / "input/rows.jsonl").unlink()
    assert final_failure(tmp_path) is not None
    monkeypatch.setenv("LAUNCH_JOB_ID", "a-1-r2")
    assert final_failure(tmp_path) is None
    monkeypatch.delenv("LAUNCH_JOB_ID")
    write_failure(tmp_path, JobError("data", "no rows"), None)
    assert final_failure(tmp_path) is None


@pytest.mark.parametrize("left", ["", "{", "[]", "{}", json.dumps({"kind": "data", "message": "m", "hint": None})])
def test_what_an_older_start_or_a_crash_left_is_no_final_failure(left: str, tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text(left)
    assert final_failure(tmp_path) is None


LEFT = {"job": "a-1 0", "kind": "error", "message": "RuntimeError: at 0x7f01", "checkpoint": "step-00000002"}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"message": "RuntimeError: at 0x7fff"}, True),
        ({"message": "RuntimeError: at line 3"}, False),
        ({"kind": "killed"}, False),
        ({"checkpoint": "step-00000004"}, False),
        ({"job": "a-2 0"}, False),
    ],
)
def test_a_failure_that_is_met_twice_without_a_checkpoint_between_is_the_same(
    changes: dict[str, str], same: bool
) -> None:
    assert no_further(LEFT, {**LEFT, **changes}) is same


def test_two_hangs_are_the_same_however_long_they_were() -> None:
    first = {**LEFT, "kind": "hang", "message": "silent for 1800 s"}
    assert no_further(first, {**first, "message": "silent for 1803 s"})
    assert not no_further({}, first)


def test_what_another_node_has_just_left_is_not_of_the_start_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input/job.json").write_text("{}")
    monkeypatch.setenv("LAUNCH_JOB_ID", "a-1")
    monkeypatch.setenv("LAUNCH_INPUT_DIR", str(tmp_path / "input"))
    write_failure(tmp_path, JobError("killed", "SIGKILL"), None)
    assert failed_before(tmp_path) == {}
    (tmp_path / "state.json").write_text('{"state": "failed"}')
    assert failed_before(tmp_path)["kind"] == "killed"
    monkeypatch.setenv("LAUNCH_JOB_ID", "a-1-r2")
    assert failed_before(tmp_path) == {}
