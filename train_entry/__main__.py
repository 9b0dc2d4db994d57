"""What a container executes, `python -m train_entry`: readies the image, runs the ranks, says how it ended.

Standard library only, so that it starts in any image with Python 3.11. SIGTERM is passed on to the ranks,
also during set-up. Exit status: 0 done, 143 checkpointed and stopped, anything else failed; state.json in
LAUNCH_OUTPUT_DIR says the same for a backend that keeps no exit status.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

from train_entry.cluster import Cluster
from train_entry.config import JobFileError, read_job
from train_entry.events import EventWriter, hush, say
from train_entry.failure import JobError, classify, write_atomic, write_failure
from train_entry.masking import mask, set_names

PREEMPTED = 143
TORCH_AT_LEAST = (2, 6)
QUIET = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "DO_NOT_TRACK": "1",
}
"""A log that people can read, and libraries that do not call home."""
NEEDED = ("LAUNCH_INPUT_DIR", "LAUNCH_OUTPUT_DIR", "LAUNCH_CHECKPOINT_DIR")


class Entry:
    """One start of the job on this node."""

    def __init__(self) -> None:
        self.outputs = Path(os.environ["LAUNCH_OUTPUT_DIR"])
        self.inputs = Path(os.environ["LAUNCH_INPUT_DIR"])
        self.work = self.outputs / ".work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.stop_file = self.work / "stop"
        for old in (self.stop_file, self.outputs / "state.json", self.outputs / "failure.json"):
            old.unlink(missing_ok=True)
        for old in self.work.glob("rank-*.pid"):
            old.unlink()
        self.run = secrets.token_hex(4)
        self.writer = EventWriter(self.outputs / "events.jsonl", self.run)
        self.child: subprocess.Popen[bytes] | None = None
        self.direct = True

    def main(self) -> int:
        """Everything; returns the exit status and leaves state.json."""
        signal.signal(signal.SIGTERM, self.forward)
        try:
            self.writer.emit("phase", name="setup")
            job = read_job(self.inputs / "job.json")
            set_names(job.secrets)
            self.install_missing()
            code = PREEMPTED if self.stop_file.exists() else self.start()
        except Exception as exc:  # noqa: BLE001 - whatever it was, failure.json must say it
            error = JobError("config", str(exc)) if isinstance(exc, JobFileError) else classify(exc)
            write_failure(self.outputs, error, exc)
            say(mask(f"failed ({error.kind}): {error.message}"), sys.stderr)
            code = 1
        if code not in (0, PREEMPTED):
            self.tell_failure(code)
        state = {0: "succeeded", PREEMPTED: "stopped"}.get(code, "failed")
        write_atomic(
            self.outputs / "state.json",
            json.dumps({"run": self.run, "state": state, "exit": code}).encode(),
        )
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is decided
        return code if code in (0, PREEMPTED) else 1

    def install_missing(self) -> None:
        """Install the pinned packages that the image lacks or has otherwise; torch is never replaced."""
        missing = missing_packages(Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8"))
        if not missing:
            return
        if os.environ.get("LAUNCH_INSTALL") == "never":  # the user's own environment
            say(f"not as pinned, used as it is: {' '.join(missing)}")
            return
        say(f"installing {len(missing)} packages: {' '.join(missing)}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *missing]
        self.child = subprocess.Popen(command)
        if self.stop_file.exists():
            self.forward()
        code = self.child.wait()
        self.child = None
        if code and not self.stop_file.exists():
            raise JobError(
                "setup",
                f"pip could not install {' '.join(missing)}",
                "use an image that has them, or give the job a way to a package index",
            )

    def start(self) -> int:
        """Run the ranks to their end, passing on their output without the secrets' values."""
        cluster = Cluster.from_environment()
        command = cluster.command()
        self.direct = command[-1] == command[2]
        env = {**os.environ, **QUIET, "LAUNCH_RUN": self.run, "LAUNCH_PARENT": str(os.getpid())}
        self.child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if self.stop_file.exists():  # a signal came while the child was being made
            self.forward()
        assert self.child.stdout is not None
        for line in self.child.stdout:
            shown = mask(line.decode(errors="surrogateescape"))
            try:
                sys.stdout.buffer.write(shown.encode(errors="surrogateescape"))
                sys.stdout.buffer.flush()
            except BrokenPipeError:  # whoever read the log is gone; the job is not
                hush(sys.stdout)
        code = self.child.wait()
        # A rank that had no time to set its handler dies of the signal itself; torchrun answers 1 for a stop.
        stopped = self.stop_file.exists() and not (self.outputs / "failure.json").exists()
        return PREEMPTED if stopped and code != 0 else code

    def forward(self, *_: object) -> None:
        """SIGTERM: leave the stop file for ranks that are still starting, and signal those that run."""
        with contextlib.suppress(FileNotFoundError):  # the job is done and has tidied up
            self.stop_file.touch()
        if self.child is not None and self.direct:
            self.child.send_signal(signal.SIGTERM)
            return
        for note in self.work.glob("rank-*.pid"):
            with contextlib.suppress(OSError):
                os.kill(int(note.read_text()), signal.SIGTERM)

    def tell_failure(self, code: int) -> None:
        """The failure event: what the ranks left in failure.json, or what the exit status says."""
        path = self.outputs / "failure.json"
        if not path.exists():
            if code == -signal.SIGKILL:
                error = JobError(
                    "killed",
                    "the training process was killed (SIGKILL); most often the machine ran out of memory",
                    "lower train.micro_batch or data.max_length, or resume on a larger machine",
                )
            else:
                error = JobError("error", f"the training process ended with status {code}", "see the log")
            write_failure(self.outputs, error, None)
        failure = json.loads(path.read_text(encoding="utf-8"))
        told = {k: failure[k] for k in ("kind", "message", "hint")}
        # A new writer: the ranks have numbered events of this run too.
        EventWriter(self.outputs / "events.jsonl", self.run).emit("failure", **told)


def missing_packages(requirements: str) -> list[str]:
    """The `name==version` lines that this environment does not satisfy.

    Raises JobError("setup") when torch is older than 2.6.
    """
    missing = []
    for line in requirements.splitlines():
        pin = line.split("#")[0].strip()
        if not pin:
            continue
        name, _, version = pin.partition("==")
        try:
            have = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(pin)
            continue
        if name == "torch":
            if tuple(int(p) for p in have.split(".")[:2]) < TORCH_AT_LEAST:
                raise JobError("setup", f"the image's torch {have} is older than 2.6", "use a newer image")
        elif have.split("+")[0] != version:
            missing.append(pin)
    return missing


if __name__ == "__main__":
    if absent := [name for name in NEEDED if not os.environ.get(name)]:
        sys.exit(f"{', '.join(absent)} not set: folders of the job, its output and its checkpoints")
    sys.exit(Entry().main())
