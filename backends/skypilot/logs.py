"""A job's lines from the files that its nodes write into the store, resumable after any line.

SkyPilot's own stream begins anew at every call, and ends with the cluster. A cursor is JSON: file -> bytes read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from backends.base import LogLine
from backends.storage import BundleStore
from launcher.errors import ConfigError

FILE = re.compile(r"node-(\d+)\.log")


def lines(
    store: BundleStore, folder: str, files: Mapping[str, int], over: bool, cursor: str | None
) -> Iterator[LogLine]:
    """The whole lines after `cursor`, node by node. `files`: name -> size; `over`: no more will come."""
    positions = _parse(cursor)
    for name in sorted((n for n in files if FILE.fullmatch(n)), key=lambda n: int(n[5:-4])):
        start = positions.get(name, 0)
        if files[name] <= start:
            continue
        for text, end in _whole(store.read_from(f"{folder}{name}", start), start, over):
            positions[name] = end
            yield LogLine(
                text=text, source=name.removesuffix(".log"), cursor=json.dumps(positions, separators=(",", ":"))
            )


def _whole(pieces: Iterator[bytes], start: int, over: bool) -> Iterator[tuple[str, int]]:
    """(line, bytes of the file up to its end)."""
    kept = b""
    for piece in pieces:
        *whole, kept = (kept + piece).split(b"\n")
        for line in whole:
            start += len(line) + 1
            yield _text(line), start
    if kept and over:
        yield _text(kept), start + len(kept)


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", errors="replace")


def _parse(cursor: str | None) -> dict[str, int]:
    if cursor is None:
        return {}
    try:
        return {str(name): int(at) for name, at in json.loads(cursor).items()}
    except (ValueError, TypeError, AttributeError) as exc:
        raise ConfigError(f"{cursor!r} is not a cursor of a job's log on SkyPilot", "launch logs JOB") from exc
