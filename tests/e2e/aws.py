"""An emulated AWS account as a user of the command line has it: credentials in a file, `launch setup` done."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.emulators.sagemaker.emulator import SageMakerEmulator

STEP = '"event": "step"'


@dataclass(kw_only=True)
class Laptop:
    """One user's machine: its folders, its credentials file, the account it works with."""

    aws: SageMakerEmulator
    role: str
    bucket: str
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in self.aws.environment.items() if "KEY" not in k}
        return {
            **kept, "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "credentials"), "LAUNCH_POLL_S": "0.3",
            "LAUNCH_HOME": str(self.folder / "home"), "LAUNCH_CONFIG_DIR": str(self.folder / "config"),
            "NO_COLOR": "1", "COLUMNS": "80", "LAUNCH_OWNER": self.folder.name,
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

    def launch(
        self, *args: str, cwd: Path | None = None, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher.cli", *args], cwd=cwd or self.folder, env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def start(self, *args: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """`launch ARGS` in a process group of its own; the caller ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "launcher.cli", *args], cwd=cwd or self.folder, env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def set_up(self) -> None:
        """`launch setup sagemaker`, as a user types it."""
        done = self.launch(
            "setup", "sagemaker", "--role", self.role, "--bucket", self.bucket, "--region", self.aws.region
        )
        assert done.returncode == 0, done.stderr

    def show(self, *job: str) -> Mapping[str, object]:
        done = self.launch("show", *job, "--json")
        assert done.returncode == 0, done.stderr
        found: Mapping[str, object] = json.loads(done.stdout)
        return found

    def jobs_at_aws(self) -> list[str]:
        found = self.aws.client("sagemaker").list_training_jobs(MaxResults=100)["TrainingJobSummaries"]
        return [job["TrainingJobName"] for job in found]


@contextmanager
def laptop(aws: SageMakerEmulator, role: str, bucket: str, folder: Path) -> Iterator[Laptop]:
    """A laptop that is logged in and set up, with nothing wrong at AWS."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Laptop(aws=aws, role=role, bucket=bucket, folder=folder)
    aws.clear()
    made.log_in()
    made.set_up()
    yield made
    aws.clear()
