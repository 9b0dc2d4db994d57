"""A device that runs out of memory, a rank that hangs, a disk that is full: the job goes on, or says why not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import with_mishap

from train_entry.failure import JobError
from train_entry.watchdog import patience_s

EVEN_ROWS = [{"instruction": f"my card was {n:02d} lost", "response": "billing"} for n in range(10, 34)]
"""Rows of one length that begin alike: packed, two of them are 28 tokens and four are 46."""


def steps(job: tiny.Job) -> list[int]:
    return [e["step"] for e in job.named("step")]


SHORT: dict[str, Any] = {
    "tuning": {"dropout": 0.0}, "train": {"batch_size": 8, "micro_batch": 4, "epochs": 9.0, "checkpoint_steps": 1},
    "eval": {"batch_size": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, tuple[tiny.Job, int, str]]:
    """(job, exit status, log) of a job with plenty of memory, and of two with less: of one process and of two.

    The one that is short takes two rows a forward pass and was given four; to judge, 110 tokens fit.
    """
    root, short = tmp_path_factory.mktemp("memory"), {"kind": "oom", "tokens": 36, "judged": 110}
    started = {
        "plenty": {},
        "short": with_mishap(**short),
        "two": {**with_mishap(**short, rank=1), "LAUNCH_PROCESSES": "2"},
    }
    found = {}
    for name, environment in started.items():
        job = tiny.Job(root / name, tiny.job_dict(model_folder, **SHORT), EVEN_ROWS, tiny.rows(8, seed=1))
        found[name] = (job, *job.run(**environment))
    return found


@pytest.mark.parametrize(("name", "step"), [("short", 2), ("two", 3)])
def test_out_of_memory_halves_the_micro_batch_and_no_step_is_lost(runs, name, step):
    """One process or one rank of two: all of them take less from there on, and it is told once."""
    job, code, log = runs[name]
    assert code == 0, log
    assert [{k: e[k] for k in ("step", "rows", "was")} for e in job.named("micro_batch")] == [
        {"step": step, "rows": 2, "was": 4}
    ]
    assert steps(job) == [1, 2, 3, 4, 5, 6], "each step once"
    assert job.named("resumed")[0]["step"] == step - 1
    assert [(e["micro"], e["passes"]) for e in job.named("packing")] == (
        [(4, 2), (2, 4)] if name == "short" else [(4, 1), (2, 2)]
    )
    assert not (job.outputs / "failure.json").exists() and not job.named("failure")
    assert [e["seq"] for e in job.events()] == list(range(len(job.events())))


@pytest.mark.parametrize("name", ["short", "two"])
def test_the_batch_stays_as_it_was_when_the_micro_batch_is_halved(runs, name):
    for with_less, with_all in zip(runs[name][0].named("step"), runs["plenty"][0].named("step"), strict=True):
        assert with_less["loss"] == pytest.approx(with_all["loss"], rel=1e-4)
        assert with_less["tokens"] == with_all["tokens"]


def test_out_of_memory_while_judging_halves_its_batch_and_changes_no_figure(runs):
    (short, _, log), (plenty, _, _) = runs["short"], runs["plenty"]
    for what in ("the held-out evaluation", "the scoring of labels"):
        assert f"{what} was out of memory with 8 rows a pass; now 4" in log
    losses = [[e["loss"] for e in job.named("eval_loss")] for job in (short, plenty)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    figures = [job.named("eval")[-1]["metrics"] for job in (short, plenty)]
    assert figures[0]["accuracy"] == figures[1]["accuracy"]
    assert figures[0]["general"]["log_prob"] == pytest.approx(figures[1]["general"]["log_prob"], rel=1e-4)


def test_judging_that_does_not_fit_one_row_at_a_time_says_so_and_leaves_the_training_as_it_is(new_job):
    job = new_job(train={"batch_size": 8, "micro_batch": 4, "checkpoint_steps": 2, "epochs": 9.0})
    code, log = job.run(**with_mishap(kind="oom in evaluation"))
    assert code == 1, log
    failure = job.failure()
    assert failure["kind"] == "oom" and "the held-out evaluation was out of memory" in failure["message"]
    assert "eval.batch_size can't be less: lower data.max_length" in failure["hint"]
    assert "train." not in failure["hint"]
    assert not job.named("micro_batch") and not (job.checkpoints / "micro_batch.json").exists()
    assert job.steps_kept() == [2]


def test_a_rank_that_hangs_is_ended_and_every_stack_is_in_the_log(new_job):
    job = new_job(train={"max_steps": 100_000, "epochs": 1e6, "micro_batch": 2, "checkpoint_steps": 1})
    code, log = job.run(LAUNCH_PROCESSES="2", LAUNCH_HANG_MINUTES="0.1", **with_mishap(kind="hang", rank=1))
    assert code == 1, log
    failure = job.failure()
    assert failure["kind"] == "hang" and failure["retry"] is True
    assert "launch resume" in failure["hint"]
    assert [e["kind"] for e in job.named("failure")] == ["hang"]
    assert "sitecustomize.py" in log and log.count("most recent call first") >= 2
    assert job.steps_kept(), "its checkpoints are there"


def test_a_hang_before_the_training_is_found_too(new_job):
    job = new_job(eval={"baseline": True})
    code, log = job.run(LAUNCH_HANG_MINUTES="0.1", **with_mishap(kind="hang in baseline"))
    assert code == 1, log
    assert job.failure()["kind"] == "hang" and not job.named("step")


@pytest.mark.parametrize("last", [False, True])
def test_a_stop_ends_a_held_out_evaluation_and_the_next_start_begins_with_it(new_job, last):
    """Machines that are taken away leave half a minute, and an evaluation may take many."""
    train = {"max_steps": 6 if last else 12, "early_stopping": {"patience": 9}}
    job, twin = (new_job(held_out=120, train=train) for _ in range(2))  # six steps an epoch, 30 passes
    assert twin.run_rank()[0] == 0
    process = job.start_rank(**with_mishap(kind="slow evaluation"))
    job.wait_for_step(5)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert job.end_rank(process) == 143
    assert time.monotonic() - began < 20, "30 s if it had been heard out"
    assert job.steps_kept() == [6] and not job.named("eval_loss") and steps(job)[-1] == 6

    (job.outputs / ".work/stop").unlink(missing_ok=True)  # __main__ tidies it up
    process = job.start_rank(**with_mishap(kind="slow evaluation"))
    job.wait_for(lambda events: events[-1]["event"] == "packing" and events[-1]["run"] == "run2")
    process.send_signal(signal.SIGTERM)
    assert job.end_rank(process) == 143
    assert job.steps_kept() == [6] and job.named("stopped")[-1]["step"] == 6 and not job.named("eval_loss")

    (job.outputs / ".work/stop").unlink(missing_ok=True)
    code, log = job.run_rank()
    assert code == 0, log
    told = [[(e["step"], e["loss"]) for e in j.named("eval_loss")] for j in (job, twin)]
    assert told[0] == told[1] and told[0][0][0] == 6
    assert steps(job) == steps(twin) and job.weights() == twin.weights()
    metrics = [json.loads((j.outputs / "artifact/metrics.json").read_text())["train"] for j in (job, twin)]
    assert metrics[0]["best_step"] == metrics[1]["best_step"] > 0


def test_patience_that_is_no_number_is_refused():
    assert patience_s({}) == 1800 and patience_s({"LAUNCH_HANG_MINUTES": "0"}) == 0
    with pytest.raises(JobError, match="LAUNCH_HANG_MINUTES is 'long'"):
        patience_s({"LAUNCH_HANG_MINUTES": "long"})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for one checkpoint of the tiny model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_ends_the_job_in_words_and_the_checkpoint_before_is_intact(new_job, small_disk):
    job = new_job(train={"checkpoint_steps": 2, "keep_checkpoints": 9})
    job.checkpoints = small_disk / "checkpoints"
    code, log = job.run_rank()
    assert code == 1, log
    failure = job.failure()
    assert failure["kind"] == "disk_full" and "step 4" in failure["message"]
    assert "resources.disk_gib" in failure["hint"]
    assert job.steps_kept() == [2]
    assert [p.name for p in job.checkpoints.glob("step-*")] == ["step-00000002"], "nothing is left of the other"


@pytest.mark.parametrize("free_kib", [40, 150])  # torch's file does not fit, or safetensors' does not
def test_a_full_disk_of_working_files_is_told_as_such(new_job, small_disk, free_kib):
    job = new_job(train={"checkpoint_steps": 2})
    (small_disk / "filler").write_bytes(b"x" * ((800 - free_kib) << 10))
    code, log = job.run_rank(LAUNCH_WORK_DIR=str(small_disk / "work"))
    assert code == 1, log
    failure = job.failure()
    assert failure["kind"] == "disk_full" and "resources.disk_gib" in failure["hint"]
    assert job.named("step") and not job.steps_kept()


def test_a_full_output_disk_is_told_though_nothing_can_be_written(new_job, small_disk):
    job = new_job()
    job.outputs = small_disk / "output"
    job.outputs.mkdir()
    (small_disk / "filler").write_bytes(b"x" * (700 << 10))
    with contextlib.suppress(OSError), (small_disk / "more").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    code, log = job.run_rank()
    assert code == 1, log
    assert "failed (disk_full): the disk is full" in log and "resources.disk_gib" in log


def test_a_loss_that_explodes_ends_the_job_and_names_the_rows_of_its_batch(new_job):
    job = new_job(
        tuning={"kind": "full"},
        train={"learning_rate": 10.0, "max_steps": 60, "epochs": 99.0, "checkpoint_steps": 1},
    )
    code, log = job.run_rank()
    assert code == 1, log
    failure = job.failure()
    assert failure["kind"] == "diverged" and "it explodes" in failure["message"]
    named = re.findall(r"train\.jsonl:(\d+)", failure["message"])
    assert len(set(named)) == len(named) == 4, failure["message"]
    assert "--from-checkpoint" in failure["hint"]
    last = steps(job)[-1]
    assert job.steps_kept()[-1] < last - 3, "nothing of the explosion took the place of what was whole"

    how = {"learning_rate": 10.0, "max_steps": last - 1, "epochs": 99.0, "checkpoint_steps": 1}
    short = new_job(tuning={"kind": "full"}, train=how)
    code, log = short.run_rank()
    assert code == 1, "it ends a step before that, and what it would leave is no better"
    failure = short.failure()
    assert failure["kind"] == "diverged" and f"step {last - 1}, the last," in failure["message"]
    assert short.steps_kept() == job.steps_kept() and not (short.outputs / "artifact").exists()

    halted = new_job(held_out=120, tuning={"kind": "full"}, train=how)
    process = halted.start_rank(**with_mishap(kind="slow evaluation"))
    halted.wait_for_step(last - 2)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    assert halted.end_rank(process) == 143 and not halted.named("eval_loss")
    (halted.outputs / ".work/stop").unlink(missing_ok=True)
    code, log = halted.run_rank()
    assert code == 1 and halted.failure()["kind"] == "diverged", log
    assert not (halted.outputs / "artifact").exists()
