"""The backend contract on emulated SageMaker, with real training processes in the real /opt/ml."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.base import Backend, JobRef, Plan, Site
from backends.sagemaker import SageMakerBackend
from launcher.testing import BackendContract
from tests.emulators.sagemaker.emulator import SageMakerEmulator

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]


class TestSageMaker(BackendContract):
    sdk = ("boto3", "botocore", "torch")
    aws: SageMakerEmulator
    role: str
    bucket: str

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def account(cls, image: Callable[[str], Path]) -> Iterator[None]:
        if problem := SageMakerEmulator.unavailable():
            pytest.skip(problem)
        with SageMakerEmulator(image("sagemaker"), grace_s=60.0) as aws, pytest.MonkeyPatch.context() as patch:
            for name, value in aws.environment.items():
                patch.setenv(name, value)
            cls.aws, cls.role, cls.bucket = aws, aws.role(), aws.bucket()
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def ready(cls, tiny_model: Path) -> None:
        cls.model = str(tiny_model)

    def make_backend(self, home: Path) -> Backend:
        return SageMakerBackend(home)

    def site(self) -> Site:
        facts = {"role": self.role, "bucket": self.bucket, "region": self.aws.region}
        return Site(backend="sagemaker", facts=facts, owner="anna")

    @contextlib.contextmanager
    def plant_secret(self, value: str) -> Iterator[None]:
        self.make_backend(Path("unused")).put_secret(self.site(), self.secret, value)  # type: ignore[attr-defined]
        yield

    def in_place(self, backend: Backend, plan: Plan) -> Mapping[str, object]:
        prefix = f"finelaunch/bundles/{plan.bundle.sha256}/"
        if not plan.bundle.files:
            return {}
        # The half of a bundle has the hash of the whole: it lies in the same place.
        found = self.aws.client("s3").list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return {i["Key"].removeprefix(prefix): (i["ETag"], i["LastModified"]) for i in found.get("Contents", ())}

    def damaged(self, request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        nowhere = {**request["ResourceConfig"], "InstanceType": "ml.nope.xlarge"}
        return [*super().damaged(request), {**request, "ResourceConfig": nowhere}]

    def unknown_ref(self, backend: Backend) -> JobRef:
        return JobRef(backend.name, self.aws.region, "any")
