"""A job's lines from the parts that its nodes put into the store, resumable after any line.

SkyPilot's own stream begins anew at every call, and ends with the cluster. The parts of one start of one node are
one text; a cursor is JSON: NODE.BEGAN -> bytes read of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from backends.base import LogLine
from backends.skypilot.stores import JobStore
from launcher.errors import ConfigError


@dataclass(frozen=True, order=True, kw_only=True)
class Part:
    """One file of a node's words: the start that it belongs to, its place in that, its bytes as they are now."""

    node: str
    began: int
    number: int
    key: str
    size: int


def lines(store: JobStore, parts: Iterable[Part], over: bool, cursor: str | None) -> Iterator[LogLine]:
    """The whole lines after `cursor`, node by node, start by start; `over`: no more will come."""
    positions = _parse(cursor)
    ordered = sorted(parts, key=lambda p: (int(p.node[5:]), p.began, p.number))
    newest = {part.node: part.began for part in ordered}
    for (node, began), one_start in groupby(ordered, key=lambda p: (p.node, p.began)):
        text = f"{node}.{began}"
        at = positions.get(text, 0)
        for line, end in _whole(_bytes(store, list(one_start), at), at, over or began < newest[node]):
            positions[text] = end
            yield LogLine(text=line, source=node, cursor=json.dumps(positions, separators=(",", ":")))


def _bytes(store: JobStore, parts: Sequence[Part], start: int) -> Iterator[bytes]:
    """What comes after the first `start` bytes of these parts. The last may have grown since it was seen."""
    wanted = []
    for part in parts:
        if start < part.size:
            wanted.append((part.key, start))
        start = max(0, start - part.size)
    return store.read_all(wanted)


def _whole(pieces: Iterator[bytes], start: int, over: bool) -> Iterator[tuple[str, int]]:
    """(line, bytes of the text up to its end)."""
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
