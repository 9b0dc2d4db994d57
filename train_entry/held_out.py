"""The held-out loss during training, which early stopping compares, in little memory beside the training's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from train_entry.data import Example, label_ids
from train_entry.memory import Passes
from train_entry.packing import BUDGET, as_tokens, learnt_losses
from train_entry.prefix import UNLEARNT, PrefixCollator

PLACES = 1024
"""Logits a pass: 0.5 GiB in fp32 with a vocabulary of 128 thousand, and the loss takes as much again."""


def held_out_loss(
    model: Any, rows: Sequence[Example], batch_size: int, pad: int, tick: Callable[[], None]
) -> float:
    """Mean negative log-likelihood of the answers' tokens, every token weighing the same."""
    return _mean_loss(model, sorted(rows, key=len), batch_size, lambda batch: _side_by_side(batch, pad), tick)


def packed_loss(model: Any, rows: Sequence[Example], batch_size: int, tick: Callable[[], None]) -> float:
    """held_out_loss with shared prefixes: `batch_size` rows a pass, as far as the budget allows."""
    collate = PrefixCollator(BUDGET)
    ordered = sorted(rows, key=lambda row: row.prompt)

    def packed(batch: Sequence[Example]) -> dict[str, Any]:
        return collate([as_tokens(row, "completion") for row in batch])

    return _mean_loss(model, ordered, batch_size, packed, tick)


def _mean_loss(
    model: Any, rows: Sequence[Example], batch_size: int, collate: Callable[[Sequence[Example]], dict[str, Any]],
    tick: Callable[[], None],
) -> float:  # fmt: skip
    """Mean of the learnt tokens' losses in passes of `batch_size` rows at most; `tick` is called before each."""
    was_training = model.training
    model.eval()

    def judged(part: Sequence[Example]) -> list[torch.Tensor]:
        found = []
        for batch in _within(part, collate):
            tick()
            found.append(learnt_losses(model, batch))
        return found

    try:
        with torch.inference_mode():
            losses = Passes(batch_size, "the held-out evaluation").over(rows, judged)
    finally:
        model.train(was_training)
    return float(torch.cat(losses).double().mean())


def _within(
    rows: Sequence[Example], collate: Callable[[Sequence[Example]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The rows collated, in as many halves as logits of PLACES places a pass, or of one row, ask for."""
    batch = collate(rows)
    if batch["labels"].numel() <= PLACES or len(rows) == 1:
        yield batch
        return
    middle = len(rows) // 2
    yield from _within(rows[:middle], collate)
    yield from _within(rows[middle:], collate)


def _side_by_side(rows: Sequence[Example], pad: int) -> dict[str, Any]:
    """Rows padded on the right, with logits from where the first answer begins."""
    width = max(map(len, rows))
    keep = width - min(len(e.prompt) for e in rows) + 1
    ids = torch.tensor([[*e.prompt, *e.completion, *[pad] * (width - len(e))] for e in rows])
    labels = torch.tensor([[*label_ids(e, "completion"), *[UNLEARNT] * (width - len(e) + 1)] for e in rows])
    mask = torch.tensor([[1] * len(e) + [0] * (width - len(e)) for e in rows])
    learnt = labels[:, -keep:]
    return {
        "input_ids": ids, "attention_mask": mask, "logits_to_keep": keep, "labels": learnt, "shift_labels": learnt
    }  # fmt: skip
