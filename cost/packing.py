"""Rows that share a pass without padding: what training comes to where it takes them so (train_entry/packing.py).

Which way it takes is decided by the loaded model, where the job runs. So the estimate's low end is that of the
packed rows, and its middle that of padded ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cost.band import Band
from cost.recipe import Recipe
from cost.throughput import micro_batch_s
from cost.work import Work

BUDGET, LOGITS, GAIN = 2048, 512, 0.95
"""Tokens and learnt tokens a pass for which more rows share it; rows are packed when that takes this share of the
padded time or less. They are those of train_entry/packing.py."""


def packed_s(work: Work, recipe: Recipe, padded_s: float) -> Band | None:
    """Seconds of all steps when rows are packed the cheapest way; None where they are not."""
    if work.job.train.packing is not None or recipe.method != "sft":
        return None
    found = list(_ways(work, recipe))
    best = min(found, key=lambda one: one.expected, default=None)
    return best if best and best.expected <= GAIN * padded_s else None


def _ways(work: Work, recipe: Recipe) -> Iterator[Band]:
    train = work.job.train
    share = train.batch_size // recipe.ranks
    padded = share // recipe.accumulation
    mean = sum(work.rows.lengths) / len(work.rows.lengths)
    answer = sum(work.rows.answers) / len(work.rows.answers)
    shared_tokens = dict(work.shared) if train.loss_on == "completion" else {}
    for size in [padded] if train.micro_batch else [n for n in range(1, share + 1) if share % n == 0]:
        each = min(mean, shared_tokens.get(size, mean))
        if size > padded and (size * answer > LOGITS or size * each > min(BUDGET, padded * work.rows.lengths[-1])):
            continue
        tokens = size * each
        changed = replace(
            recipe, tokens=tokens, span=tokens, accumulation=share // size,
            head_tokens=min(tokens, size * answer if train.loss_on == "completion" else tokens),
        )  # fmt: skip
        step = micro_batch_s(changed)
        if isinstance(step, Band):
            yield step.scaled(work.passes(size, recipe.ranks))
