"""SkyPilot's own venv, built once from requirements.txt, and the calls into it: JSON lines through worker.py.

SkyPilot 0.14.1 needs click<8.2 and so can't live beside the launcher. Built beside its final place and renamed
into it: whole or absent. Only `bin/python` is used in it: a venv's scripts do not survive the rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.base import Progress
from launcher.errors import BackendError

HERE = Path(__file__).parent
WORKER = HERE / "worker.py"
REQUIREMENTS = HERE / "requirements.txt"
CALL_TIMEOUT_S = 180
VERSION = 1
"""Of the lines that go to and from worker.py."""
FIX = "launch setup skypilot --install"


class SkyPilotEnvironment:
    """The environment under `cache`, or the user's own python (LAUNCH_SKYPILOT_PYTHON)."""

    def __init__(self, cache: Path) -> None:
        own = os.environ.get("LAUNCH_SKYPILOT_PYTHON")
        # Not resolved: a venv's python is a link, and says by its place which venv it is.
        self._own = Path(shutil.which(own) or own).expanduser().absolute() if own else None
        self._cache = cache

    def folder(self) -> Path:
        """Where the environment of these pins and this Python is."""
        text = f"{REQUIREMENTS.read_text(encoding='utf-8')}{platform.python_version()}{platform.machine()}"
        return self._cache / "environments" / f"skypilot-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def python(self) -> Path:
        """Its interpreter."""
        return self._own or _python_of(self.folder())

    def ready(self) -> bool:
        """True when the environment is built."""
        return self.python().is_file()

    def make(self, progress: Progress) -> Path:
        """Build the environment if it is not there; the interpreter. Raises BackendError."""
        if self.ready():
            progress(f"SkyPilot's environment is ready: {self.python()}")
            return self.python()
        if self._own is not None:
            raise BackendError(
                f"LAUNCH_SKYPILOT_PYTHON names {self._own}, which is not there",
                "name the python of a venv with SkyPilot, or unset it to have one built",
            )
        target = self.folder()
        building = target.with_name(f"building-{target.name}-{os.getpid()}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            progress("building SkyPilot's environment (once, some minutes)")
            _build(building, target.with_suffix(".log"))
            _put_in_place(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        progress("SkyPilot's environment is ready")
        return self.python()

    def call(self, op: str, argument: Mapping[str, Any]) -> Any:
        """What the worker answers to `op`. Raises BackendError when it can't."""
        home = self._cache / "skypilot-home"
        home.mkdir(parents=True, exist_ok=True)
        env = {
            **os.environ,
            # A home of its own: neither the user's configuration nor their clusters have a say in a check.
            "HOME": str(home),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        env.pop("PYTHONPATH", None)
        line = json.dumps({"version": VERSION, "op": op, "argument": argument}) + "\n"
        try:
            done = subprocess.run(
                [self.python(), WORKER], input=line, env=env, cwd=home, capture_output=True, text=True,
                timeout=CALL_TIMEOUT_S, check=False,
            )  # fmt: skip
            answer = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as exc:
            said = done.stderr.strip().splitlines()[-1:] if isinstance(exc, ValueError) else [str(exc)]
            raise BackendError(
                f"SkyPilot's environment does not answer: {' '.join(said)}",
                f"remove {self.python().parent.parent}, then {FIX}",
            ) from exc
        if "error" in answer:
            raise BackendError(f"SkyPilot: {answer['error']}", f"remove {self.python().parent.parent}, then {FIX}")
        return answer["result"]


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _build(folder: Path, log: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    log.write_text("", encoding="utf-8")
    _run([sys.executable, "-m", "venv", str(folder)], log)
    pip = [str(_python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check"]
    _run([*pip, "-r", str(REQUIREMENTS)], log)
    _run([str(_python_of(folder)), "-c", "import sky"], log)


def _put_in_place(building: Path, target: Path) -> None:
    try:
        building.rename(target)
    except OSError as exc:
        if not _python_of(target).is_file():  # not the race against another launcher
            raise BackendError(
                f"SkyPilot's environment can't be moved to {target}: {exc}",
                "set LAUNCH_CACHE_DIR to another folder",
            ) from exc


def _run(command: Sequence[str], log: Path) -> None:
    env = {**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env, check=False).returncode
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise BackendError(
            f"building SkyPilot's environment failed: {' '.join(tail)}",
            f"the whole output is in {log}; LAUNCH_SKYPILOT_PYTHON lets you bring an environment of your own",
        )
