"""Two processes train as one: the same steps, one stop for both, one word about a failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file

STEPS = 40
# Dropout draws another mask on each rank; without it the two must agree.
SECTIONS: dict[str, Any] = {
    "tuning": {"dropout": 0.0},
    "train": {"max_steps": STEPS, "epochs": 100.0, "micro_batch": 2, "learning_rate": 1e-3},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Any]:
    """One process to its end; two processes stopped by SIGTERM and started again."""
    root = tmp_path_factory.mktemp("ranks")
    description = tiny.job_dict(model_folder, **SECTIONS)
    one, two = (tiny.Job(root / n, description, tiny.rows(24), tiny.rows(8, seed=1)) for n in ("one", "two"))
    twin = tiny.Job(root / "twin", description, tiny.rows(24), tiny.rows(8, seed=1))
    alone = tiny.Job(root / "alone", description, tiny.rows(24), tiny.rows(8, seed=1))
    assert one.run()[0] == 0
    assert twin.run(LAUNCH_PROCESSES="2")[0] == 0
    process = two.start(LAUNCH_PROCESSES="2")
    two.wait_for_step(8)
    process.send_signal(signal.SIGTERM)
    log, _ = process.communicate(timeout=tiny.PATIENCE_S)
    stopped = {"code": process.returncode, "state": two.state(), "kept": two.steps_kept(), "log": log}
    stopped["failure"] = (two.outputs / "failure.json").exists()
    kept = two.checkpoints / f"step-{two.steps_kept()[-1]:08d}"
    stopped["states"] = sorted(p.name for p in kept.rglob("rng_state*"))
    shutil.copytree(two.checkpoints, alone.checkpoints)
    code, log = two.run(LAUNCH_PROCESSES="2")
    assert alone.run_rank()[0] == 0
    return {"one": one, "two": two, "twin": twin, "alone": alone, "stopped": stopped, "code": code, "log": log}


def apart(ours: tiny.Job, theirs: tiny.Job) -> tuple[float, float]:
    """(largest difference of a loss, of a weight) of two jobs, over the steps that both have made."""
    losses = [{e["step"]: e["loss"] for e in job.named("step")} for job in (ours, theirs)]
    both = losses[0].keys() & losses[1].keys()
    a, b = (load_file(job.outputs / "artifact/adapter_model.safetensors") for job in (ours, theirs))
    assert both and a.keys() == b.keys()
    return (
        max(abs(losses[0][step] - losses[1][step]) for step in both),
        max(float((a[name] - b[name]).abs().max()) for name in a),
    )


def test_two_processes_that_were_stopped_end_as_two_that_were_not(pair):
    loss, weight = apart(pair["two"], pair["twin"])
    assert loss <= 1e-5 and weight <= 1e-5


def test_one_process_goes_on_from_the_checkpoint_of_two(pair):
    alone, kept = pair["alone"], pair["stopped"]["kept"][-1]
    assert alone.named("resumed")[0]["step"] == kept
    assert [e["step"] for e in alone.named("step")] == list(range(kept + 1, STEPS + 1))
    loss, weight = apart(alone, pair["twin"])
    assert loss <= 1e-3 and weight <= 1e-3


def test_sigterm_checkpoints_both_ranks_at_one_step_and_exits_143(pair):
    stopped = pair["stopped"]
    assert stopped["code"] == 143, stopped["log"]
    assert stopped["state"] == "stopped" and not stopped["failure"]
    event = pair["two"].named("stopped")[0]
    assert event["reason"] == "signal" and [event["step"]] == stopped["kept"]
    assert stopped["states"] == ["rng_state_0.pth", "rng_state_1.pth"]


def test_two_processes_started_again_go_on_and_end(pair):
    assert pair["code"] == 0, pair["log"]
    two = pair["two"]
    steps = [e["step"] for e in two.named("step")]
    assert steps == list(range(1, STEPS + 1)), "every step once, told by one rank"
    assert two.named("resumed")[0]["step"] == pair["stopped"]["kept"][-1]
    assert two.state() == "succeeded"


def test_two_processes_take_the_steps_that_one_takes(pair):
    one, two = pair["one"], pair["two"]
    for alone, shared in zip(one.named("step"), two.named("step"), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-2)
        assert shared["tokens"] == alone["tokens"]
    ours, theirs = (load_file(j.outputs / "artifact/adapter_model.safetensors") for j in (one, two))
    assert ours.keys() == theirs.keys()
    apart = max(float((ours[n] - theirs[n]).abs().max()) for n in ours)
    moved = max(float(ours[n].abs().max()) for n in ours if "lora_B" in n)
    assert apart < 0.02 * moved
    figures = [
        json.loads((j.outputs / "artifact/metrics.json").read_text())["tuned"]["accuracy"] for j in (one, two)
    ]
    assert figures[0] == pytest.approx(figures[1], abs=0.13)


def test_cause_of_a_failure_on_all_ranks_is_told_once(new_job):
    job = new_job(train={"batch_size": 3})
    code, log = job.run(LAUNCH_PROCESSES="2")
    assert code == 1, log
    assert "train.batch_size 3 can't be shared out over 2" in job.failure()["message"]
    assert len(job.named("failure")) == 1


def test_a_killed_rank_fails_the_job(new_job):
    job = new_job(train={"max_steps": 100_000, "epochs": 1e6})
    process = job.start(LAUNCH_PROCESSES="2")
    job.wait_for_step(3)
    os.kill(int((job.outputs / ".work/rank-1.pid").read_text()), signal.SIGKILL)
    process.communicate(timeout=tiny.PATIENCE_S)
    assert process.returncode == 1 and job.state() == "failed"
    assert job.failure()["kind"] == "killed" and len(job.named("failure")) == 1


def test_deadline_of_two_processes_is_a_stop_and_no_failure(new_job):
    job = new_job()
    code, log = job.run(LAUNCH_PROCESSES="2", LAUNCH_DEADLINE="1")
    assert code == 143, log
    assert job.state() == "stopped" and job.named("stopped")[0]["reason"] == "deadline"
