"""A job's lines from the files that its machines write, resumable after any line.

The run's details name the files with a signed URL each; they are read on from a byte (Range). azure-ai-ml's own
stream reads the first rank only, again and again, and fails on a signed or keyless datastore (1.35.2). A cursor is
JSON: file -> bytes read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from backends.azureml.azure import Azure
from backends.base import LogLine
from launcher.errors import ConfigError, JobNotFoundError

MOST = 4 * 2**20
"""Bytes of one request."""
FILE = re.compile(r"(?:.*/)?user_logs/std_log(?:_process_0*(\d+))?\.txt")
DOING = "reading the job's log"


def lines(azure: Azure, job: str, files: Mapping[str, str], over: bool, cursor: str | None) -> Iterator[LogLine]:
    """The whole lines after `cursor`, file by file. `files`: name -> signed URL; `over`: no more will come."""
    positions = _parse(cursor, job)
    for name in sorted(files, key=lambda name: (_rank(name), name)):
        if FILE.fullmatch(name) is None:
            continue
        for text, end in _of_file(azure, files[name], positions.get(name, 0), over):
            positions[name] = end
            yield LogLine(
                text=text, source=f"node-{_rank(name)}", cursor=json.dumps(positions, separators=(",", ":"))
            )


def _of_file(azure: Azure, url: str, start: int, over: bool) -> Iterator[tuple[str, int]]:
    """(line, bytes up to its end) from `start` on."""
    kept = b""
    while True:
        at = start + len(kept)
        try:
            got, length = azure.bytes_from(url, at, MOST, DOING)
        except JobNotFoundError:  # listed before it is there
            return
        if length is not None and length < at:  # written anew by a machine that took the job over
            start, kept = 0, b""
            continue
        kept += got
        *whole, rest = kept.split(b"\n")
        for line in whole:
            start += len(line) + 1
            yield _text(line), start
        kept = rest
        if len(got) < MOST:
            break
    if kept and over:
        yield _text(kept), start + len(kept)


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", errors="replace").replace("\n", "\\n")


def _rank(name: str) -> int:
    found = FILE.fullmatch(name)
    return int(found[1] or 0) if found else 0


def _parse(cursor: str | None, job: str) -> dict[str, int]:
    if cursor is None:
        return {}
    try:
        return {str(name): int(at) for name, at in json.loads(cursor).items()}
    except (ValueError, TypeError, AttributeError) as exc:
        raise ConfigError(f"{cursor!r} is not a cursor of {job}'s log", f"launch logs {job}") from exc
