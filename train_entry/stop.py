"""When the job must stop early: SIGTERM, or the deadline; every rank at the same step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

from train_entry.watchdog import beat

PREEMPTED = 143
"""Exit status of a job that checkpointed and stopped (128 + SIGTERM)."""

SHARED_KEY = "launch/stop"
POLL_S = 0.5
STORE_S = 60
CHECK_S, TIDY_S = 0.1, 5.0
"""How often a long piece of work looks for a stop, and how long it has then to tidy up."""

Found = TypeVar("Found")


class Stopped(Exception):
    """Raised between batches outside of training when the job must stop."""


def unless_stopped(work: Callable[[], Found], check: Callable[[], None]) -> Found:
    """What work() gives; `check` is called meanwhile, and may raise Stopped: a download may take longer than the
    notice before a machine is taken. What ends well within TIDY_S of that is done.

    The work is in a thread, which goes on and which nothing can end: the process must, by `leave`.
    """
    found: list[Found] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as exc:  # noqa: BLE001 - raised below
            failed.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(CHECK_S)
            if thread.is_alive():  # done is done
                check()
    except Stopped:
        _end_children()
        thread.join(TIDY_S)
        if not found:  # a failure is one of its children's end
            raise
    if failed:
        raise failed[0]
    return found[0]


def leave(code: int) -> NoReturn:
    """End this process now, also where a thread is still at work."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_children() -> None:
    """Whatever the work has started, such as pip, is of no use without it."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.terminate()


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
        beat()
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

    def share(self) -> None:
        """Tell the other nodes of a stop on this one, and hear of theirs: one rank a node calls it, once.

        A signal may reach one machine alone, while its ranks wait in a collective that only the first rank
        can end. A thread is not held up by that; the nodes' common store is torchrun's own.
        """
        if os.environ.get("LAUNCH_NODES", "1") == "1" or "MASTER_ADDR" not in os.environ:
            return
        threading.Thread(target=self._share, daemon=True).start()

    def _share(self) -> None:
        from torch.distributed import TCPStore

        try:
            store = TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                wait_for_workers=False, timeout=timedelta(seconds=STORE_S),
            )  # fmt: skip
            while not self._stop_file.exists() and not self._signalled:
                if store.check([SHARED_KEY]):
                    self._signalled = True
                    self._stop_file.touch()
                    return
                time.sleep(POLL_S)
            store.set(SHARED_KEY, "1")
        except (RuntimeError, OSError):  # the store or the job is gone: the ranks notice by themselves
            return

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
