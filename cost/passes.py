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
    """Pairs of tokens that attention computes for each row, under a mask where rows share tokens."""
    tree_pairs: float | None = None
    """The same where the tree's segments are computed one by one, as a processor does; None: as many."""
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
    if kind == "prefix":
        made = [_packs(sorted(batch, key=lambda row: tuple(row.prompt))) for batch in batches]
        sides = [(len(packs), _width_of(packs)) for packs in made]
        pairs = sum(_by_segments(packs, width) for packs, (_, width) in zip(made, sides, strict=True)) / count
    else:
        sides, pairs = [_sides(batch, kind) for batch in batches], None
    return Passes(
        kind=kind,
        size=size,
        tokens=sum(n * width for n, width in sides) / count,
        pairs=sum(n * width**2 for n, width in sides) / count,
        tree_pairs=pairs,
        widest=max(n * width for n, width in sides),
        learnt=max(sum(row.answer for row in batch) for batch in batches),
    )


def _sides(batch: Sequence[PassRow], kind: Kind) -> tuple[int, int]:
    """(sequences of a pass without a tree, tokens of each).

    Example: rows of 30 and 50 tokens: padded 2 x 50, flat 1 x 80.
    """
    if kind == "padded":
        return len(batch), max(map(len, batch))
    return 1, sum(map(len, batch))


class _Pack(NamedTuple):
    rows: Sequence[PassRow]
    tokens: int


def _packs(ordered: Sequence[PassRow]) -> list[_Pack]:
    """The packs that rows in the order of their prompts make, of at most BUDGET tokens or a single row."""
    tokens = tree_tokens(ordered)
    if tokens <= BUDGET or len(ordered) == 1:
        return [_Pack(ordered, tokens)]
    middle = len(ordered) // 2
    return [*_packs(ordered[:middle]), *_packs(ordered[middle:])]


def pack_tokens(ordered: Sequence[PassRow]) -> list[int]:
    """Tokens of each pack that rows in the order of their prompts make."""
    return [pack.tokens for pack in _packs(ordered)]


def _width_of(packs: Sequence[_Pack]) -> int:
    """Tokens that each of the packs takes in a pass."""
    return -(-max(pack.tokens for pack in packs) // WIDTH) * WIDTH


def _by_segments(packs: Sequence[_Pack], width: int) -> int:
    """Pairs of a pass whose segments are computed one by one; padding is a segment that sees itself."""
    return sum(tree_pairs(pack.rows) + (width - pack.tokens) ** 2 for pack in packs)


def tree_pairs(rows: Sequence[PassRow], depth: int = 0) -> int:
    """Pairs of a token and one in a segment that it sees, of the rows' tree from `depth` tokens on.

    Example: prompts 1 2 3 and 1 2 4 with answers of 2: 1 and 2 see each other, 2 x 2; then two tokens of either
    row see 4 each: 4 + 8 + 8 = 20.
    """
    if len(rows) == 1:
        own = len(rows[0]) - 1 - depth
        return own * (depth + own)
    rests = [tuple(row.prompt[depth:-1]) for row in rows]
    shared = _alike(min(rests), max(rests))  # the least and the greatest share what all share
    depth += shared
    branches: dict[tuple[int, int], list[PassRow]] = {}
    for number, row in enumerate(rows):
        ends = depth >= len(row.prompt) - 1
        branches.setdefault((-1, number) if ends else (row.prompt[depth], 0), []).append(row)
    return shared * depth + sum(tree_pairs(branch, depth) for branch in branches.values())


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
