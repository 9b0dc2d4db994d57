"""Files that come from a job: brought whole or not at all, and compared with what the job vouched for."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import file_digest
from pathlib import Path

from launcher.errors import BackendError


def bring(folder: Path, path: str, size: int, sha256: str | None, fetch: Callable[[Path], None]) -> None:
    """Make `folder / path` the file of this size and hash; `fetch(target)` downloads it, whole or not at all.

    What is there already is kept. `sha256` None: nobody vouched for it, and the size has to do. Raises
    BackendError when what came is not it, or the place can't be written.
    """
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise BackendError(f"the job's output names a file outside its folder: {path}", "report this job")
    try:
        if _is(target, size, sha256):
            return
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        fetch(target)
        if not _is(target, size, sha256):
            target.unlink(missing_ok=True)
            raise BackendError(f"{path} did not come whole: its size or sha256 is another", "repeat the command")
    except OSError as exc:
        raise BackendError(f"{target} can't be written: {exc}", "name another folder, or free space") from exc


def vouched_files(events: bytes) -> dict[str, str]:
    """Path in the output -> sha256, as the last `done` event of an events.jsonl lists it; empty before that."""
    for line in reversed(events.splitlines()):
        if b'"event": "done"' not in line:
            continue
        try:
            event = json.loads(line)
            if event["event"] == "done":
                return {f["path"]: f["sha256"] for f in event.get("files") or ()}
        except (ValueError, KeyError, TypeError):  # torn by a crash
            continue
    return {}


def _is(path: Path, size: int, sha256: str | None) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    if sha256 is None:
        return True
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest() == sha256
