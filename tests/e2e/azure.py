"""An emulated Azure subscription as a user of the command line has it: signed in, `launch setup` done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.laptop import CloudLaptop
from tests.emulators.azureml.emulator import AzureMLEmulator


@dataclass(kw_only=True)
class AzureLaptop(CloudLaptop):
    """One user's machine: its folders, and the subscription that it works with."""

    backend = "azureml"
    azure: AzureMLEmulator

    @property
    def cloud(self) -> AzureMLEmulator:
        return self.azure

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, **self.azure.environment}

    def set_up(self) -> None:
        """`launch setup azureml`, as a user types it."""
        done = self.launch("setup", "azureml", "--find", "--identity", self.azure.identity)
        assert done.returncode == 0, done.stderr

    def jobs_there(self) -> list[str]:
        return self.azure.jobs()

    def uploads(self) -> int:
        return len(self.azure.calls("PutBlob"))

    def objects(self) -> list[str]:
        return list(self.azure.blobs("finelaunch/"))

    def asked(self) -> int:
        return len(self.azure.calls())


@contextmanager
def laptop(azure: AzureMLEmulator, folder: Path) -> Iterator[AzureLaptop]:
    """A laptop that is signed in and set up, with nothing wrong at Azure."""
    folder.mkdir(parents=True, exist_ok=True)
    made = AzureLaptop(azure=azure, folder=folder)
    azure.clear()
    made.set_up()
    yield made
    azure.clear()
