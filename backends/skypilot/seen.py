"""A job's folder in the store at one moment: what its nodes have marked, and how far their logs are."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backends.skypilot.shared import SharedPath
from backends.storage import ROOT

SCRIPT = """\
cd {folder} 2>/dev/null || exit 0
echo "now $(date +%s)"
for f in record.json submitted cancel down; do [ ! -e $f ] || echo "has $f"; done
for f in logs/* marks/*; do [ ! -f $f ] || stat -c 'file %s %Y %n' $f; done
[ ! -e marks/node-0 ] || sed 's/^/mark /' marks/node-0
for f in plan final; do [ ! -e $f.json ] || echo "json $f $(cat $f.json)"; done
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """`quiet_s`: since when no node has said or marked anything; None: none has yet."""

    has: frozenset[str] = frozenset()
    logs: Mapping[str, int] = field(default_factory=dict)
    quiet_s: int | None = None
    starts: tuple[int, ...] = ()
    end: tuple[str, int, int] | None = None
    """(`end` or `setup`, exit status, when) of the first node's newest start; None while that goes on."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] | None = None

    @property
    def managed(self) -> bool:
        return bool(self.plan.get("managed"))


def look(store: SharedPath, token: str) -> Seen:
    """All of it in one call."""
    key = f"{ROOT}/jobs/{token}"
    text = SCRIPT.format(folder=shlex.quote(f"{store.bucket}/{key}"))
    return parse(store.sh(text, store.doing("looking at", key)).decode(errors="replace").splitlines())


def parse(told: Iterable[str]) -> Seen:
    has, logs, starts, jsons = set(), {}, [], {}
    now, newest, end = 0, None, None
    for line in told:
        kind, _, rest = line.partition(" ")
        words = rest.split(" ")
        if kind == "now":
            now = int(rest)
        elif kind == "has":
            has.add(rest)
        elif kind == "file":
            newest = max(newest or 0, int(words[1]))
            if words[2].startswith("logs/"):
                logs[words[2].removeprefix("logs/")] = int(words[0])
        elif kind == "mark" and words[0] == "start":
            starts.append(int(words[1]))
            end = None
        elif kind == "mark":
            end = (words[0], int(words[1]), int(words[2]))
        elif kind == "json":
            jsons[words[0]] = json.loads(rest.partition(" ")[2])
    return Seen(
        has=frozenset(has), logs=logs, quiet_s=None if newest is None else max(0, now - newest),
        starts=tuple(starts), end=end, plan=jsons.get("plan", {}), final=jsons.get("final"),
    )  # fmt: skip
