"""The training environment: a venv built once from train_entry/requirements.txt, cached by its hash.

Built beside its final place and renamed into it, so that it is whole or absent, also when two launchers build
at once or one is killed. Only `python -m ...` is used in it: a venv's scripts do not survive the rename.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import psutil

from backends.base import Progress
from backends.local.machine import gpus
from launcher.errors import BackendError


class TrainingEnvironment:
    """The environment under `cache`, or the user's own python (LAUNCH_TRAIN_PYTHON)."""

    def __init__(self, cache: Path) -> None:
        own = os.environ.get("LAUNCH_TRAIN_PYTHON")
        self._own = _named(own) if own else None
        self._cache = cache / "environments"

    @property
    def brought(self) -> bool:
        """True when the user brings the python: nothing is installed into it."""
        return self._own is not None

    def folder(self) -> Path:
        """Where the environment of these pins, this Python and this kind of machine is."""
        text = files("train_entry").joinpath("requirements.txt").read_text(encoding="utf-8")
        kind = f"{text}{platform.python_version()}{sysconfig.get_platform()}{bool(gpus())}"
        return self._cache / hashlib.sha256(kind.encode()).hexdigest()[:16]

    def python(self) -> Path:
        """The interpreter that trains."""
        return self._own or _python_of(self.folder())

    def ready(self) -> bool:
        """True when the interpreter is there and starts."""
        try:
            done = subprocess.run([self.python(), "-c", "pass"], check=False, capture_output=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def make(self, progress: Progress) -> Path:
        """Build the environment if it is not there or broken; the interpreter. Raises BackendError."""
        if self.ready():
            return self.python()
        if self._own is not None:
            raise BackendError(
                f"LAUNCH_TRAIN_PYTHON names {self._own}, which does not start",
                "name a Python >= 3.11 with torch >= 2.6, or unset it to have an environment built",
            )
        target = self.folder()
        self._cache.mkdir(parents=True, exist_ok=True)
        self._sweep()
        building = self._cache / f"building-{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        try:
            self._build(building, progress)
            if not self.ready():  # else another launcher was first: its environment is as good, and in use
                shutil.rmtree(target, ignore_errors=True)
                self._put_in_place(building)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        progress("the training environment is ready")
        return self.python()

    def _put_in_place(self, building: Path) -> None:
        try:
            building.rename(self.folder())
        except OSError as exc:
            if not self.ready():  # not the race against another launcher
                raise BackendError(
                    f"the training environment can't be moved to {self.folder()}: {exc}",
                    "set LAUNCH_CACHE_DIR to another folder",
                ) from exc

    def _build(self, folder: Path, progress: Progress) -> None:
        requirements = Path(str(files("train_entry").joinpath("requirements.txt")))
        torch = next(
            line for line in requirements.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")
        )
        log = self._cache / f"{self.folder().name}.log"
        log.write_text("", encoding="utf-8")
        progress(f"building the training environment ({torch} and what it needs; once, some minutes)")
        _run([sys.executable, "-m", "venv", str(folder)], log)
        pip = [str(_python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--no-compile"]
        if not gpus():
            # A CPU build is a tenth of the size; where pip knows of none, the requirements bring the usual one.
            progress(f"installing {torch}, CPU build")
            if _run([*pip, f"{torch}+cpu"], log, check=False):
                progress("no CPU build of torch found; taking the default one")
        progress("installing transformers, peft, trl and the rest")
        _run([*pip, "-r", str(requirements)], log)

    def _sweep(self) -> None:
        """Remove what killed builds left."""
        for left in self._cache.glob("building-*"):
            pid = left.name.removeprefix("building-")
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(left, ignore_errors=True)


def _named(own: str) -> Path:
    """The interpreter by its whole path: a job starts in a folder of its own. Links stay, a venv is one."""
    path = Path(own).expanduser()
    return Path(shutil.which(path) or path).absolute()


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _run(command: Sequence[str], log: Path, check: bool = True) -> int:
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code and check:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise BackendError(
            f"building the training environment failed: {' '.join(tail)}",
            f"the whole output is in {log}; LAUNCH_TRAIN_PYTHON lets you bring an environment of your own",
        )
    return code
