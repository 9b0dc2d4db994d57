"""Two nodes that share their folders train as one job: one tells, both stop, both go on."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

pytestmark = pytest.mark.timeout(900)
STEPS = 60
SECTIONS: dict[str, Any] = {
    "tuning": {"dropout": 0.0},
    "train": {"max_steps": STEPS, "epochs": 100.0, "micro_batch": 2, "learning_rate": 1e-3},
    "eval": {"baseline": True},
}


class Nodes:
    """Two entrypoints that are told of each other as SkyPilot tells it."""

    def __init__(self, job: tiny.Job, ranks: tuple[int, ...] = (0, 1)) -> None:
        self.job = job
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.processes = [self.start(rank) for rank in ranks]
        self.logs: list[str] = []

    def start(self, rank: int, **more: str) -> subprocess.Popen[str]:
        given = {
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
            "SKYPILOT_NUM_GPUS_PER_NODE": "0",
            "LAUNCH_PROCESSES": "1",
            "LAUNCH_MASTER_PORT": str(self.port),
            "LAUNCH_FAILURE_FILE": str(self.job.root / f"failure-{rank}"),
        }
        return self.job.start(**{**given, **more})

    def codes(self) -> list[int]:
        """Every exit status, in order."""
        self.logs = [p.communicate(timeout=tiny.PATIENCE_S)[0] for p in self.processes]
        return [p.returncode for p in self.processes]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Any]:
    """A job on one node; and on two, of which the second alone was told to stop, started again."""
    root = tmp_path_factory.mktemp("nodes")
    description = tiny.job_dict(model_folder, **SECTIONS)
    one, two = (tiny.Job(root / n, description, tiny.rows(24), tiny.rows(8, seed=1)) for n in ("one", "two"))
    assert one.run()[0] == 0
    nodes = Nodes(two)
    two.wait_for_step(8)
    nodes.processes[1].send_signal(signal.SIGTERM)
    stopped = {"codes": nodes.codes(), "logs": nodes.logs, "state": two.state(), "kept": two.steps_kept()}
    stopped["failure"] = (two.outputs / "failure.json").exists()
    kept = two.checkpoints / f"step-{two.steps_kept()[-1]:08d}"
    stopped["random"] = sorted(p.name for p in kept.rglob("rng_state*"))
    again = Nodes(two)
    return {"one": one, "two": two, "stopped": stopped, "codes": again.codes(), "logs": again.logs}


def test_sigterm_to_one_node_checkpoints_and_stops_both(pair):
    stopped = pair["stopped"]
    assert stopped["codes"] == [143, 143], stopped["logs"]
    assert stopped["state"] == "stopped" and not stopped["failure"]
    event = pair["two"].named("stopped")[0]
    assert event["reason"] == "signal" and [event["step"]] == stopped["kept"]


def test_checkpoint_holds_the_random_state_of_every_node(pair):
    assert pair["stopped"]["random"] == ["rng_state_0.pth", "rng_state_1.pth"]


def test_both_nodes_started_again_go_on_and_end(pair):
    assert pair["codes"] == [0, 0], pair["logs"]
    two = pair["two"]
    assert two.named("resumed")[0]["step"] == pair["stopped"]["kept"][-1]
    assert two.state() == "succeeded"


def test_the_first_node_alone_tells(pair):
    two = pair["two"]
    assert [e["step"] for e in two.named("step")] == list(range(1, STEPS + 1))
    assert len({e["run"] for e in two.events()}) == 2, "one run a start"
    assert "::launch::" not in pair["stopped"]["logs"][1] + pair["logs"][1]
    left = {p.name for p in two.outputs.iterdir()}
    assert left == {"artifact", "events.jsonl", "state.json"}, "each node has tidied up its own"


def test_two_nodes_learn_what_one_learns(pair):
    for alone, shared in zip(pair["one"].named("step"), pair["two"].named("step"), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-2)
        assert shared["tokens"] == alone["tokens"]


def test_sigterm_to_a_waiting_node_stops_the_one_that_judges(new_job):
    job = new_job(
        rows=24, held_out=400, eval={"baseline": True, "generation": True, "max_rows": 400, "batch_size": 1}
    )
    nodes = Nodes(job)
    job.wait_for(lambda events: any(e.get("name") == "baseline" for e in events))
    nodes.processes[1].send_signal(signal.SIGTERM)
    assert nodes.codes() == [143, 143], nodes.logs
    assert job.state() == "stopped" and not (job.outputs / "failure.json").exists()
    assert job.named("stopped")[0] | {"step": None, "reason": "signal"} == job.named("stopped")[0]


def test_sigterm_while_the_other_node_is_not_there_ends_the_waiting(new_job):
    job = new_job()
    nodes = Nodes(job, ranks=(1,))
    process = nodes.processes[0]
    waited = time.monotonic() + tiny.PATIENCE_S
    while not list(tiny.children(process.pid)):  # torchrun, which asks for the first node
        assert time.monotonic() < waited, "torchrun was not started"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    log, _ = process.communicate(timeout=tiny.PATIENCE_S)
    assert process.returncode == 143, log
    assert not (job.outputs / "failure.json").exists() and not (job.outputs / "state.json").exists()


def test_failure_of_one_node_is_the_cause_that_both_tell(new_job):
    job = new_job(train={"batch_size": 3})
    nodes = Nodes(job)
    assert nodes.codes() == [1, 1], nodes.logs
    assert "train.batch_size 3 can't be shared out over 2" in job.failure()["message"]
    assert job.state() == "failed" and len(job.named("failure")) == 1
    for rank in (0, 1):
        told = (job.root / f"failure-{rank}").read_text()
        assert told.startswith(job.failure()["message"]) and told.endswith(job.failure()["hint"])


def test_checkpoints_that_one_node_can_not_see_are_named(new_job, tmp_path):
    job = new_job(train={"checkpoint_steps": 2, "max_steps": 4})
    nodes = Nodes(job)
    assert nodes.codes() == [0, 0], nodes.logs
    again = Nodes(job, ranks=())
    elsewhere = str(tmp_path / "elsewhere")
    again.processes = [again.start(0), again.start(1, LAUNCH_CHECKPOINT_DIR=elsewhere)]
    assert again.codes() == [1, 1], again.logs
    assert job.failure()["kind"] == "checkpoint" and job.state() == "failed"
    assert "rank 1 sees no whole checkpoint" in job.failure()["message"]
