"""Why a job failed, in words a person can act on, and failure.json that carries them out of the container."""

from __future__ import annotations

import errno
import json
import os
import secrets
import sys
import traceback
from pathlib import Path

from train_entry.masking import mask

FAILURE = "failure.json"
TAIL_LINES = 30
VENDOR_CHARS = 1024
"""What SageMaker takes of its failure file into FailureReason.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-output.html
"""


class JobError(Exception):
    """A failure with a known cause.

    Kinds: data model checkpoint config secrets disk_full oom killed setup diverged error.
    """

    def __init__(self, kind: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


def classify(exc: BaseException) -> JobError:
    """Any exception as a JobError: the cause that its type and text tell."""
    if isinstance(exc, JobError):
        return exc
    text = f"{type(exc).__name__}: {exc}"
    # By name: this module must work where torch is not installed.
    no_memory = "out of memory" in str(exc) or "can't allocate memory" in str(exc)  # of a GPU, of a CPU
    if no_memory or isinstance(exc, MemoryError) or "OutOfMemory" in type(exc).__name__:
        return JobError(
            "oom",
            f"out of memory: {exc}".removesuffix(": "),
            "lower train.micro_batch or data.max_length, set train.gradient_checkpointing: true, "
            "or use tuning.kind: qlora",
        )
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return JobError("disk_full", f"the disk is full: {exc}", "free space or raise resources.disk_gib")
    if type(exc).__name__ in ("DistBackendError", "DistNetworkError") or "/gloo/" in text:
        return JobError(
            "killed",
            "the connection to another process of this job broke; most often it was killed, out of memory",
            "see the log; lower train.micro_batch or data.max_length, or resume on a larger machine",
        )
    return JobError("error", text, "the traceback stands in the log and in failure.json")


def write_failure(folder: Path, error: JobError, exc: BaseException | None) -> None:
    """Write folder/failure.json {kind, message, hint, traceback} whole or not at all."""
    lines = traceback.format_exception(exc) if exc is not None else []
    tail = "".join(lines).splitlines()[-TAIL_LINES:]
    body = {"kind": error.kind, "message": error.message, "hint": error.hint, "traceback": tail}
    write_atomic(folder / FAILURE, mask(json.dumps(body, indent=1)).encode())


def tell_vendor(error: JobError) -> None:
    """Leave the message, then the hint, in LAUNCH_FAILURE_FILE; what stands there already was first."""
    name = os.environ.get("LAUNCH_FAILURE_FILE")
    if not name or Path(name).exists():
        return
    text = mask(error.message if error.hint is None else f"{error.message}\n{error.hint}")
    try:
        write_atomic(Path(name), text[:VENDOR_CHARS].encode())
    except OSError as exc:
        print(f"could not write {name}: {exc}", file=sys.stderr)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing; it is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers that share a folder have equal process ids.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
