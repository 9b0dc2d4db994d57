"""Why a job failed, in words a person can act on, and failure.json that carries them out of the container."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import sys
import traceback
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from train_entry.masking import mask

FAILURE = "failure.json"
TAIL_LINES = 30
VENDOR_CHARS = 1024
"""What SageMaker takes of its failure file into FailureReason.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-output.html
"""


FINAL = frozenset(("data", "model", "config", "secrets", "disk_full", "oom", "diverged"))
"""Kinds of failure that the next start of the same job meets again."""
MISTAKES = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, NameError, ImportError,
    SyntaxError, NotImplementedError,
)  # fmt: skip
"""Python's own words for what is wrong with a program or what it was given, not with the machine."""
ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
NETWORK = frozenset(
    ("ConnectionError", "Timeout", "TimeoutError", "TimeoutException", "NetworkError", "TransportError")
)
"""Names of classes, of Python's, requests, httpx and aiohttp, for a connection that failed."""


FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = (
    "No space left on device", "Disk quota exceeded",  # safetensors
    "PytorchStreamWriter failed writing file", "unexpected pos ", "iostream error",  # torch.save
)  # fmt: skip
"""A full disk in the words of libraries that write by themselves, and tell no errno."""


class JobError(Exception):
    """A failure with a known cause.

    Kinds: data model checkpoint config secrets disk_full oom killed hang setup diverged error.
    `retry`: may the next start of the same job get further? None: as the kind and the cause say.
    """

    def __init__(self, kind: str, message: str, hint: str | None = None, retry: bool | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.retry = retry


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
    if (isinstance(exc, OSError) and exc.errno in FULL) or any(words in text for words in FULL_TEXTS):
        return JobError("disk_full", f"the disk is full: {exc}", "free space or raise resources.disk_gib")
    if type(exc).__name__ in ("DistBackendError", "DistNetworkError") or "/gloo/" in text:
        return JobError(
            "killed",
            "the connection to another process of this job broke; most often it was killed, out of memory",
            "see the log; lower train.micro_batch or data.max_length, or resume on a larger machine",
        )
    return JobError("error", text, "the traceback stands in the log and in failure.json")


def write_failure(folder: Path, error: JobError, cause: BaseException | None) -> None:
    """Write folder/failure.json {kind, message, hint, retry, job, checkpoint, traceback} whole or not at all.

    A full disk takes none of it, and must not hide why the job failed.
    """
    lines = traceback.format_exception(cause) if cause is not None else []
    tail = "".join(lines).splitlines()[-TAIL_LINES:]
    body = {
        "kind": error.kind, "message": error.message, "hint": error.hint, "retry": may_be_mended(error, cause),
        "job": this_job(), "checkpoint": _newest_checkpoint(), "traceback": tail,
    }  # fmt: skip
    try:
        write_atomic(folder / FAILURE, mask(json.dumps(body, indent=1)).encode())
    except OSError as exc:  # the log has it, and the exit status
        print(f"could not write {folder / FAILURE}: {exc}", file=sys.stderr)


def may_be_mended(error: JobError, exc: BaseException | None) -> bool:
    """May the next start of the same job, with the same inputs on a like machine, get further?

    Vendors start a failed job again by themselves, and bill each time.
    """
    if error.retry is not None:
        return error.retry
    seen = exc
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(status, int):  # before the names: the hub's errors are of several kinds at once
            return status in (408, 429) or status >= 500
        if NETWORK & {kind.__name__ for kind in type(seen).__mro__}:
            return True
        seen = seen.__cause__ or seen.__context__
    if error.kind == "error":
        return not isinstance(exc, MISTAKES)
    return error.kind not in FINAL


def final_failure(folder: Path) -> JobError | None:
    """The failure of an earlier start of this very job that no other start can mend; None without one."""
    try:
        found = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        if found["retry"] is not False or not found["job"] or found["job"] != this_job():
            return None
        return JobError(str(found["kind"]), str(found["message"]), found["hint"], retry=False)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def failed_before(folder: Path) -> Mapping[str, Any]:
    """failure.json as the start before, of this very job, has left it; empty without one.

    state.json tells that it is: another node of this start may have failed already.
    """
    try:
        found, state = (json.loads((folder / n).read_text(encoding="utf-8")) for n in (FAILURE, "state.json"))
        same = found["job"] and found["job"] == this_job() and state["state"] == "failed"
        return found if same else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def no_further(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Has this start failed just as the one before, and neither left a checkpoint that the other did not have?

    What may pass by itself has not: a third start would be paid for the same.
    """
    if any(before.get(name) != now.get(name) for name in ("job", "kind", "checkpoint")):
        return False
    # A hang's message tells how long it was; others may tell where in memory something was.
    told = [ADDRESS.sub("0x", str(failure.get("message"))) for failure in (before, now)]
    return now["kind"] == "hang" or told[0] == told[1]


def _newest_checkpoint() -> str | None:
    try:
        found = Path(os.environ["LAUNCH_CHECKPOINT_DIR"]).glob("step-*/manifest.json")
        return max((path.parent.name for path in found), default=None)
    except (OSError, LookupError):
        return None


def this_job() -> str | None:
    """The job's id and a mark of what it was given: by hand, a job that was mended is run again under its id."""
    own, inputs = os.environ.get("LAUNCH_JOB_ID"), os.environ.get("LAUNCH_INPUT_DIR")
    if not own or not inputs:
        return None
    mark = sha256()
    try:
        for path in sorted(p for p in Path(inputs).rglob("*") if p.is_file() and "__pycache__" not in p.parts):
            mark.update(f"{path}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
        mark.update((Path(inputs) / "job.json").read_bytes())
    except OSError:
        return None
    return f"{own} {mark.hexdigest()[:16]}"


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
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
