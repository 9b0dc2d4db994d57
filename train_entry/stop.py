"""When the job must stop early: SIGTERM, or the deadline; every rank at the same step."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

PREEMPTED = 143
"""Exit status of a job that checkpointed and stopped (128 + SIGTERM)."""


class Stopped(Exception):
    """Raised between batches outside of training when the job must stop."""


class StopWatch:
    """Knows why the job must stop now: "signal", "orphaned", "deadline" or None. The handler only sets a flag.

    __main__ also leaves a file, for a signal that came before this process could handle it.
    """

    def __init__(self, stop_file: Path) -> None:
        self._started = time.time()
        self._deadline: float | None = None
        self._stop_file = stop_file
        self._signalled = False
        self._parent = os.getppid()
        self.waiting = False
        """True while this rank only waits for another: then a signal ends it at once."""
        signal.signal(signal.SIGTERM, self._note)

    def set_limit(self, max_hours: float | None) -> None:
        """Stop this many hours after the start of this process, and before LAUNCH_DEADLINE (Unix seconds)."""
        deadline = os.environ.get("LAUNCH_DEADLINE")
        limits = [float(deadline)] if deadline else []
        if max_hours is not None:
            limits.append(self._started + max_hours * 3600)
        self._deadline = min(limits, default=None)

    def reason(self) -> str | None:
        """This process's own reason; ranks agree through `agreed`."""
        if self._signalled or self._stop_file.exists():
            return "signal"
        if self._orphaned():
            return "orphaned"
        if self._deadline is not None and time.time() >= self._deadline:
            return "deadline"
        return None

    def agreed(self) -> str | None:
        """The reason of any rank, the same on all: call it at the same place on each."""
        import torch.distributed as dist

        own = self.reason()
        if not (dist.is_available() and dist.is_initialized()):
            return own
        reasons: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, own)
        return next((r for r in reasons if r), None)

    def _orphaned(self) -> bool:
        """True when __main__, which started this process, is gone: nobody would learn how this ends."""
        entry = os.environ.get("LAUNCH_PARENT")
        if entry is None or os.name == "nt":
            return False
        if os.getppid() != self._parent:
            return True
        try:
            os.kill(int(entry), 0)  # under torchrun it is not the direct parent
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _note(self, *_: object) -> None:
        self._signalled = True
        if self.waiting:
            os._exit(PREEMPTED)
