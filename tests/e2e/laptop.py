"""A user of the command line: a machine with folders and a configuration of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

STEP = '"event": "step"'


@dataclass(kw_only=True)
class UsersMachine:
    """`env` and `set_up` are each vendor's."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "LAUNCH_HOME": str(self.folder / "home"), "LAUNCH_CONFIG_DIR": str(self.folder / "config"),
            "NO_COLOR": "1", "COLUMNS": "80", "LAUNCH_OWNER": self.folder.name, "LAUNCH_POLL_S": "0.6",
        }  # fmt: skip

    def launch(
        self, *args: str, cwd: Path | None = None, timeout: float = 300, said: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher.cli", *args], cwd=cwd or self.folder, env={**os.environ, **self.env},
            input=said, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def start(self, *args: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """`launch ARGS` in a process group of its own; the caller ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "launcher.cli", *args], cwd=cwd or self.folder, env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip

    def show(self, *job: str) -> Mapping[str, object]:
        done = self.launch("show", *job, "--json")
        assert done.returncode == 0, done.stderr
        found: Mapping[str, object] = json.loads(done.stdout)
        return found


class CloudLaptop(UsersMachine):
    """A machine that is set up for one vendor's backend; `cloud` is the vendor's emulator."""

    backend: ClassVar[str]

    @property
    def cloud(self) -> Any:
        raise NotImplementedError

    def log_in(self) -> None:
        """What the user types when a login has expired."""
        self.cloud.login()

    def jobs_there(self) -> list[str]:
        """Names of the jobs that the vendor has."""
        raise NotImplementedError

    def uploads(self) -> int:
        """How many objects launch has sent."""
        raise NotImplementedError

    def objects(self) -> list[str]:
        """Of everything that is stored."""
        raise NotImplementedError

    def asked(self) -> int:
        """How many requests the vendor has had."""
        return len(self.cloud.calls)
