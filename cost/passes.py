"""What a forward pass over some rows comes to in each way that training has of putting them together.

As train_entry/packing.py counts it, on rows drawn as it draws them, but without torch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

_T = TypeVar("_T")
Kind = Literal["padded", "flat", "prefix"]
"""Rows side by side, padded to the longest; end to end; as a tree, every token of which is computed once."""

BUDGET, WIDTH, SAMPLED = 2048, 8, 256
"""Tokens of a pack of rows that begin alike, what its width is a multiple of, rows that are looked at: those of
train_entry/packing.py and prefix.py (a test compares them)."""


class PassRow(NamedTuple):
    """One row: its prompt's tokens (a range where they are not known), and how many its answer has."""

    prompt: Sequence[int]
    answer: int

    def __len__(self) -> int:
        return len(self.prompt) + self.answer


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes of `size` rows put together in one way."""

    kind: Kind
    size: int
    tokens: float
    """Tokens that are computed for each row, padding included, on average."""
    pairs: float
    """Pairs of tokens that attention computes for each row."""
    widest: int
    """Tokens of the largest pass."""
    learnt: int
    """Learnt tokens of the pass that has most."""


def drawn(rows: Sequence[_T]) -> list[_T]:
    """The rows that are looked at, in the order in which they share passes."""
    return random.Random(0).sample(list(rows), min(len(rows), SAMPLED))


def passes_of(rows: Sequence[PassRow], sizes: Sequence[int], *, known: bool = True) -> tuple[Passes, ...]:
    """Every way and size. `known`: are the prompts' tokens there? Else nobody knows what rows share."""
    kinds: tuple[Kind, ...] = ("padded", "flat", "prefix") if known else ("padded", "flat")
    return tuple(_passes(rows, kind, size) for size in sizes if size <= len(rows) for kind in kinds)


def _passes(rows: Sequence[PassRow], kind: Kind, size: int) -> Passes:
    batches = [rows[at : at + size] for at in range(0, max(1, len(rows) - size + 1), size)]
    count = sum(map(len, batches))
    sides = [_sides(batch, kind) for batch in batches]
    return Passes(
        kind=kind,
        size=size,
        tokens=sum(n * width for n, width in sides) / count,
        pairs=sum(n * width**2 for n, width in sides) / count,
        widest=max(n * width for n, width in sides),
        learnt=max(sum(row.answer for row in batch) for batch in batches),
    )


def _sides(batch: Sequence[PassRow], kind: Kind) -> tuple[int, int]:
    """(sequences of a pass, tokens of each).

    Example: rows of 30 and 50 tokens: padded 2 x 50, flat 1 x 80.
    """
    if kind == "padded":
        return len(batch), max(map(len, batch))
    if kind == "flat":
        return 1, sum(map(len, batch))
    packs = pack_tokens(sorted(batch, key=lambda row: tuple(row.prompt)))
    return len(packs), -(-max(packs) // WIDTH) * WIDTH


def pack_tokens(ordered: Sequence[PassRow]) -> list[int]:
    """Tokens of each pack that rows in the order of their prompts make, at most BUDGET or a single row's."""
    tokens = tree_tokens(ordered)
    if tokens <= BUDGET or len(ordered) == 1:
        return [tokens]
    middle = len(ordered) // 2
    return [*pack_tokens(ordered[:middle]), *pack_tokens(ordered[middle:])]


def tree_tokens(rows: Sequence[PassRow]) -> int:
    """Tokens of the rows' tree: what prompts begin with once, the last token of each prompt in its own row, and no
    row's last token, which predicts nothing.

    Example: prompts 1 2 3 and 1 2 4 with answers of 2: 1 and 2 once, then 3 or 4 and one token each: 6.
    """
    starts = sorted(tuple(row.prompt[:-1]) for row in rows)
    shared = sum(_alike(a, b) for a, b in itertools.pairwise(starts))
    return sum(map(len, starts)) - shared + sum(row.answer - (not row.prompt) for row in rows)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
