"""Files of a job on this machine: copied whole, refusals of the system in words, one launcher at a time."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from hashlib import file_digest
from pathlib import Path

from launcher.errors import BackendError, CapacityError


@contextlib.contextmanager
def in_words(doing: str) -> Iterator[None]:
    """The operating system's refusals as errors that say what was being done."""
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise CapacityError(f"{doing}: the disk is full", "free space, then repeat the command") from exc
        raise BackendError(f"{doing}: {exc}", "launch doctor looks at this machine") from exc


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One launcher at a time in here; the lock ends with the process that holds it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows: two submits of one token at one moment are not told apart
        yield
        return
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def copy_verified(source: Path, target: Path, wanted: str | None) -> None:
    """Copy a file unless its bytes are there already; a half-copied one never has the final name.

    `wanted` is the sha256 that it must have (None: the one it has now).
    """
    wanted = wanted or _sha256(source)
    if target.is_file() and _sha256(target) == wanted:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    if _sha256(part) != wanted:
        part.unlink()
        raise BackendError(f"{source} is not what it was: its sha256 has changed", "repeat the command")
    part.replace(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
