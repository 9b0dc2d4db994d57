"""An emulated account with a role, a bucket and a program in it, and a request to change."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.sagemaker.emulator import SageMakerEmulator

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-gpu-py313"


@dataclass(kw_only=True)
class Account:
    """What jobs need, and the means to start some."""

    aws: SageMakerEmulator
    role: str
    bucket: str
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def put(self, key: str, body: bytes | str) -> str:
        self.aws.client("s3").put_object(Bucket=self.bucket, Key=key, Body=body)
        return f"s3://{self.bucket}/{key}"

    def get(self, uri: str) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        found: bytes = self.aws.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        return found

    def keys(self, prefix: str) -> list[str]:
        listed = self.aws.client("s3").list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for item in listed.get("Contents", [])]

    def request(self, *command: str, hyper: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
        """A request with a new name; its command is counting_job.py unless another is given."""
        name = f"job-{next(self.numbers)}"
        request = {
            "TrainingJobName": name,
            "AlgorithmSpecification": {
                "TrainingImage": IMAGE, "TrainingInputMode": "File",
                "ContainerEntrypoint": list(command) or ["python3", "/opt/ml/input/data/code/counting_job.py"],
            },
            "HyperParameters": {key: str(value) for key, value in (hyper or {}).items()},
            "RoleArn": self.role,
            "InputDataConfig": [channel("code", f"s3://{self.bucket}/code")],
            "OutputDataConfig": {"S3OutputPath": f"s3://{self.bucket}/out"},
            "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 300},
        }  # fmt: skip
        return {**copy.deepcopy(request), **changed}

    def start(self, *command: str, hyper: dict[str, Any] | None = None, **changed: Any) -> str:
        request = self.request(*command, hyper=hyper, **changed)
        self.aws.client("sagemaker").create_training_job(**request)
        return str(request["TrainingJobName"])

    def spot(self, name: str, wait_s: int = 300) -> dict[str, Any]:
        """The fields of a spot job that keeps checkpoints."""
        return {
            "EnableManagedSpotTraining": True,
            "StoppingCondition": {"MaxRuntimeInSeconds": min(300, wait_s), "MaxWaitTimeInSeconds": wait_s},
            "CheckpointConfig": {"S3Uri": f"s3://{self.bucket}/checkpoints/{name}"},
        }


def channel(name: str, uri: str, **source: str) -> dict[str, Any]:
    return {
        "ChannelName": name,
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri, **source}},
    }


def states(told: dict[str, Any]) -> list[str]:
    return [transition["Status"] for transition in told["SecondaryStatusTransitions"]]


@pytest.fixture(scope="session")
def start_emulator() -> Callable[..., SageMakerEmulator]:
    """SageMakerEmulator, where it can run."""
    if problem := SageMakerEmulator.unavailable():
        pytest.skip(problem)
    return SageMakerEmulator


@pytest.fixture(scope="session")
def counting_job() -> bytes:
    return Path(__file__).with_name("counting_job.py").read_bytes()


@pytest.fixture(scope="session")
def shared(start_emulator: Callable[..., SageMakerEmulator], counting_job: bytes) -> Iterator[Account]:
    """One account for all tests."""
    with start_emulator(grace_s=3) as aws:
        account = Account(aws=aws, role=aws.role(), bucket=aws.bucket())
        account.put("code/counting_job.py", counting_job)
        yield account


@pytest.fixture
def account(shared: Account) -> Iterator[Account]:
    """It, with nothing wrong any more afterwards."""
    yield shared
    shared.aws.clear()
