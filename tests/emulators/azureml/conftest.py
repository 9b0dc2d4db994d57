"""One emulated subscription for the tests of the backend's parts, sound again after each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.emulators.azureml.emulator import AzureMLEmulator


@pytest.fixture(scope="session")
def subscription() -> Iterator[AzureMLEmulator]:
    AzureMLEmulator.needed()
    with AzureMLEmulator(grace_s=5) as made:
        yield made


@pytest.fixture
def signed_in(subscription: AzureMLEmulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureMLEmulator]:
    for name, value in subscription.environment.items():
        monkeypatch.setenv(name, value)
    yield subscription
    subscription.clear()
