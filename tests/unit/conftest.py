"""A client whose jobs run in the launcher's own interpreter: without torch each fails, for real, in a second.

And a server on this machine that plays the vendors' price lists.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.local import process
from launcher.client import Client
from tests.unit.price_vendor import Read, Vendor, reader


@pytest.fixture
def client(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("LAUNCH_TRAIN_PYTHON", sys.executable)
    yield Client(home)
    for note in home.glob("jobs/*/process.json"):
        if found := process.running(note):
            found.kill()


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Vendor]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Vendor()
    yield server
    server.close()


@pytest.fixture
def pauses() -> list[float]:
    """How long the reader of price lists would have waited, in order."""
    return []


@pytest.fixture
def read(vendor: Vendor, pauses: list[float]) -> Read:
    return reader(vendor.url, pauses)
