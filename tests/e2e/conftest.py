"""Launchers that run beside the test; what they leave running is stopped by pid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.jobs import family

INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from launcher.cli import main; main()"
)
"""The launcher with Ctrl-C in force: what runs in the background of a script inherits it as ignored."""


@pytest.fixture
def start(home: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `launch ARGS` and returns the process; whatever still runs at the end is stopped by pid."""
    begun: list[subprocess.Popen[str]] = []

    def run(*args: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE, *args], cwd=cwd or tmp_path, text=True, start_new_session=True,
            env={**os.environ, "LAUNCH_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "80"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        begun.append(process)
        return process

    yield run
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()
    for note in home.glob("jobs/*/process.json"):
        pid = json.loads(note.read_text())["pid"]
        for each in family(pid):
            each.kill()
