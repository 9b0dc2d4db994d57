"""The backend contract with a bucket as store: real S3 requests (moto), a real FUSE mount, real training.

Only SkyPilot is played (tests/emulators/mounted_worker.py says what by); it takes jobs to real machines on Slurm
(tests/e2e/test_skypilot.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.base import Backend, JobRef, Plan, Site
from backends.skypilot import SkyPilotBackend
from launcher.spec import JobSpec, Resources
from launcher.testing import BackendContract
from tests.emulators import mounted_worker
from tests.emulators.servers import serving
from tests.unit.rendering import IMAGE
from tests.warm_starts import WarmStarts

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]
BUCKET = "team-bucket"


class TestBucket(BackendContract):
    sdk = ("boto3", "botocore", "google", "sky", "torch")
    poll_s = 0.5
    s3: Any

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def cloud(
        cls, image: Callable[[str], Path], sky_python: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[None]:
        if problem := mounted_worker.lacking():
            (pytest.fail if os.environ.get("FINELAUNCH_TESTS_NEED_BUCKETS") else pytest.skip)(problem)
        folder = tmp_path_factory.mktemp("cloud")
        (folder / "nodes").mkdir()
        words = [sys.executable, mounted_worker.__file__, folder / "nodes", sky_python, image("vertex")]
        (folder / "python").write_text(f"#!/bin/sh\nexec {' '.join(map(str, words))}\n")
        (folder / "python").chmod(0o755)
        forking = WarmStarts(str(image("vertex")), tmp_path_factory.mktemp("warm"))
        with (
            serving("moto.server", "-H", "127.0.0.1", "-p", "{port}") as endpoint,
            pytest.MonkeyPatch.context() as patch,
        ):
            known = {
                "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_REGION": "us-east-1",
                "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "LAUNCH_SKYPILOT_PYTHON": str(folder / "python"),
            }  # fmt: skip
            for name, value in {**known, **forking.environment(True)}.items():
                patch.setenv(name, value)
            patch.delenv("AWS_CA_BUNDLE", raising=False)  # rclone takes none where its own transport is set
            import boto3

            cls.s3 = boto3.session.Session().client("s3", region_name="us-east-1", endpoint_url=endpoint)
            cls.s3.create_bucket(Bucket=BUCKET)
            yield
        forking.close()

    @pytest.fixture(scope="class")
    @classmethod
    def ready(cls, tiny_model: Path) -> None:
        cls.model = str(tiny_model)

    def make_backend(self, home: Path) -> Backend:
        return SkyPilotBackend(home)

    def site(self) -> Site:
        return Site(backend="skypilot", facts={"store": f"s3://{BUCKET}", "infra": "aws/us-east-1"}, owner="anna")

    def job(self, folder: Path, name: str, scorer: str | None, **train: Any) -> JobSpec:
        spec = super().job(folder, name, scorer, **train)
        return spec.model_copy(update={"resources": Resources(gpu="H100", image=IMAGE)})

    def unsupported_job(self, job: JobSpec) -> tuple[JobSpec, str]:
        wanted = job.resources.model_copy(update={"offline": True})
        return job.model_copy(update={"resources": wanted}), "resources.offline"

    def in_place(self, backend: Backend, plan: Plan) -> Mapping[str, object]:
        prefix = f"finelaunch/bundles/{plan.bundle.sha256}/"
        found = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return {i["Key"].removeprefix(prefix): (i["ETag"], i["LastModified"]) for i in found.get("Contents", ())}

    def unknown_ref(self, backend: Backend) -> JobRef:
        return JobRef(backend.name, f"s3:{BUCKET}", "any")
