"""Values of the job's secrets never leave the container: every line and file that goes out passes here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

NAMES = "LAUNCH_SECRET_NAMES"
"""Environment variable with the names, a space between them; set by __main__ for the ranks."""
SHORTEST_MASKED = 4
MASK = "***"


def set_names(names: Iterable[str]) -> None:
    os.environ[NAMES] = " ".join(names)


def mask(text: str) -> str:
    """`text` with MASK for each secret's value, each line of it, and its form inside a JSON string."""
    for value in _hidden():
        text = text.replace(value, MASK)
    return text


def _hidden() -> list[str]:
    """Longest first: one value may be the beginning of another."""
    found = set()
    for name in os.environ.get(NAMES, "").split():
        value = os.environ.get(name, "")
        parts = {value, value.strip(), *value.splitlines()}
        found |= (
            parts | {json.dumps(p)[1:-1] for p in parts} | {json.dumps(p, ensure_ascii=False)[1:-1] for p in parts}
        )
    return sorted((v for v in found if len(v) >= SHORTEST_MASKED), key=len, reverse=True)
