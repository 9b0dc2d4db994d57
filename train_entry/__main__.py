"""What a container executes, `python -m train_entry`: readies the image, runs the ranks, says how it ended.

Standard library only, so that it starts in any image with Python 3.11. SIGTERM is passed on to the ranks,
also during set-up. Exit status: 0 done, 143 checkpointed and stopped, anything else failed; state.json in
LAUNCH_OUTPUT_DIR says the same for a backend that keeps no exit status. Of several nodes only the first
writes state.json and events.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from train_entry import memory, watchdog
from train_entry.cluster import RENDEZVOUS_S, Cluster
from train_entry.config import JobFileError, TrainJob, read_job
from train_entry.events import EventWriter, hush, say
from train_entry.failure import (
    FAILURE,
    JobError,
    classify,
    failed_before,
    final_failure,
    no_further,
    tell_vendor,
    write_atomic,
    write_failure,
)
from train_entry.folders import work_folder
from train_entry.hours import Hours, hours_are_over, mark_of_hours
from train_entry.masking import mask, set_names
from train_entry.packages import install, installed, missing_packages
from train_entry.secrets import needs_botocore, references, resolve

PREEMPTED = 143
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
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
NEEDED = ("LAUNCH_INPUT_DIR", "LAUNCH_OUTPUT_DIR", "LAUNCH_CHECKPOINT_DIR")
SPAWN_S = 5.0
"""torchrun's ranks have noted their process ids this long after the nodes have met."""


class Entry:
    """One start of the job on this node."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.direct = True
        self.stop_file: Path | None = None
        self.asked = False  # SIGTERM has come
        signal.signal(signal.SIGTERM, self.forward)  # before anything slow, such as counting GPUs
        self.started = time.time()
        self.outputs = Path(os.environ["LAUNCH_OUTPUT_DIR"])
        self.inputs = Path(os.environ["LAUNCH_INPUT_DIR"])
        self.cluster, self.unclear = _cluster()
        self.work = work_folder(self.outputs, self.cluster.rank)
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "stop").unlink(missing_ok=True)
        self.forget_ranks()
        self.stop_file = self.work / "stop"
        if self.asked:
            self.stop_file.touch()
        self.run = secrets.token_hex(4)
        self.events = self._events_file()
        self.hours = Hours(Path(os.environ["LAUNCH_CHECKPOINT_DIR"]), self.started)
        self.final = final_failure(self.outputs)
        self.before = failed_before(self.outputs)
        self.over = hours_are_over(self.outputs)
        if (
            self.first and self.final is None and not self.over
        ):  # another node may have failed already, and said so
            for old in (self.outputs / "state.json", self.outputs / FAILURE):
                old.unlink(missing_ok=True)

    @property
    def first(self) -> bool:
        """Is this the node that tells?"""
        return self.cluster.rank == 0

    @property
    def stopping(self) -> bool:
        """Was this start, or one of its ranks, asked to stop?"""
        return self.asked or (self.stop_file is not None and self.stop_file.exists())

    def main(self) -> int:
        """Everything; returns the exit status and leaves state.json."""
        if self.final is not None:
            return self.give_up(self.final)
        if self.over:
            return self.stay_stopped()
        if self.first:
            self.hours.start()
        try:
            if self.unclear is not None:
                raise self.unclear
            if self.first:
                self.writer().emit("phase", name="setup")
            job = read_job(self.inputs / "job.json")
            code = self.ready(job)
            if code == 0:
                code = self.start(job)
        except Exception as exc:  # noqa: BLE001 - whatever it was, failure.json must say it
            error = JobError("config", str(exc)) if isinstance(exc, JobFileError) else classify(exc)
            self.note(error, exc)
            say(mask(f"failed ({error.kind}): {error.message}"), sys.stderr)
            code = 1
        try:
            if code not in (0, PREEMPTED):
                self.tell_failure(code)
            if self.first:
                self.hours.note()
                self.leave_state({0: "succeeded", PREEMPTED: "stopped"}.get(code, "failed"), code)
        except OSError as exc:  # a full disk must not change how it ended
            say(f"could not write how it ended: {exc}", sys.stderr)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is decided
        return code if code in (0, PREEMPTED) else 1

    def give_up(self, error: JobError) -> int:
        """A vendor has started a job again that can't get further: end at once, and say why once more."""
        say(mask(f"not tried again, since it would fail again ({error.kind}): {error.message}"), sys.stderr)
        tell_vendor(error)
        if self.first:
            self.writer().emit("failure", kind=error.kind, message=error.message, hint=error.hint)
            self.leave_state("failed", 1)
        return 1

    def stay_stopped(self) -> int:
        """A vendor has started a job again whose hours are over: end at once, it would be paid for more."""
        say("not gone on with: its hours are over; launch resume goes on in another job", sys.stderr)
        return PREEMPTED

    def leave_state(self, state: str, code: int) -> None:
        content: dict[str, object] = {"run": self.run, "state": state, "exit": code}
        if code == PREEMPTED and self.stopped_by() == "deadline":
            content["over"] = mark_of_hours()
        write_atomic(self.outputs / "state.json", json.dumps(content).encode())

    def stopped_by(self) -> str | None:
        """The reason that the ranks gave when they stopped: signal, deadline, ..."""
        try:
            lines = self.events.read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        found = None
        for line in lines:
            with contextlib.suppress(ValueError, LookupError, TypeError):  # torn by a crash
                event = json.loads(line)
                if (event["run"], event["event"]) == (self.run, "stopped"):
                    found = str(event["reason"])
        return found

    def ready(self, job: TrainJob) -> int:
        """Packages and secrets; 0, or 143 when a signal came meanwhile."""
        refs = references()
        set_names({*job.secrets, *refs})
        missing = missing_packages(Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8"))
        if needs_botocore(refs) and installed("botocore") is None:
            missing.append("botocore")
        try:
            install(missing, self.inputs, self.work, self.run_tool)
        except JobError:
            if self.stopping:  # the signal ended pip
                return PREEMPTED
            raise
        if self.stopping:
            return PREEMPTED
        os.environ.update(resolve(refs))
        return PREEMPTED if self.stopping else 0

    def run_tool(self, command: Sequence[str], env: dict[str, str]) -> int:
        """Run pip or its like; a signal ends it."""
        self.child = subprocess.Popen(command, env=env)
        if self.stopping:
            self.forward()
        try:
            return self.child.wait()
        finally:
            self.child = None

    def forget_ranks(self) -> None:
        """Remove what the ranks of an earlier start have left in the work folder."""
        left = (FAILURE, memory.AGAIN, "rank-*.pid", "rank-*.pulse")
        for old in (path for pattern in left for path in self.work.glob(pattern)):
            old.unlink(missing_ok=True)

    def start(self, job: TrainJob) -> int:
        """Run the ranks to their end: again, with a smaller micro-batch, while they run out of memory."""
        while True:
            code = self.run_ranks(job)
            less = self.less_memory(code)
            if less is None:
                return code
            self.forget_ranks()
            if self.first:
                (self.outputs / FAILURE).unlink(missing_ok=True)
                self.writer().emit("micro_batch", **less)
            if self.stopping:
                return PREEMPTED

    def less_memory(self, code: int) -> dict[str, int] | None:
        """What a rank that ran out of memory asks for: the fields of the event."""
        path = self.work / memory.AGAIN
        if code == 0 or not path.exists():
            return None
        less: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        if self.cluster.nodes == 1:
            return less
        # The other machines' ranks have failed with this one's, and nobody starts them again in step with it.
        self.note(
            JobError(
                "oom",
                f"out of memory at step {less['step']} with {less['was']} rows a forward pass",
                f"it is noted: the next start takes {less['rows']}; launch resume goes on",
                retry=True,
            ),
            None,
        )
        return None

    def run_ranks(self, job: TrainJob) -> int:
        """Run the ranks once, passing on their output without the secrets' values."""
        command = self.cluster.command()
        self.direct = command[-1] == command[2]
        env = self.cluster.environment(os.environ) | QUIET | self.own_environment(job)
        self.child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if self.stopping:  # a signal came while the child was being made
            self.forward()
        assert self.child.stdout is not None
        guard = watchdog.Watchdog(self.work, watchdog.patience_s(), self.end_hang)
        if watchdog.patience_s():
            guard.start()
        for line in self.child.stdout:
            shown = mask(line.decode(errors="surrogateescape"))
            try:
                sys.stdout.buffer.write(shown.encode(errors="surrogateescape"))
                sys.stdout.buffer.flush()
            except BrokenPipeError:  # whoever read the log is gone; the job is not
                hush(sys.stdout)
        code = self.child.wait()
        guard.ended.set()
        # A rank that had no time to set its handler dies of the signal itself; torchrun answers 1 for a stop.
        stopped = self.stopping and self.failure_file() is None
        return PREEMPTED if stopped and code != 0 else code

    def own_environment(self, job: TrainJob) -> dict[str, str]:
        """What this start tells its ranks."""
        own = {
            "LAUNCH_RUN": self.run,
            "LAUNCH_PARENT": str(os.getpid()),
            "LAUNCH_WORK_DIR": str(self.work),
            "LAUNCH_EVENTS_FILE": str(self.events),
            "LAUNCH_NODES": str(self.cluster.nodes),
        }
        if os.environ.get("LAUNCH_OFFLINE") == "1":
            own |= OFFLINE | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.inputs / "wheels")}
        if (end := self.hours.deadline(job.max_hours)) is not None:
            own["LAUNCH_DEADLINE"] = f"{end:.3f}"
        return own

    def forward(self, *_: object) -> None:
        """SIGTERM: leave the stop file for ranks that are still starting, and signal those that run."""
        self.asked = True
        if self.stop_file is not None:
            with contextlib.suppress(FileNotFoundError):  # the job is done and has tidied up
                self.stop_file.touch()
        if self.child is None:
            return
        if self.direct:
            self.child.send_signal(signal.SIGTERM)
            return
        if not self.signal_ranks():
            # torchrun still waits for the other nodes, deaf to signals: it holds nothing that could be lost.
            waiter = threading.Timer(SPAWN_S, self.end_waiting)
            waiter.daemon = True
            waiter.start()

    def signal_ranks(self, number: int = signal.SIGTERM) -> int:
        """A signal to every rank of this node; how many there are."""
        notes = list(self.work.glob("rank-*.pid"))
        for note in notes:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(note.read_text()), number)
        return len(notes)

    def end_waiting(self) -> None:
        """Stop torchrun unless it has started ranks meanwhile."""
        child = self.child
        if child is not None and not self.signal_ranks():
            child.kill()

    def end_hang(self, silent_s: float) -> None:
        """The ranks hang: have them write their stacks, say so, and end them."""
        if hasattr(signal, "SIGUSR1"):
            self.signal_ranks(signal.SIGUSR1)
            time.sleep(watchdog.DUMP_S)
        if not self.first and self.cluster.nodes > 1:
            return  # the first node ends the job; this one has shown its stacks
        shown = "the log has the stacks of all their threads" if hasattr(signal, "SIGUSR1") else "see the log"
        self.note(
            JobError(
                "hang",
                f"no process of this job has done anything for {silent_s:.0f} s",
                f"{shown}; launch resume goes on from the last checkpoint. LAUNCH_HANG_MINUTES under env: "
                "sets the patience, 0 turns it off",
            ),
            None,
        )
        self.signal_ranks(getattr(signal, "SIGKILL", signal.SIGTERM))
        if self.child is not None:
            self.child.kill()

    def note(self, error: JobError, exc: BaseException | None) -> None:
        """Leave failure.json on this node, and in the output folder unless an earlier cause stands there."""
        write_failure(self.work, error, exc)
        if self.first or not (self.outputs / FAILURE).exists():
            write_failure(self.outputs, error, exc)

    def failure_file(self) -> Path | None:
        """Why this start failed, as its ranks left it: the first node's output folder was cleaned before."""
        path = (self.outputs if self.first else self.work) / FAILURE
        return path if path.exists() else None

    def tell_failure(self, code: int) -> None:
        """The failure event and the vendor's file: what the ranks left, or what the exit status says alone."""
        if self.failure_file() is None:
            self.note(self.unexplained(code), None)
        path = self.failure_file()
        if path is None:  # the disk is full
            return
        failure = json.loads(path.read_text(encoding="utf-8"))
        told = {k: failure[k] for k in ("kind", "message", "hint")}
        tell_vendor(JobError(**told))
        if not self.first:
            return
        # A new writer: the ranks have numbered events of this run too.
        self.writer().emit("failure", **told)
        if failure["retry"] and no_further(self.before, failure):
            say("not to be tried again: it failed the same way twice, and got no further", sys.stderr)
            write_atomic(path, json.dumps({**failure, "retry": False}, indent=1).encode())

    def unexplained(self, code: int) -> JobError:
        """What an exit status says alone."""
        if code == -signal.SIGKILL:
            return JobError(
                "killed",
                "the training process was killed (SIGKILL); most often the machine ran out of memory",
                "lower train.micro_batch or data.max_length, or resume on a larger machine",
            )
        at = self.cluster
        if at.nodes > 1 and not list(self.work.glob("rank-*.pid")):
            return JobError(
                "setup",
                f"the {at.nodes} nodes did not meet at {at.master}:{at.port} within {RENDEZVOUS_S // 60} minutes",
                "see each node's log; the network must let them talk, on any port",
            )
        return JobError("error", f"the training process ended with status {code}", "see the log")

    def writer(self) -> EventWriter:
        """A writer that goes on with the numbers where the file ends."""
        return EventWriter(self.events, self.run, self.outputs / "events.jsonl")

    def _events_file(self) -> Path:
        """Where events are appended: in the output folder, or beside it where that is an object store."""
        shown = self.outputs / "events.jsonl"
        if not self.first or self.work.is_relative_to(self.outputs):
            return shown
        own = self.work / "events.jsonl"
        own.unlink(missing_ok=True)  # another job's, or this one's with steps that are taken again
        if shown.is_file():
            shutil.copyfile(shown, own)
        return own


def _cluster() -> tuple[Cluster, JobError | None]:
    """This node's place, or why it is not clear."""
    try:
        return Cluster.from_environment(), None
    except JobError as exc:
        return Cluster(0, 1, 1, "127.0.0.1"), exc


if __name__ == "__main__":
    if absent := [name for name in NEEDED if not os.environ.get(name)]:
        sys.exit(f"{', '.join(absent)} not set: folders of the job, its output and its checkpoints")
    sys.exit(Entry().main())
