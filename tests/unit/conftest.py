"""A client whose jobs run in the launcher's own interpreter: without torch each fails, for real, in a second."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.local import process
from launcher.client import Client


@pytest.fixture
def client(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("LAUNCH_TRAIN_PYTHON", sys.executable)
    yield Client(home)
    for note in home.glob("jobs/*/process.json"):
        if found := process.running(note):
            found.kill()
