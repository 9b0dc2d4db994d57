"""Shared-prefix packing: rows that begin with the same tokens are one tree, each of its tokens computed once.

A pack is the rows' tree laid out as one sequence, under a mask that lets a token see its own ancestors only, with
the positions that it has in its row. Loss and gradients are those of the rows alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Trainer

from train_entry.tree_attention import TREES, Tree

TokenRow = tuple[Sequence[int], Sequence[int]]
"""(prompt ids, completion ids); only the completion is learnt."""

WIDTH = 8
"""Packs are as wide as a multiple of this: what GPU kernels want of a mask."""
ROW_TOKENS = "row_tokens"
"""Key of a batch: tokens of its rows, a shared one counted in every row."""
UNLEARNT = -100


@dataclass
class Pack:
    """Rows laid out as one sequence. `targets` are the learnt tokens, each at the place that predicts it."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    above: list[tuple[int, ...]] = field(default_factory=list)
    """For every segment: those that it sees, itself the last."""
    sizes: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[int], first: int, parent: tuple[int, ...], targets: Sequence[int]) -> None:
        """Append a segment whose first token has the position `first`."""
        number = len(self.above)
        self.above.append((*parent, number))
        self.ids += ids
        self.positions += range(first, first + len(ids))
        self.targets += targets
        self.segments += [number] * len(ids)
        self.sizes.append(len(ids))

    def tree(self, width: int) -> Tree:
        """The segments for tree_attention; padding is one that sees itself."""
        return Tree((*self.sizes, width - len(self)), (*self.above, (len(self.above),)))

    def mask(self, width: int) -> torch.Tensor:
        """[width, width] of bool, True where the row's token sees the column's; padding sees itself."""
        count = len(self.above)
        sees = torch.zeros(count + 1, count + 1, dtype=torch.bool)
        for number, above in enumerate(self.above):
            sees[number, list(above)] = True
        sees[count, count] = True
        rest = width - len(self)
        segments = torch.tensor(self.segments + [count] * rest)
        positions = torch.tensor(self.positions + [0] * rest)
        return sees[segments][:, segments] & (positions[None, :] <= positions[:, None])


def lay_out(rows: Sequence[TokenRow]) -> Pack:
    """The rows as one pack. The last token of a prompt is never shared: it predicts its own row's answer."""
    pack = Pack()
    _grow(pack, list(rows), 0, ())
    return pack


def packs_of(rows: Sequence[TokenRow], budget: int) -> list[Pack]:
    """The rows in packs of at most `budget` tokens, or of one row; neighbours share most."""
    ordered = sorted(rows, key=lambda row: tuple(row[0]))
    pack = lay_out(ordered)
    if len(pack) <= budget or len(ordered) == 1:
        return [pack]
    middle = len(ordered) // 2
    return [*packs_of(ordered[:middle], budget), *packs_of(ordered[middle:], budget)]


def width_of(packs: Sequence[Pack]) -> int:
    """Tokens that each of the packs takes in a batch."""
    return -(-max(map(len, packs)) // WIDTH) * WIDTH


def _grow(pack: Pack, rows: list[TokenRow], depth: int, parent: tuple[int, ...]) -> None:
    """Append what the rows have from `depth` on, where all of them are still one."""
    if len(rows) == 1:
        _finish(pack, rows[0], depth, parent)
        return
    # The least and the greatest share what all share.
    rests = [tuple(prompt[depth:-1]) for prompt, _ in rows]
    outermost = zip(min(rests), max(rests), strict=False)
    shared = [token for token, other in itertools.takewhile(lambda pair: pair[0] == pair[1], outermost)]
    if shared:
        pack.add(shared, depth, parent, [UNLEARNT] * len(shared))
        depth, parent = depth + len(shared), pack.above[-1]
    # In the order of the rows, where those that begin alike are neighbours: the check relies on it.
    branches: dict[tuple[int, int], list[TokenRow]] = {}
    for number, row in enumerate(rows):
        prompt, _ = row
        ends = depth >= len(prompt) - 1
        branches.setdefault((-1, number) if ends else (prompt[depth], 0), []).append(row)
    for branch in branches.values():
        _grow(pack, branch, depth, parent)


def _finish(pack: Pack, row: TokenRow, depth: int, parent: tuple[int, ...]) -> None:
    """Append the rest of one row, without its last token: nothing comes after it to predict."""
    prompt, completion = row
    tokens = [*prompt, *completion]
    targets = [UNLEARNT] * (len(prompt) - 1 - depth) + list(completion[not prompt :])
    pack.add(tokens[depth:-1], depth, parent, targets)


class PrefixCollator:
    """Token rows -> the arguments of a causal language model that give the loss of their learnt tokens."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def __call__(self, batch: Sequence[Mapping[str, list[int]]]) -> dict[str, Any]:
        """Logits are asked for at the places alone that predict a learnt token of some pack."""
        packs = packs_of([_as_row(row) for row in batch], self.budget)
        width = width_of(packs)
        targets = torch.tensor([[*p.targets, *[UNLEARNT] * (width - len(p))] for p in packs])
        columns = (targets != UNLEARNT).any(dim=0).nonzero().squeeze(1)
        learnt = targets[:, columns]
        return {
            "input_ids": torch.tensor([[*p.ids, *[0] * (width - len(p))] for p in packs]),
            "position_ids": torch.tensor([[*p.positions, *[0] * (width - len(p))] for p in packs]),
            "attention_mask": torch.stack([p.mask(width) for p in packs])[:, None],
            TREES: [p.tree(width) for p in packs],
            "logits_to_keep": columns,
            # Both names: the first makes the model compute a loss, the second says that nothing is to be shifted.
            "labels": learnt,
            "shift_labels": learnt,
            ROW_TOKENS: torch.tensor(sum(len(row["input_ids"]) for row in batch)),
        }


def rows_in_packs(batch: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """The rows of a collated batch, each without its last token: a row ends where nothing else looks back."""
    found = []
    for ids, sees in zip(batch["input_ids"], batch["attention_mask"][:, 0], strict=True):
        for last in (sees.sum(dim=0) == 1).nonzero().flatten().tolist():
            found.append(tuple(ids[sees[last]].tolist()))
    return found


def _as_row(row: Mapping[str, list[int]]) -> TokenRow:
    """A row of which the completion alone is labelled."""
    start = next(i for i, label in enumerate(row["labels"]) if label != UNLEARNT)
    return row["input_ids"][:start], row["input_ids"][start:]


class PackedTrainer(Trainer):  # type: ignore[misc]
    """The plain Trainer; it counts a pack's tokens as those of its rows."""

    def _prepare_inputs(self, inputs: Mapping[str, Any]) -> Any:
        return super()._prepare_inputs({k: v for k, v in inputs.items() if k != ROW_TOKENS})

    def _track_num_input_tokens(self, inputs: Mapping[str, Any]) -> None:
        tokens = inputs[ROW_TOKENS].to(self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())
