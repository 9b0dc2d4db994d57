"""What goes wrong stands in failure.json with its kind and what to do, and as one event."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest
import tiny
import torch

from train_entry.config import JobFileError, read_job
from train_entry.failure import JobError, classify, write_failure
from train_entry.train import guarded


def failed(job: tiny.Job, **environment: str) -> tuple[dict, str]:
    """(failure.json, log) of a job that must fail."""
    code, log = job.run(**environment)
    assert code == 1, log
    assert job.state() == "failed"
    failure = job.failure()
    events = job.named("failure")
    assert [(e["kind"], e["message"], e["hint"]) for e in events] == [
        (failure["kind"], failure["message"], failure["hint"])
    ]
    assert [e["seq"] for e in job.events()] == list(range(len(job.events()))), "every number is given once"
    return failure, log


def test_bad_rows_are_named_by_line_and_the_secret_in_a_message_is_masked(new_job):
    secret = "s3cr" + "et-in-a-row"
    job = new_job(
        rows=[*tiny.rows(3), {"instruction": "x", "answer": secret}, {secret: "x"}], secrets=["MY_TOKEN"]
    )
    failure, log = failed(job, MY_TOKEN=secret)
    assert failure["kind"] == "data"
    assert "train.jsonl:4" in failure["message"] and "train.jsonl:5" in failure["message"]
    assert "***" in failure["message"]
    for text in (log, (job.outputs / "failure.json").read_text(), (job.outputs / "events.jsonl").read_text()):
        assert secret not in text


def test_model_that_is_not_there_is_named(new_job):
    failure, _ = failed(new_job(model={"id": "nobody/no-such-model"}))
    assert failure["kind"] == "model" and "nobody/no-such-model" in failure["message"]
    assert "model.id" in failure["hint"]


def test_a_machine_without_the_gpus_that_are_paid_for_trains_nothing(new_job):
    failure, _ = failed(new_job(), LAUNCH_GPUS="1")
    assert failure["kind"] == "setup" and "paid for 1" in failure["message"] and failure["retry"] is True


def test_loss_that_is_not_a_number_ends_the_job_before_it_spoils_a_checkpoint(new_job):
    job = new_job(
        train={"learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": 30, "checkpoint_steps": 1, "epochs": 9}
    )
    failure, _ = failed(job)
    assert failure["kind"] == "diverged" and "train.learning_rate" in failure["hint"]
    step = job.named("step")[-1]["step"] + 1
    assert f"of step {step} is " in failure["message"]
    # Four different rows of the 24, the batch of that step: batches of one epoch share no row.
    assert len(set(re.findall(r"train\.jsonl:(\d+)", failure["message"]))) == 4
    assert all(e["loss"] == e["loss"] for e in job.named("step"))


def test_job_file_that_does_not_parse_fails_at_once(new_job):
    job = new_job()
    (job.inputs / "job.json").write_text('{"name": ')
    failure, _ = failed(job)
    assert failure["kind"] == "config" and "job.json: not JSON" in failure["message"]
    job.write({**tiny.job_dict("m"), "train": {"epochs": -1}})
    (job.outputs / "events.jsonl").unlink()
    failure, _ = failed(job)
    assert (failure["kind"], failure["message"]) == ("config", "train.epochs: -1.0 is not above 0")


def test_memory_that_can_not_be_had_is_told_as_such():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50, dtype=torch.float64)
    for exc in (refused.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")):
        error = classify(exc)
        assert error.kind == "oom" and "train.micro_batch" in (error.hint or "")


def test_full_disk_is_told_as_such():
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert classify(OSError(number, os.strerror(number))).kind == "disk_full"


def test_memory_error_in_a_rank_leaves_failure_json_and_status_1(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCH_OUTPUT_DIR", str(tmp_path))

    def run(_):
        raise MemoryError

    assert guarded(run) == 1
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["kind"] == "oom" and failure["traceback"][-1] == "MemoryError"


def test_first_cause_is_kept_when_another_rank_fails_after_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCH_OUTPUT_DIR", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    write_failure(tmp_path, JobError("data", "the cause"), None)

    def run(_):
        raise RuntimeError("Connection closed by peer")

    assert guarded(run) == 1
    assert json.loads((tmp_path / "failure.json").read_text())["message"] == "the cause"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"epoch": 1}}, "train.epoch: unknown field"),
        ({"tuning": {"kind": "lora2"}}, "tuning.kind: 'lora2' is not one of lora, qlora, full"),
        ({"tuning": {"r": True}}, "tuning.r: expected int, got True"),
        ({"data": {}}, "data: train is missing"),
    ],
)
def test_field_that_does_not_fit_is_named_by_its_path(tmp_path, change, message):
    (tmp_path / "job.json").write_text(json.dumps({**tiny.job_dict("m"), **change}))
    with pytest.raises(JobFileError) as refused:
        read_job(tmp_path / "job.json")
    assert str(refused.value) == message
