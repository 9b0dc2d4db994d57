"""A hung rank is found, its stacks are in the log and it is ended: a machine that waits forever is paid for.

Standard library only. Ranks leave a pulse (the time of a file) at every micro-batch of training, every batch of
judging and every block of a checkpoint; __main__ looks at them from outside, since a hung process can't be trusted
to notice. The first rank does so from the judging of the base model on, the others from the training on.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from train_entry.failure import JobError

HANG_MINUTES = 30.0
"""Far above any micro-batch; LAUNCH_HANG_MINUTES sets another, 0 turns the watchdog off."""
DUMP_S = 2.0
"""Within this time a rank has written its stacks."""

_pulse: Path | None = None


def patience_s(env: Mapping[str, str] = os.environ) -> float:
    """Seconds without a pulse that are a hang. Raises JobError("config")."""
    given = env.get("LAUNCH_HANG_MINUTES") or str(HANG_MINUTES)
    try:
        return max(0.0, float(given)) * 60
    except ValueError as exc:
        raise JobError("config", f"LAUNCH_HANG_MINUTES is {given!r}, not a number of minutes") from exc


def begin(work: Path, rank: int) -> None:
    """From here on this rank is watched."""
    global _pulse
    _pulse = work / f"rank-{rank}.pulse"
    beat()


def beat() -> None:
    """This rank works; called in each of its loops. Silent where nobody watches."""
    if _pulse is not None:
        _pulse.touch()


def end() -> None:
    """From here on this rank may be silent: it writes its result, however long that takes."""
    global _pulse
    if _pulse is not None:
        _pulse.unlink(missing_ok=True)
        _pulse = None


def dump_on_request() -> None:
    """Let __main__ ask for the stacks of all threads; answered in C, whatever the interpreter is busy with."""
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)


class Watchdog(threading.Thread):
    """Calls `hung(seconds)` once when no rank of this node has left a pulse for `limit_s`; `ended` stops it.

    All of them: one that waits for another, in a barrier or an all-reduce, has none either.
    """

    def __init__(self, work: Path, limit_s: float, hung: Callable[[float], None]) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self._work, self._limit_s, self._hung = work, limit_s, hung

    def run(self) -> None:
        seen: dict[str, int] = {}
        since = time.monotonic()  # not the files' own times: clocks are set, and machines sleep
        while not self.ended.wait(min(5.0, self._limit_s / 10)):
            now = _pulses(self._work)
            if now != seen or not now:
                seen, since = now, time.monotonic()
            elif (silent := time.monotonic() - since) > self._limit_s:
                self._hung(silent)
                return


def _pulses(work: Path) -> dict[str, int]:
    """File -> time of the last pulse."""
    found = {}
    for path in work.glob("rank-*.pulse"):
        try:
            found[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:  # it has just ended
            continue
    return found
