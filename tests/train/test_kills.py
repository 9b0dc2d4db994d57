"""The training process is killed at moments that nobody chose: what was finished stays, and the end is the same.

The moments are drawn from SEED, which a failure prints with the round; `python -m bench.kill` does the same with
whole starts, entrypoint and all.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from tiny import with_mishap

from train_entry.checkpoint import sha256_of

SEED = 20261125
KILLS = 50
STEPS = 80
TRAIN = {"max_steps": STEPS, "epochs": 100.0, "checkpoint_steps": 3, "evals_per_epoch": 1}


def new(root: Path, model: Path, **sections: object) -> tiny.Job:
    description = tiny.job_dict(model, **{"train": TRAIN, "eval": {"baseline": True}, **sections})
    return tiny.Job(root, description, tiny.rows(24), tiny.rows(8, seed=1))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tiny.Job:
    """The job that nothing disturbs."""
    job = new(tmp_path_factory.mktemp("twin"), model_folder)
    code, log = job.run_rank()
    assert code == 0, log
    return job


def finished(job: tiny.Job) -> tuple[list[bytes], set[int]]:
    """(whole lines of the events' file, steps of the checkpoints that are told of)."""
    path = job.outputs / "events.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    told = [json.loads(line) for line in lines if b'"event": "checkpoint"' in line]
    return lines, {e["step"] for e in told}


def told_in_log(job: tiny.Job) -> list[str]:
    log = (job.root / "log.txt").read_text(encoding="utf-8", errors="replace")
    return [line.removeprefix("::launch:: ") for line in log.split("\n")[:-1] if line.startswith("::launch:: {")]


def test_kill_9_at_random_moments_loses_no_finished_checkpoint_and_no_finished_event(tmp_path, model_folder, twin):
    job, draw, kills = new(tmp_path / "job0", model_folder), random.Random(SEED), 0
    earlier: list[bytes] = []
    while kills < KILLS:
        process = job.start_rank()
        time.sleep(draw.uniform(0.0, 1.2))  # to the middle of its training
        process.send_signal(signal.SIGKILL)
        code, where = job.end_rank(process), f"SEED {SEED}, kill {kills}"
        if code == 0:  # it was done before: once more from the beginning
            assert job.weights() == twin.weights(), where
            job, earlier = new(tmp_path / f"job{len(list(tmp_path.iterdir()))}", model_folder), []
            continue
        assert code == -signal.SIGKILL, where
        kills += 1
        before, published = finished(job)
        kept = job.steps_kept()
        assert not published or kept[-1] >= max(published), f"{where}: {published} told, {kept} there"
        missing = [line for line in told_in_log(job) if line.encode() not in before]
        assert not missing, f"{where}: {missing} told to the log alone"
        assert before[: len(earlier)] == earlier, where
        earlier = before
    assert job.run_rank()[0] == 0
    after, _ = finished(job)
    assert after[: len(earlier)] == earlier, "a torn last line is ended, the others stay"
    assert job.weights() == twin.weights(), f"SEED {SEED}"


def told(**fields: object) -> Callable[[tiny.Job, int], bool]:
    """Has the start that runs now told of this? `seen`: events of the starts before."""
    return lambda job, seen: any(fields.items() <= e.items() for e in job.events()[seen:])


def writing_a_checkpoint(job: tiny.Job, seen: int) -> bool:
    """Is there a folder of a checkpoint that has no manifest yet?"""
    return any(not (f / "manifest.json").exists() for f in job.checkpoints.glob("step-*"))


MERGING = with_mishap(kind="slow merging", s=600)
MOMENTS = {
    "set-up": lambda job, seen: (job.outputs / ".work/rank-0.pid").exists(),
    "baseline": told(event="phase", name="baseline"),
    "the first step": told(event="phase", name="train"),
    "a checkpoint's write": writing_a_checkpoint,
    "an evaluation": told(event="eval_loss"),
    "the judging of the tuned model": told(event="phase", name="evaluate"),
    "the merging of the weights": lambda job, seen: (job.outputs / ".work/artifact/adapter_config.json").exists(),
}


def test_sigterm_at_every_stage_ends_with_143_and_the_next_start_goes_on(tmp_path, model_folder, twin):
    job = new(tmp_path / "job", model_folder, output={"merged": True})
    for moment, reached in MOMENTS.items():
        seen = len(job.events())
        process = job.start_rank(**(MERGING if "merging" in moment else {}))
        end = time.monotonic() + tiny.PATIENCE_S
        while not reached(job, seen):
            assert time.monotonic() < end, moment
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        assert job.end_rank(process) == 143, moment
        assert not (job.outputs / "failure.json").exists(), moment
        (job.outputs / ".work/rank-0.pid").unlink(missing_ok=True)  # __main__ tidies these up
        (job.outputs / ".work/stop").unlink(missing_ok=True)
    assert not (job.outputs / "artifact").exists()
    assert job.run_rank()[0] == 0
    assert job.weights() == twin.weights()
    assert (job.outputs / "artifact/merged/model.safetensors").exists()
    steps = [e["step"] for e in job.named("step")]
    assert steps == list(range(1, STEPS + 1)), "a step that was checkpointed is made once"


def merging(job: tiny.Job) -> bool:
    return MOMENTS["the merging of the weights"](job, 0)


def moving(job: tiny.Job) -> bool:
    return any((job.outputs / "artifact").glob("*"))


@pytest.mark.parametrize(
    ("mishap", "reached"),
    [
        ({"kind": "slow merging", "s": 2}, merging),
        ({"kind": "slow moving"}, moving),
        ({"kind": "slow merging", "s": 7, "over": True}, None),
    ],
    ids=["a signal, and it is done within the notice", "a signal while it is put in place", "the hours are over"],
)
def test_an_artifact_that_can_be_finished_is(new_job, mishap, reached):
    job = new_job(output={"merged": True})
    process = job.start_rank(**with_mishap(**mishap))
    if reached:
        end = time.monotonic() + tiny.PATIENCE_S
        while not reached(job):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
    assert job.end_rank(process) == 0, (job.root / "log.txt").read_text()
    assert not job.named("stopped")
    files = {f["path"]: f["sha256"] for f in job.named("done")[0]["files"]}
    there = [p for p in (job.outputs / "artifact").rglob("*") if p.is_file()]
    assert files == {p.relative_to(job.outputs).as_posix(): sha256_of(p) for p in there}
    assert "artifact/merged/model.safetensors" in files


def test_a_changed_job_goes_on_from_the_checkpoint_when_that_is_meant(new_job):
    job = new_job(train={"epochs": 9.0})
    assert job.run_rank()[0] == 0
    before, description = job.weights(), json.loads((job.inputs / "job.json").read_text())
    changed = {"max_steps": 12, "learning_rate": 1e-4, "scheduler": "constant"}
    job.write({**description, "train": {**description["train"], **changed}})

    code, _ = job.run_rank()
    assert code == 1 and job.failure()["kind"] == "checkpoint"
    assert "train.learning_rate: 0.005 -> 0.0001" in job.failure()["message"]
    assert "--from-checkpoint" in job.failure()["hint"] and job.weights() == before

    (job.outputs / "failure.json").unlink()
    code, log = job.run_rank(LAUNCH_FROM_CHECKPOINT="1")
    assert code == 0, log
    resumed = job.named("resumed")[-1]
    assert resumed["step"] == 6 and len(resumed["changed"]) == 3
    after = [e for e in job.named("step") if e["run"] == resumed["run"]]
    assert [e["step"] for e in after] == [7, 8, 9, 10, 11, 12]
    assert {e["lr"] for e in after} == {1e-4}, "the job's own rate, not the checkpoint's"
    assert job.weights() != before and job.steps_kept()[-1] == 12

    code, log = job.run_rank(LAUNCH_FROM_CHECKPOINT="1")
    assert code == 0, "its own checkpoint by now: a job that is done is done"
    job.write({**description, "train": {**description["train"], "max_steps": 10}})
    code, log = job.run_rank(LAUNCH_FROM_CHECKPOINT="1")
    assert code == 1 and "after step 12, and this job has 10 steps" in job.failure()["message"]
