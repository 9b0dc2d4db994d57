"""Starts of the training process that cost no imports: a process that has made them all, and forks.

`python warm.py` reads a JSON line a start {"env", "cwd"}, answers with the child's pid and, once it has
ended, with its status. The child is `python -m train_entry.train` from there on: the same code, the same files.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import tiny

QUIET = {
    "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


class WarmStarts:
    """One start of the training process after another, each in a child of its own."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **QUIET, "PYTHONPATH": str(tiny.ROOT)},
        )  # fmt: skip
        self._read()
        self._starts = 0

    def start(self, job: tiny.Job, **more: str) -> int:
        """Start the job's training process, its output in job.root/log.txt; its pid."""
        self._starts += 1
        job.outputs.mkdir(exist_ok=True)
        env = job.environment(LAUNCH_RUN=f"run{self._starts}", **{**QUIET, **more})
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"env": env, "cwd": str(job.root)}) + "\n")
        self._server.stdin.flush()
        return int(self._read())

    def wait(self) -> int:
        """How the child that was started last has ended: its exit status, or minus the signal."""
        return int(self._read())

    def run(self, job: tiny.Job, **more: str) -> tuple[int, str]:
        """(exit status, log of all its starts) of a start that is left alone."""
        self.start(job, **more)
        return self.wait(), (job.root / "log.txt").read_text(encoding="utf-8")

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()

    def _read(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError("the warm process has ended")
        return line.strip()


MODULES = (
    "sklearn.metrics", "torch.profiler", "transformers.models.llama.modeling_llama", "train_entry.artifact",
    "train_entry.dropout", "train_entry.evaluate", "train_entry.loop", "train_entry.models", "train_entry.train",
)  # fmt: skip


def serve() -> None:
    for name in MODULES:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    print("ready", file=answers)
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(wanted)
        print(pid, file=answers)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers)


def become(wanted: dict[str, object]) -> None:
    """Be the training process from here on."""
    from train_entry.train import main

    os.setsid()
    with (Path(str(wanted["cwd"])) / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(str(wanted["cwd"]))
    os.environ.clear()
    os.environ.update(wanted["env"])  # type: ignore[arg-type]
    code = 1
    try:
        code = main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
