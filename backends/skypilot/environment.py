"""SkyPilot's own venv, built once from requirements.txt, and the calls into it: JSON lines through worker.py.

SkyPilot 0.14.1 needs click<8.2 and so can't live beside the launcher. Built beside its final place and renamed
into it: whole or absent. A list of its files says later whether it still is. Of its scripts `bin/sky` alone is
used, which is ours: a venv's own do not survive the rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.base import Progress
from backends.skypilot import building
from launcher.errors import BackendError, ConfigError

HERE = Path(__file__).parent
WORKER = HERE / "worker.py"
REQUIREMENTS = HERE / "requirements.txt"
CALL_TIMEOUT_S = 180
VERSION = 1
"""Of the lines that go to and from worker.py."""
FIX = "launch doctor --fix"
CLOUDS = (
    "aws", "azure", "gcp", "kubernetes", "lambda", "runpod", "nebius", "oci", "ibm", "scp", "fluidstack", "cudo",
    "paperspace", "primeintellect", "do", "vast", "vsphere", "hyperbolic", "seeweb", "mithril", "shadeform",
    "yotta", "verda", "ssh", "slurm",
)  # fmt: skip
"""Extras of SkyPilot 0.14.1 that hold what it needs of a cloud."""


class SkyPilotEnvironment:
    """The environment under `cache`, or the user's own python (LAUNCH_SKYPILOT_PYTHON)."""

    def __init__(self, cache: Path, home: Path | None = None) -> None:
        """`home`: where the chosen clouds are kept; None: no cloud's SDK is wanted."""
        own = os.environ.get("LAUNCH_SKYPILOT_PYTHON")
        # Not resolved: a venv's python is a link, and says by its place which venv it is.
        self._own = Path(shutil.which(own) or own).expanduser().absolute() if own else None
        self._cache = cache
        self._chosen = home / "skypilot-clouds" if home else None

    def clouds(self) -> list[str]:
        """Those whose SDKs the environment holds beside Slurm's, as they were chosen."""
        if self._chosen is None or not self._chosen.is_file():
            return []
        return self._chosen.read_text(encoding="utf-8").split()

    def choose(self, clouds: Sequence[str]) -> None:
        """The next `make` builds an environment for these clouds. Raises ConfigError for one that is none."""
        for cloud in clouds:
            if cloud not in CLOUDS:
                raise ConfigError(f"--clouds: SkyPilot knows no {cloud!r}", f"there are: {', '.join(CLOUDS)}")
        assert self._chosen is not None
        self._chosen.parent.mkdir(parents=True, exist_ok=True)
        self._chosen.write_text("".join(f"{cloud}\n" for cloud in sorted(set(clouds))), encoding="utf-8")

    def requirements(self) -> str:
        """What pip is given: the pin, with the chosen clouds."""
        extras = ",".join(sorted({*self.clouds(), "slurm"}))
        return REQUIREMENTS.read_text(encoding="utf-8").replace("skypilot[slurm]", f"skypilot[{extras}]")

    def folder(self) -> Path:
        """Where the environment of these pins and this Python is."""
        text = f"{self.requirements()}{platform.python_version()}{platform.machine()}"
        return self._cache / "environments" / f"skypilot-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def python(self) -> Path:
        """Its interpreter."""
        return self._own or building.python_of(self.folder())

    def sky(self) -> str:
        """The command `sky`, as a user can type it."""
        own = self.python().with_name("sky")
        return str(own) if self._own is None and own.is_file() else "sky"

    def ready(self) -> bool:
        """True when the environment is built."""
        return self.python().is_file()

    def damage(self) -> str | None:
        """What is no longer as it was built; None: all is there."""
        return None if self._own is not None else building.damage(self.folder())

    def make(self, progress: Progress) -> Path:
        """Build the environment if it is not there, or not whole; the interpreter. Raises BackendError."""
        damage = self.damage() if self.ready() else None
        if self.ready() and damage is None:
            progress(f"SkyPilot's environment is ready: {self.python()}")
            return self.python()
        if self._own is not None:
            raise BackendError(
                f"LAUNCH_SKYPILOT_PYTHON names {self._own}, which is not there",
                "name the python of a venv with SkyPilot, or unset it to have one built",
            )
        clouds = f" for {', '.join(self.clouds())}" if self.clouds() else ""
        told = f"building SkyPilot's environment{clouds} (once, some minutes)"
        progress(f"{told}: {damage}" if damage else told)
        building.build(self.folder(), self.requirements(), progress)
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
            raise BackendError(f"SkyPilot's environment does not answer: {' '.join(said)}", self._fix()) from exc
        if "error" in answer:
            raise BackendError(f"SkyPilot: {answer['error']}", self._fix())
        return answer["result"]

    def _fix(self) -> str:
        return f"{FIX}; where that does not help, remove {self.python().parent.parent} first"
