"""`launch --backend skypilot` from a laptop that reaches a real Slurm cluster, with what goes wrong on one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.jobs import wait_for, write_job
from tests.e2e.laptop import STEP, UsersMachine
from tests.emulators.slurm.cluster import NAME, STORE, SlurmCluster, skip_where_there_is_none

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

SHORT = {"max_steps": 2}
LONG = {"epochs": 4000, "checkpoint_steps": 2}
SETS = ("--set", "eval.baseline=false", "--set", "eval.tuned=false", "--set", "resources.gpu=H100")


@dataclass(kw_only=True)
class Laptop(UsersMachine):
    cluster: SlurmCluster

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, **self.cluster.environment, "LAUNCH_POLL_S": "1"}

    def log(self, job: str, node: int = 0) -> str:
        path = self.cluster.store / "finelaunch" / "jobs" / job / "logs" / f"node-{node}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def cluster(train_python: Path, sky_python: Path) -> Iterator[SlurmCluster]:
    skip_where_there_is_none()
    with SlurmCluster(sky_python, train_python) as made:
        yield made


@pytest.fixture
def anna(cluster: SlurmCluster, tmp_path: Path) -> Laptop:
    made = Laptop(cluster=cluster, folder=tmp_path / "anna")
    made.folder.mkdir()
    done = made.launch("setup", "skypilot", "--store", STORE, "--infra", f"slurm/{NAME}")
    assert done.returncode == 0, done.stderr
    return made


def ran(anna: Laptop, model: Path, *args: str, **train: object) -> subprocess.CompletedProcess[str]:
    write_job(anna.folder, model, **{**SHORT, **train})
    return anna.launch("run", "--backend", "skypilot", "--yes", "--json", *SETS, *args)


def detached(anna: Laptop, model: Path, *args: str, **train: object) -> str:
    done = ran(anna, model, "--detach", *args, **{**LONG, "max_steps": "null", **train})
    assert done.returncode == 0, done.stderr
    return str(events(done)[0]["id"])


def events(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_two_nodes_train_one_model_and_their_machines_go(anna: Laptop, tiny_model: Path, tmp_path: Path) -> None:
    done = ran(anna, tiny_model, "--set", "resources.nodes=2")
    assert done.returncode == 0, done.stderr
    job = events(done)[-1]
    assert job["state"] == "SUCCEEDED"
    assert [e["step"] for e in events(done) if e["event"] == "step"] == [1, 2]
    for node in (0, 1):
        assert "train_entry" in anna.log(job["id"], node) or anna.log(job["id"], node)
    wait_for(lambda: anna.cluster.allocations() == [])
    fetched = anna.launch("fetch", job["id"], "--to", str(tmp_path / "out"))
    assert fetched.returncode == 0, fetched.stderr
    sizes = {a["path"]: a["size"] for a in job["artifacts"]}
    assert sizes
    assert {p: (tmp_path / "out" / p).stat().st_size for p in sizes} == sizes


def test_a_managed_job_goes_on_when_its_allocation_is_killed(anna: Laptop, tiny_model: Path) -> None:
    job = detached(anna, tiny_model, "--set", "backend_options.skypilot.managed=true", epochs=40)
    wait_for(lambda: anna.log(job).count(STEP) >= 6, 240)
    (allocation,) = anna.cluster.allocations()
    anna.cluster.run(f"scancel {allocation}")
    wait_for(lambda: '"event": "resumed"' in anna.log(job), 300)
    done = anna.launch("watch", job, "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    last = events(done)[-1]
    assert (last["state"], last["interruptions"]) == ("SUCCEEDED", 1)
    wait_for(lambda: anna.cluster.allocations() == [])


def test_two_jobs_at_once_and_one_of_them_is_cancelled(anna: Laptop, tiny_model: Path) -> None:
    one, other = detached(anna, tiny_model), detached(anna, tiny_model)
    wait_for(lambda: all(STEP in anna.log(job) for job in (one, other)), 300)
    assert anna.launch("cancel", one).returncode == 0
    wait_for(lambda: anna.show(one)["state"] == "CANCELLED")
    assert '"event": "checkpoint"' in anna.log(one)
    assert anna.show(other)["state"] == "RUNNING"
    assert anna.launch("cancel", other).returncode == 0
    wait_for(lambda: anna.show(other)["state"] == "CANCELLED")
    wait_for(lambda: anna.cluster.allocations() == [])


def test_a_set_up_that_fails_says_why_and_leaves_no_machine(anna: Laptop, tiny_model: Path) -> None:
    anna.cluster.break_index(True)
    try:
        done = ran(anna, tiny_model)
    finally:
        anna.cluster.break_index(False)
    assert done.returncode == 1
    assert "set-up ended with 1" in done.stderr
    assert "index of packages: it is down" in done.stderr
    wait_for(lambda: anna.cluster.allocations() == [])
