"""SkyPilot on a real Slurm cluster, with real training: the backend contract, and `launch` from a laptop.

One class, so that all of it has one cluster and one SkyPilot server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends.base import Backend, JobRef, Plan, Site
from backends.skypilot import SkyPilotBackend
from backends.skypilot.jobs import scope_of
from launcher.spec import JobSpec, Resources
from launcher.testing import BackendContract
from tests.e2e.cases import LONG, QUICK, SHORT
from tests.e2e.jobs import wait_for, write_job
from tests.e2e.laptop import UsersMachine
from tests.emulators.slurm.cluster import NAME, STORE, SlurmCluster, skip_where_there_is_none

H100 = ("--set", "resources.gpu=H100", "--set", "env.LAUNCH_GPUS='0'")
"""The nodes say that they have some, and have none."""
pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]


@dataclass(kw_only=True)
class Laptop(UsersMachine):
    """A machine with a login to the cluster."""

    cluster: SlurmCluster

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, **self.cluster.environment, "LAUNCH_POLL_S": "1"}

    def set_up(self) -> None:
        done = self.launch("setup", "skypilot", "--store", STORE, "--infra", f"slurm/{NAME}")
        assert done.returncode == 0, done.stderr

    def orphans(self) -> list[dict[str, Any]]:
        """What `launch orphans` lists."""
        found: list[dict[str, Any]] = json.loads(self.launch("orphans", "--json").stdout)
        return found


@dataclass(kw_only=True)
class AtOnce:
    """Two jobs that ran in the same minutes, as their followers told them."""

    two_nodes: list[dict[str, Any]]
    managed: list[dict[str, Any]]
    own: list[dict[str, Any]]
    """What `launch orphans` told on their laptop while both ran."""
    others: list[dict[str, Any]]
    """What it told on another."""


class TestSkyPilot(BackendContract):
    sdk = ("sky", "torch")
    poll_s = 1.0
    wait_s = 600
    cluster: SlurmCluster

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def slurm(cls, image: Callable[[str], Path], sky_python: Path) -> Iterator[None]:
        skip_where_there_is_none()
        with (
            SlurmCluster(sky_python, image("vertex"), nodes=2) as cluster,
            pytest.MonkeyPatch.context() as patch,
        ):
            for name, value in cluster.environment.items():
                patch.setenv(name, value)
            cls.cluster = cluster
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def ready(cls, tiny_model: Path) -> None:
        cls.model = str(tiny_model)

    def make_backend(self, home: Path) -> Backend:
        return SkyPilotBackend(home)

    def site(self) -> Site:
        return Site(backend="skypilot", facts={"store": STORE, "infra": f"slurm/{NAME}"}, owner="anna")

    def job(self, folder: Path, name: str, scorer: str | None, **train: Any) -> JobSpec:
        spec = super().job(folder, name, scorer, **train)
        return spec.model_copy(
            update={"resources": Resources(gpu="H100"), "env": {**spec.env, "LAUNCH_GPUS": "0"}}
        )

    def unsupported_job(self, job: JobSpec) -> tuple[JobSpec, str]:
        wanted = job.resources.model_copy(update={"spot": True})
        return job.model_copy(update={"resources": wanted}), "resources.spot"

    def damaged(self, request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        task = request["task"]
        return [*super().damaged(request), {**request, "task": {**task, "noSuchField": 1}}]

    def in_place(self, backend: Backend, plan: Plan) -> Mapping[str, object]:
        folder = self.cluster.store / "finelaunch" / "bundles" / plan.bundle.sha256
        return {
            path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in folder.rglob("*")
            if path.is_file()
        }

    def unknown_ref(self, backend: Backend) -> JobRef:
        return JobRef(backend.name, scope_of(self.site(), None), "any")

    def test_the_cluster_is_one_that_skypilot_can_use(self, place: Path) -> None:
        assert self.make_backend(place / "who").signed_in(self.site()).startswith("SkyPilot: slurm")  # type: ignore[attr-defined]

    # Through the command line.

    @pytest.fixture(scope="class")
    @classmethod
    def anna(cls, slurm: None, place: Path) -> Laptop:
        return cls._laptop(place / "anna")

    @classmethod
    def _laptop(cls, folder: Path) -> Laptop:
        folder.mkdir()
        laptop = Laptop(cluster=cls.cluster, folder=folder)
        laptop.set_up()
        return laptop

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def meanwhile(cls, anna: Laptop, place: Path, tiny_model: Path) -> Iterator[Future[AtOnce]]:
        """The jobs of the command line run while the contract's do: mostly something is waited for."""
        begun: list[subprocess.Popen[str]] = []
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(cls._run_at_once, anna, place, tiny_model, begun)
            for process in begun:
                process.kill()

    @pytest.fixture
    def at_once(self, meanwhile: Future[AtOnce]) -> AtOnce:
        return meanwhile.result()

    @classmethod
    def _run_at_once(
        cls, anna: Laptop, place: Path, tiny_model: Path, begun: list[subprocess.Popen[str]]
    ) -> AtOnce:
        """A job of two nodes to its end; a managed one that loses its allocation, goes on and is cancelled."""
        folder = anna.folder / "long"
        write_job(folder, tiny_model, **LONG)
        common = ("--backend", "skypilot", "--yes", "--json", *H100, *QUICK)
        managed = anna.start("run", *common, "--set", "backend_options.skypilot.managed=true", cwd=folder)
        begun.append(managed)
        assert anna.launch("init").returncode == 0
        two = anna.start("run", *common, *_two_nodes(tiny_model))
        begun.append(two)
        told: list[dict[str, Any]] = []
        job = cls._until(managed, told, "step", 3)
        own, others = anna.orphans(), cls._laptop(place / "ben").orphans()
        cls.cluster.run(f"scancel $(squeue -h -o '%i %j' | awk '$2 ~ /^{job}/ {{print $1}}')")
        cls._until(managed, told, "resumed")
        cls._until(managed, told, "step")
        done = anna.launch("cancel", job)
        assert done.returncode == 0, done.stderr
        told += [json.loads(line) for line in managed.communicate(timeout=300)[0].splitlines()]
        said = [json.loads(line) for line in two.communicate(timeout=300)[0].splitlines()]
        return AtOnce(two_nodes=said, managed=told, own=own, others=others)

    @staticmethod
    def _until(process: subprocess.Popen[str], told: list[dict[str, Any]], event: str, times: int = 1) -> str:
        """Read what a follower tells until it has told so many more such events; the job's id."""
        assert process.stdout is not None
        for line in process.stdout:
            told.append(json.loads(line))
            times -= told[-1]["event"] == event
            if not times:
                return str(told[0]["id"])
        raise AssertionError(f"it ended without {event}: {told[-3:]}")

    def test_a_job_of_two_nodes_is_planned_run_shown_and_fetched(
        self, anna: Laptop, at_once: AtOnce, tiny_model: Path, tmp_path: Path
    ) -> None:
        planned = anna.launch("plan", "--backend", "skypilot", *H100, *_two_nodes(tiny_model))
        assert planned.returncode == 0, planned.stderr
        assert f"2 x H100:1 on slurm/{NAME}" in " ".join(planned.stdout.split())
        job = at_once.two_nodes[-1]
        assert job["state"] == "SUCCEEDED"
        assert [e["step"] for e in at_once.two_nodes if e["event"] == "step"] == [1, 2]
        assert anna.show(job["id"])["state"] == "SUCCEEDED"
        fetched = anna.launch("fetch", job["id"], "--to", str(tmp_path / "out"))
        assert fetched.returncode == 0, fetched.stderr
        sizes = {a["path"]: a["size"] for a in job["artifacts"]}
        assert "artifact/adapter_model.safetensors" in sizes
        assert {p: (tmp_path / "out" / p).stat().st_size for p in sizes} == sizes

    def test_each_nodes_words_are_kept_apart(self, anna: Laptop, at_once: AtOnce, place: Path) -> None:
        job = at_once.two_nodes[-1]["id"]
        backend = self.make_backend(place / "ranks")
        lines = list(backend.logs(JobRef("skypilot", scope_of(self.site(), None), job)))
        assert {line.source for line in lines} == {"node-0", "node-1"}

    def test_a_managed_job_whose_allocation_was_killed_goes_on_from_its_checkpoint(self, at_once: AtOnce) -> None:
        steps = [e["step"] for e in at_once.managed if e["event"] == "step"]
        (resumed,) = (e["step"] for e in at_once.managed if e["event"] == "resumed")
        assert resumed >= 2
        assert resumed + 1 in steps
        assert at_once.managed[-1]["interruptions"] == 1

    def test_a_job_that_runs_is_told_to_who_does_not_own_it(self, at_once: AtOnce) -> None:
        job = at_once.managed[-1]["id"]
        assert job in [one["id"] for one in at_once.others]
        assert [one["id"] for one in at_once.own if one["id"].startswith(job)] == []  # nor its cluster's name

    def test_a_cancelled_managed_job_ends_so_and_no_machine_stays(self, anna: Laptop, at_once: AtOnce) -> None:
        assert at_once.managed[-1]["state"] == "CANCELLED"
        wait_for(lambda: self.cluster.allocations() == [], every=1)
        wait_for(lambda: anna.orphans() == [], every=1)

    def test_a_failing_set_up_says_why_and_leaves_no_machine_though_the_launcher_was_killed(
        self, anna: Laptop, tiny_model: Path
    ) -> None:
        folder = anna.folder / "no-index"
        write_job(folder, tiny_model, **SHORT)
        self.cluster.break_index(True)
        try:
            args = ("--backend", "skypilot", "--yes", *H100, *QUICK)
            launcher = anna.start("run", *args, cwd=folder)
            wait_for(lambda: self.cluster.allocations() != [])
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.communicate()
            done = anna.launch("watch")
        finally:
            self.cluster.break_index(False)
        assert done.returncode == 1
        assert "set-up ended with 1" in done.stderr
        assert "Failed to fetch the index of packages" in done.stderr
        wait_for(lambda: self.cluster.allocations() == [], every=1)
        assert anna.orphans() == []


def _two_nodes(model: Path) -> tuple[str, ...]:
    """Of the template's job: two steps of the tiny model on two nodes, which share the machine's cores."""
    sets = (
        f"model={model}", "train.max_steps=2", "train.batch_size=4", "data.eval_fraction=0.02", "data.eval=null",
        "eval.max_rows=2", "resources.nodes=2", "env.LAUNCH_THREADS='1'",
    )  # fmt: skip
    return tuple(word for line in sets for word in ("--set", line))
