"""An emulated Google Cloud project as a user of the command line has it: logged in, `launch setup` done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.laptop import CloudLaptop
from tests.emulators.vertex.emulator import VertexEmulator


@dataclass(kw_only=True)
class Laptop(CloudLaptop):
    """One user's machine, and the project that it works with."""

    backend = "vertex"
    google: VertexEmulator
    account: str
    bucket: str

    @property
    def cloud(self) -> VertexEmulator:
        return self.google

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, **self.google.environment}

    def set_up(self) -> None:
        """`launch setup vertex`, as a user types it."""
        google = self.google
        done = self.launch(
            "setup", "vertex", "--project", google.project, "--region", google.region, "--bucket", self.bucket,
            "--service-account", self.account,
            "--image", f"us-central1-docker.pkg.dev/{google.project}/finelaunch/train:1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def jobs_there(self) -> list[str]:
        return self.google.job_names()

    def objects(self) -> list[str]:
        return [blob.name for blob in self.google.storage().list_blobs(self.bucket)]

    def uploads(self) -> int:
        calls = self.google.calls
        return sum((c.operation, c.who, c.service) == ("Upload", "developer", "storage") for c in calls)


@contextmanager
def laptop(google: VertexEmulator, account: str, bucket: str, folder: Path) -> Iterator[Laptop]:
    """A laptop that is set up, with nothing wrong at Google."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Laptop(google=google, account=account, bucket=bucket, folder=folder)
    google.clear()
    made.set_up()
    yield made
    google.clear()
