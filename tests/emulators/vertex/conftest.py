"""An emulated project with a service account and a bucket, and a job to change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.emulators.vertex.emulator import VertexEmulator

IMAGE = "us-central1-docker.pkg.dev/demo-project/train/train:1"


@dataclass(kw_only=True)
class Project:
    """What jobs need, and the means to start some."""

    google: VertexEmulator
    account: str
    bucket: str

    def body(self, code: str, *, replicas: int = 1, name: str = "a-job", **scheduling: Any) -> dict[str, Any]:
        """A CustomJob, as the typed clients take it, whose replicas run the Python `code`."""
        pools = [
            {
                "machine_spec": {
                    "machine_type": "g2-standard-12", "accelerator_type": "NVIDIA_L4", "accelerator_count": 1,
                },
                "replica_count": count,
                "container_spec": {
                    "image_uri": IMAGE, "command": ["python3", "-c", code],
                    "env": [{"name": "WHO", "value": "job-$(CLOUD_ML_JOB_ID)"}],
                },
            }
            for count in ([1] if replicas == 1 else [1, replicas - 1])
        ]  # fmt: skip
        return {
            "display_name": name, "labels": {"ours": name},
            "job_spec": {
                "worker_pool_specs": pools, "service_account": self.account, "scheduling": scheduling,
                "base_output_directory": {"output_uri_prefix": f"gs://{self.bucket}/{name}"},
            },
        }  # fmt: skip

    def start(self, code: str, **more: Any) -> str:
        made = self.google.jobs().create_custom_job(parent=self.google.parent, custom_job=self.body(code, **more))
        return str(made.name)


@pytest.fixture(scope="session")
def shared() -> Iterator[Project]:
    """One project for all tests."""
    if problem := VertexEmulator.unavailable():
        pytest.skip(problem)
    with VertexEmulator(sys.executable, grace_s=1, worker_restarts=1, job_retries=1) as google:
        yield Project(google=google, account=google.account(), bucket=google.bucket())


@pytest.fixture
def project(shared: Project) -> Iterator[Project]:
    """It, with nothing wrong any more afterwards."""
    yield shared
    shared.google.clear()
