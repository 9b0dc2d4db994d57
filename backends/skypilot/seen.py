"""A job's `told` folder in the store at one moment: what its nodes and its launcher have put there.

node.py names what nodes leave. The launcher's files: `staged` (the job can be sent), `managed` (SkyPilot's
controller runs it), `submitted` (by whom: sender.py), `cancel`, `final.json` (how it ended), `down` (its machines
were taken down).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from backends.skypilot.logs import Part
from backends.skypilot.stores import JobStore, Kept
from backends.storage import ROOT

MARK = re.compile(r"(node-\d+)\.(?:(start)|(end|setup)\.(\d+))\.(\d+)")
"""The first node speaks for all, but that a set-up on any of them fails the job."""
PEERS_S = 30
"""So long the end of the first node waits for those of the others, whose last words may still come."""


class Mark(NamedTuple):
    """What a node has marked, when by its own clock, and its age by the store's."""

    node: str
    kind: str
    code: int
    when: float
    age_s: float


LOG = re.compile(r"(node-\d+)\.log\.(\d+)\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """`quiet_s`: since when no node has said or marked anything; None: none has yet."""

    has: frozenset[str] = frozenset()
    logs: tuple[Part, ...] = ()
    quiet_s: float | None = None
    starts: tuple[float, ...] = ()
    end: tuple[str, int, float] | None = None
    """(`end` or `setup`, exit status, when) of the newest start; None while that goes on."""
    spokesman: str = "node-0"
    """The node whose end that is."""
    ending: bool = False
    """The first node has ended a moment ago, another not yet."""
    final: Mapping[str, Any] | None = None

    @property
    def managed(self) -> bool:
        return "managed" in self.has


def told(token: str, name: str = "") -> str:
    """The key of what is told of a job."""
    return f"{ROOT}/jobs/{token}/told/{name}"


def look(store: JobStore, token: str) -> Seen:
    """All of it, in one listing and, once the job is over, the reading of its end."""
    found = seen(store.look(told(token)))
    if "final.json" not in found.has:
        return found
    return replace(found, final=json.loads(store.get(told(token, "final.json")) or b"null"))


def seen(kept: Iterable[Kept]) -> Seen:
    """What these files say."""
    has, logs, quiet = set(), [], None
    marks: list[Mark] = []
    for one in kept:
        name = one.key.rpartition("/")[2]
        if not name.startswith("node-"):
            has.add(name)
            continue
        quiet = one.age_s if quiet is None else min(quiet, one.age_s)
        if log := LOG.fullmatch(name):
            node, began, part = log.groups()
            logs.append(Part(node=node, began=int(began), number=int(part), key=one.key, size=one.size))
        elif mark := MARK.fullmatch(name):
            node, start, end, code, when = mark.groups()
            marks.append(Mark(node, start or end, int(code or 0), int(when) / 1000, one.age_s))
    starts = sorted(mark.when for mark in marks if (mark.node, mark.kind) == ("node-0", "start"))
    found = Seen(has=frozenset(has), logs=tuple(logs), quiet_s=quiet, starts=tuple(starts))
    ends = [mark for mark in marks if mark.kind == "setup" or (mark.node, mark.kind) == ("node-0", "end")]
    last = max(ends, key=lambda mark: mark.when, default=None)
    if last is None or (starts and starts[-1] > last.when):
        return found
    return replace(
        found, end=(last.kind, last.code, last.when), spokesman=last.node, ending=_is_ending(last, marks, logs)
    )


def _is_ending(last: Mark, marks: Iterable[Mark], logs: Iterable[Part]) -> bool:
    """Has the first node ended a moment ago, and one that has spoken since its own last end not yet?"""
    if last.kind != "end" or last.age_s >= PEERS_S:
        return False
    over = {(mark.node, mark.when) for mark in marks if mark.kind == "end"}
    talking = (part for part in logs if part.node != last.node)
    return any(all(node != part.node or when * 1000 < part.began for node, when in over) for part in talking)
