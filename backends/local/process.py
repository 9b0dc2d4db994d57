"""A job's process on this machine: started apart from the launcher, known again by pid and start time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from launcher.errors import JobFailedError
from train_entry.failure import write_atomic

TAIL = 12
"""Lines kept to tell why a process failed."""

if sys.platform == "win32":  # it knows no sessions: a group and a console of its own keep Ctrl-C away
    DETACHED = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
else:
    DETACHED = 0

_children: dict[int, subprocess.Popen[bytes]] = {}
"""What this launcher started itself: asked for its end, so that a process that is over leaves the table."""


def start(command: Sequence[str], env: Mapping[str, str], folder: Path, log: Path, note: Path) -> None:
    """Start `command` as its own session, its output appended to `log`; `note` remembers which process it is."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal, or its end, is not the job's
            creationflags=DETACHED,
        )
    _children[process.pid] = process
    remember(psutil.Process(process.pid), note, datetime.now(UTC))


def stream(command: Sequence[str], env: Mapping[str, str]) -> Iterator[str]:
    """Run `command` in the foreground; its lines as they come. It is stopped when the reader stops.

    Raises JobFailedError with the last lines when it does not exit with 0.
    """
    tail: deque[str] = deque(maxlen=TAIL)
    process = subprocess.Popen(
        list(command), env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    output = process.stdout
    assert output is not None
    try:
        for line in output:
            tail.append(line.rstrip("\n"))
            yield tail[-1]
        if process.wait():
            raise JobFailedError(
                f"{' '.join(command[1:])} ended with status {process.returncode}", "launch doctor", log_tail=tail
            )
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        output.close()


def remember(process: psutil.Process, note: Path, began: datetime | None = None) -> None:
    """Note which process it is; `began`: its start by the clock (None: as the system tells, coarsely)."""
    created = process.create_time()
    began = began or datetime.fromtimestamp(created, UTC)
    body = {"pid": process.pid, "created": created, "started": began.isoformat()}
    write_atomic(note, json.dumps(body).encode())


def find(mark: str, folder: Path) -> psutil.Process | None:
    """A running `python -m train_entry MARK` in `folder`, for a launcher that died before it noted the pid."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if line[-2:] == ["train_entry", mark] and _lives(process) and _works_in(process, folder):
            return process
    return None


def running(note: Path) -> psutil.Process | None:
    """The noted process, if it still runs; a pid that another process has by now is not it.

    The time of its start moves with the clock that is set: then it is known by its command line and its folder.
    """
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        process = psutil.Process(known["pid"])
        job = note.parent
        same = abs(process.create_time() - known["created"]) < 1.0 or (
            process.cmdline()[-2:] == ["train_entry", job.name] and _works_in(process, job / "output")
        )
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return process if same and _lives(process) else None


def started(note: Path) -> datetime | None:
    """When the noted process began; None without a note."""
    try:
        return datetime.fromisoformat(json.loads(note.read_text(encoding="utf-8"))["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ask_to_stop(process: psutil.Process, stop_file: Path) -> None:
    """SIGTERM to the entrypoint, which passes it on and checkpoints.

    On Windows a signal would end it there and then, and leave its ranks running: there it is the file that they
    look for after each step.
    """
    if sys.platform == "win32":
        stop_file.parent.mkdir(parents=True, exist_ok=True)
        stop_file.touch()
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)


def _works_in(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return Path(process.cwd()).resolve() == folder.resolve()
    return False


def _lives(process: psutil.Process) -> bool:
    own = _children.get(process.pid)
    if own is not None and own.poll() is not None:
        del _children[process.pid]
        return False
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
