"""The backend contract on emulated Vertex AI, with real training processes and the bucket at /gcs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.base import Backend, JobRef, Plan, Site
from backends.vertex import VertexBackend
from launcher.testing import BackendContract
from launcher.testing.jobs import Ran
from tests.emulators.vertex.emulator import VertexEmulator

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]


class TestVertex(BackendContract):
    sdk = ("google", "grpc", "proto", "torch")
    google: VertexEmulator
    account: str
    bucket: str

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def project(cls, image: Callable[[str], Path]) -> Iterator[None]:
        if problem := VertexEmulator.unavailable():
            pytest.skip(problem)
        with (
            VertexEmulator(image("vertex"), grace_s=60.0, worker_restarts=1, job_retries=1) as google,
            pytest.MonkeyPatch.context() as patch,
        ):
            for name, value in google.environment.items():
                patch.setenv(name, value)
            cls.google, cls.account, cls.bucket = google, google.account(), google.bucket()
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def ready(cls, tiny_model: Path) -> None:
        cls.model = str(tiny_model)

    def make_backend(self, home: Path) -> Backend:
        return VertexBackend(home)

    def site(self) -> Site:
        facts = {
            "project": self.google.project, "region": self.google.region, "bucket": self.bucket,
            "service_account": self.account,
            "image": f"us-central1-docker.pkg.dev/{self.google.project}/finelaunch/train:1",
        }  # fmt: skip
        return Site(backend="vertex", facts=facts, owner="anna")

    @contextlib.contextmanager
    def plant_secret(self, value: str) -> Iterator[None]:
        self.make_backend(Path("unused")).put_secret(self.site(), self.secret, value)  # type: ignore[attr-defined]
        yield

    def in_place(self, backend: Backend, plan: Plan) -> Mapping[str, object]:
        prefix = f"finelaunch/bundles/{plan.bundle.sha256}/"
        # The half of a bundle has the hash of the whole: it lies in the same place.
        found = self.google.storage().list_blobs(self.bucket, prefix=prefix)
        return {blob.name.removeprefix(prefix): blob.generation for blob in found}

    def damaged(self, request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        body = request["customJob"]
        pool = {**body["jobSpec"]["workerPoolSpecs"][0], "replicaCount": 2}
        spec = {**body["jobSpec"], "workerPoolSpecs": [pool]}
        return [*super().damaged(request), {**request, "customJob": {**body, "jobSpec": spec}}]

    def test_a_job_that_cannot_succeed_is_paid_once_though_vertex_starts_it_again(self, failed: Ran) -> None:
        assert len(self.google.attempts(failed.ref.id)) == 4
        assert sum('"name": "setup"' in line for line in self.google.log(failed.ref.id)) == 1

    def unknown_ref(self, backend: Backend) -> JobRef:
        return JobRef(backend.name, f"{self.google.region}.{self.google.project}", "any")
