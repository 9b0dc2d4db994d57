"""The backend contract through SkyPilot on a real Slurm cluster, with real training processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.base import Backend, JobRef, Plan, Site
from backends.skypilot import SkyPilotBackend
from backends.skypilot.jobs import scope_of
from launcher.spec import JobSpec, Resources
from launcher.testing import BackendContract
from tests.emulators.slurm.cluster import NAME, STORE, SlurmCluster, skip_where_there_is_none

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]


class TestSkyPilot(BackendContract):
    sdk = ("sky", "torch")
    poll_s = 1.0
    cluster: SlurmCluster

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def slurm(cls, train_python: Path, sky_python: Path) -> Iterator[None]:
        skip_where_there_is_none()
        with SlurmCluster(sky_python, train_python, nodes=1) as cluster, pytest.MonkeyPatch.context() as patch:
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
        # The node says that it has an H100, and has none.
        env = {**spec.env, "LAUNCH_GPUS": "0"}
        return spec.model_copy(update={"resources": Resources(gpu="H100"), "env": env})

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
