"""An emulated AWS account as a user of the command line has it: credentials in a file, `launch setup` done."""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backends.sagemaker.policies import user_policy
from tests.e2e.laptop import CloudLaptop
from tests.emulators.sagemaker.emulator import SageMakerEmulator

TO_SET_UP = {"iam:ListRoles", "s3:ListAllMyBuckets"}
"""What `launch setup sagemaker --find` looks through, and nothing else does."""


@dataclass(kw_only=True)
class Laptop(CloudLaptop):
    """One user's machine: its folders, its credentials file, the account it works with."""

    backend = "sagemaker"
    aws: SageMakerEmulator
    role: str
    bucket: str

    @property
    def cloud(self) -> SageMakerEmulator:
        return self.aws

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in self.aws.environment.items() if "KEY" not in k}
        return {
            **super().env, **kept, "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "credentials"),
        }  # fmt: skip

    def log_in(self) -> None:
        """What `aws sso login` would leave."""
        self.aws.login()
        found = self.aws.environment
        file = configparser.ConfigParser()
        file["default"] = {
            "aws_access_key_id": found["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": found["AWS_SECRET_ACCESS_KEY"],
        }
        with (self.folder / "credentials").open("w") as handle:
            file.write(handle)

    def set_up(self) -> None:
        """`launch setup sagemaker`, as a user types it."""
        done = self.launch(
            "setup", "sagemaker", "--role", self.role, "--bucket", self.bucket, "--region", self.aws.region
        )
        assert done.returncode == 0, done.stderr

    @property
    def facts(self) -> dict[str, str]:
        return {"role": self.role, "bucket": self.bucket, "region": self.aws.region}

    def jobs_there(self) -> list[str]:
        found = self.aws.client("sagemaker").list_training_jobs(MaxResults=100)["TrainingJobSummaries"]
        return [job["TrainingJobName"] for job in found]

    def uploads(self) -> int:
        return sum(call.operation == "PutObject" and not call.role for call in self.aws.calls)

    def objects(self) -> list[str]:
        found = self.aws.client("s3").list_objects_v2(Bucket=self.bucket)
        return [item["Key"] for item in found.get("Contents", ())]


@contextmanager
def laptop(aws: SageMakerEmulator, role: str, bucket: str, folder: Path) -> Iterator[Laptop]:
    """A laptop that is logged in and set up, with nothing wrong at AWS."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Laptop(aws=aws, role=role, bucket=bucket, folder=folder)
    aws.clear()
    made.log_in()
    made.set_up()
    yield made
    advised = {action for one in user_policy(made.facts)["Statement"] for action in one["Action"]}
    asked = {call.right for call in aws.calls if "finelaunch" in call.agent}
    assert asked - advised <= TO_SET_UP, "launch does what the policy that it advises does not allow"
    aws.clear()
