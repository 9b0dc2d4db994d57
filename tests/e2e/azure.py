"""An emulated Azure subscription as a user of the command line has it: signed in, `launch setup` done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.laptop import UsersMachine
from tests.emulators.azureml.emulator import AzureMLEmulator


@dataclass(kw_only=True)
class AzureLaptop(UsersMachine):
    """One user's machine: its folders, and the subscription that it works with."""

    azure: AzureMLEmulator

    @property
    def env(self) -> dict[str, str]:
        return {**super().env, **self.azure.environment}

    def set_up(self) -> None:
        """`launch setup azureml`, as a user types it."""
        azure = self.azure
        done = self.launch(
            "setup", "azureml", "--subscription", azure.subscription, "--resource-group", azure.group,
            "--workspace", azure.workspace, "--key-vault", azure.vault, "--identity", azure.identity,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@contextmanager
def laptop(azure: AzureMLEmulator, folder: Path) -> Iterator[AzureLaptop]:
    """A laptop that is signed in and set up, with nothing wrong at Azure."""
    folder.mkdir(parents=True, exist_ok=True)
    made = AzureLaptop(azure=azure, folder=folder)
    azure.clear()
    made.set_up()
    yield made
    azure.clear()
