"""How long this very job may run: every start of it counts, also one that ended with its machine.

Standard library only. A vendor's hard stop goes on counting when it starts a job again. So must the job's own, or
the hard stop comes first and nothing is checkpointed. What was used stands beside the checkpoints: no other folder
outlives a machine everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from train_entry.failure import JobError, this_job, write_atomic

RECORD = "hours.json"
"""In the checkpoint folder: the seconds that the starts of a job have run."""
NOTE_S = 60.0
"""So much of a start is forgotten at most when its machine is taken."""


class Hours(threading.Thread):
    """The hours of this job; once started, keeps on record what is used of them."""

    def __init__(self, checkpoints: Path, began: float) -> None:
        super().__init__(daemon=True)
        self._path = checkpoints / RECORD
        self._job = this_job()
        self._began = began  # Unix seconds
        self._clock = time.monotonic() - (time.time() - began)
        self.before_s = self._read()
        """Seconds that earlier starts have run."""

    def run(self) -> None:
        while True:
            time.sleep(NOTE_S)
            self.note()

    def note(self) -> None:
        """Put on record what is used. A folder that takes nothing must not end the job."""
        if self._job is None:
            return
        used_s = self.before_s + time.monotonic() - self._clock
        with contextlib.suppress(OSError):
            write_atomic(self._path, json.dumps({"job": self._job, "used_s": round(used_s, 1)}).encode())

    def deadline(self, hours: float | None, env: Mapping[str, str] = os.environ) -> float | None:
        """The Unix second at which the job stops itself, None without a limit. Raises JobError("config").

        `hours`: as the job says; else LAUNCH_MAX_HOURS does. The set-up counts too: the vendor's clock has run.
        """
        if hours is None and (given := env.get("LAUNCH_MAX_HOURS")):
            try:
                hours = float(given)
            except ValueError as exc:
                raise JobError("config", f"LAUNCH_MAX_HOURS is {given!r}, not a number of hours") from exc
        if hours is None:
            return None
        own = self._began + hours * 3600 - self.before_s
        return min(own, float(env["LAUNCH_DEADLINE"])) if env.get("LAUNCH_DEADLINE") else own

    def _read(self) -> float:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return max(0.0, float(found["used_s"])) if self._job and found["job"] == self._job else 0.0
        except (OSError, ValueError, LookupError, TypeError):
            return 0.0


def mark_of_hours() -> str | None:
    """This very job with this very limit: with more hours, or as another job, it goes on."""
    limits = [os.environ.get(name) for name in ("LAUNCH_MAX_HOURS", "LAUNCH_DEADLINE")]
    return None if (job := this_job()) is None else f"{job} {limits}"


def hours_are_over(folder: Path) -> bool:
    """Has an earlier start of this very job stopped because its hours were over?"""
    try:
        over = json.loads((folder / "state.json").read_text(encoding="utf-8"))["over"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return over is not None and over == mark_of_hours()
