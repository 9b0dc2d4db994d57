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
from typing import Any

from backends.skypilot.logs import Part
from backends.skypilot.stores import JobStore, Kept
from backends.storage import ROOT

MARK = re.compile(r"(?:node-0\.(start|end)|(node-\d+)\.setup)\.(?:(\d+)\.)?(\d+)")
"""The first node speaks for all, but that a set-up on any of them fails the job."""
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
    has, logs, starts, quiet = set(), [], [], None
    ends: list[tuple[float, str, int, str]] = []
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
            kind, code, when = mark[1] or "setup", mark[3], int(mark[4]) / 1000
            starts += [when] if kind == "start" else []
            ends += [(when, kind, int(code), mark[2] or "node-0")] if code else []
    found = Seen(has=frozenset(has), logs=tuple(logs), quiet_s=quiet, starts=tuple(sorted(starts)))
    ended, how, status, node = max(ends, default=(0.0, "", 0, ""))
    if not ends or (starts and max(starts) > ended):
        return found
    return replace(found, end=(how, status, ended), spokesman=node)
