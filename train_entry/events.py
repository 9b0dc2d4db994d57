"""The one event stream: JSON lines in events.jsonl and, behind a prefix, on stdout.

Every line is {"run", "seq", "time", "event", ...}. `run` is drawn at each start of the process and `seq`
counts within it, so a reader that sees a line twice knows it. Kinds and their fields:

phase       name: setup | data | baseline | train | evaluate | save
data        train_rows, eval_rows, train_tokens, dropped, truncated, labels
packing     kind: prefix | flat | padded | sequences, why, micro (rows a pass), passes (a step)
step        step, total_steps, epoch, loss, lr, grad_norm, tokens, tokens_per_s, step_s, peak_gib
eval_loss   step, loss
eval        which: baseline | tuned, metrics (as in metrics.json)
checkpoint  step, path
resumed     step, path, changed: fields of the job that differ from the checkpoint's ("field: old -> new")
micro_batch step, rows, was: out of memory in this step; it goes on with `rows` a forward pass, the same batch
stopped     step, reason: signal | orphaned | deadline | dry_run
failure     kind, message, hint
done        steps, train_s, tokens_per_s, step_s, peak_gib, artifact (folder in the output), files
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from train_entry.masking import mask

PREFIX = "::launch:: "
SHOWN = ("checkpoint", "stopped", "failure", "done")
"""After these events a file that is kept elsewhere is copied to where it is looked for."""


class EventWriter:
    """Appends events to `path` and to stdout; a torn last line of a killed process is ended first.

    `shown`: where the file is looked for; kept up to date after the events in SHOWN when it is another.
    """

    def __init__(self, path: Path, run: str, shown: Path | None = None) -> None:
        self._path = path
        self._shown = shown if shown != path else None
        self._run = run
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._seq = self._count_own_lines()

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event; it is on disk and flushed to stdout when this returns."""
        with self._lock:
            record = {
                "run": self._run,
                "seq": self._seq,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": event,
                **fields,
            }
            self._seq += 1
            line = mask(json.dumps(record, ensure_ascii=False, allow_nan=False, default=str))
            try:
                with self._path.open("ab") as file:
                    file.write(line.encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
            finally:  # on a full disk the log alone has it
                say(f"{PREFIX}{line}")
            if self._shown is not None and event in SHOWN:
                # An object store has no folder before there is a file in it, and its mount wants one.
                self._shown.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._path, self._shown)

    def _count_own_lines(self) -> int:
        """Lines of this run already written (by the parent process); ends a torn line."""
        if not self._path.exists():
            return 0
        data = self._path.read_bytes()
        if data and not data.endswith(b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")
        mark = f'"run": "{self._run}"'.encode()
        return sum(mark in line for line in data.splitlines())


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line (default: to stdout). A dead reader ends nothing: the job must reach its checkpoint."""
    stream = stream or sys.stdout
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except BrokenPipeError:
        hush(stream)


def hush(stream: TextIO) -> None:
    """Send what is written to a broken stream, by this process and its libraries, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def from_environment() -> EventWriter:
    """The writer of this process: LAUNCH_OUTPUT_DIR/events.jsonl, the run and the file drawn by `__main__`."""
    shown = Path(os.environ["LAUNCH_OUTPUT_DIR"]) / "events.jsonl"
    path = Path(os.environ.get("LAUNCH_EVENTS_FILE") or shown)
    return EventWriter(path, os.environ.get("LAUNCH_RUN", "solo"), shown)


def parse(line: str) -> dict[str, Any] | None:
    """The event in one line of a log, or None for any other line."""
    at = line.find(PREFIX)
    if at < 0:
        return None
    try:
        record = json.loads(line[at + len(PREFIX) :])
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and {"run", "seq", "event"} <= record.keys() else None
