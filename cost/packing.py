"""Which way training puts rows into passes: chosen as train_entry/packing.py chooses it.

There the loaded model has the last word: it computes some rows packed and alone, and takes the next way where
their losses differ. So the time's middle is that of the way chosen here, and its band reaches to the others that
may come of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cost.passes import BUDGET, Kind, Passes
from cost.recipe import Recipe, longest_of
from cost.work import Work

LOGITS, GAIN, ATTENTION = 512, 0.95, 2.0
"""Learnt tokens a pass for which more rows may share it; a way is taken when it costs this much of the simpler
one; time of an attention's multiplication in that of a linear layer's. All are train_entry/packing.py's."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """Passes of `size` rows, and the recipe of one pass on one GPU."""

    kind: Kind
    size: int
    recipe: Recipe
    widest: float
    learnt: float
    """Tokens of the largest pass, and learnt ones."""


@dataclass(frozen=True, kw_only=True)
class Ways:
    """The way that training takes, the others that may come of it, and padded rows, which decide about memory."""

    chosen: Way
    padded: Way
    others: tuple[Way, ...] = ()


def ways_of(work: Work, recipe: Recipe) -> Ways:
    """How training puts the job's rows into passes. `recipe`: that of padded rows.

    train.packing leaves no choice; nor does a count that did not look at how rows share passes.
    """
    micro = work.job.train.batch_size // (recipe.ranks * recipe.accumulation)
    padded = Way(
        kind="padded", size=micro, recipe=recipe, widest=recipe.peak_tokens, learnt=recipe.peak_head_tokens
    )
    if work.job.train.packing is not None or recipe.method != "sft" or not work.passes_by_way:
        return Ways(chosen=padded, padded=padded)
    costs = {one.kind: one for one in _cheapest(work, recipe, micro)}
    if "padded" not in costs:
        return Ways(chosen=padded, padded=padded)
    best = costs["padded"]
    price = _price(recipe)
    for kind in _KINDS:
        if kind in costs and (kind == "flat" or recipe.shape.takes_mask):
            best = costs[kind] if price(costs[kind]) <= GAIN * price(best) else best
    made = {kind: padded if kind == "padded" else _made(work, recipe, one) for kind, one in costs.items()}
    # A way that gains too little against padding is never taken.
    worth = GAIN * price(costs["padded"])
    possible = [kind for kind in costs if kind == "padded" or price(costs[kind]) <= worth]
    others = tuple(made[kind] for kind in possible if kind != best.kind)
    return Ways(chosen=made[best.kind], padded=padded, others=others)


def peak_of(work: Work, way: Way) -> Recipe:
    """The recipe of the largest pass that the job's steps meet: of a few steps not the longest row of all.

    Example: 2 steps of 16 rows, lengths 100 and 200 in equal numbers: 4 x 200 in all but 1 of 4 billion cases.
    """
    train, rows = work.job.train, work.rows
    steps = train.dry_run_steps or train.max_steps
    if way.kind != "padded" or train.packing or not steps:
        return replace(way.recipe, peak_tokens=way.widest, peak_head_tokens=way.learnt)
    draws = min(steps * train.batch_size, work.count)
    widest = way.size * longest_of(rows.lengths, draws)
    learnt = way.size * longest_of(rows.answers, draws)
    return replace(
        way.recipe, peak_tokens=min(way.widest, widest), peak_head_tokens=min(way.learnt, learnt, widest / 2)
    )


_KINDS: tuple[Kind, ...] = ("flat", "prefix")
"""In the order in which they are compared."""


def _cheapest(work: Work, recipe: Recipe, micro: int) -> Iterator[Passes]:
    """Of each way the number of rows a pass that costs least, as long as memory is no more than padding takes.

    Fewer than padded passes have only on a processor: the price has no launches of kernels in it.
    """
    train, price = work.job.train, _price(recipe)
    share = train.batch_size // recipe.ranks
    most = min(BUDGET, micro * work.rows.lengths[-1])
    for kind in ("padded", *_KINDS):
        if kind == "prefix" and train.loss_on != "completion":
            continue
        fitting = [
            one for one in work.passes_by_way
            if one.kind == kind and share % one.size == 0
            and (one.size == micro or (kind != "padded" and not train.micro_batch and (
                _on_processor(recipe) if one.size < micro else one.learnt <= LOGITS and one.widest <= most
            )))
        ]  # fmt: skip
        if fitting:
            yield min(fitting, key=price)


def _price(recipe: Recipe) -> Callable[[Passes], float]:
    """Multiplications for a row in this model, attention's weighed by their time.

    Example: Llama 3.1 8B: its head and blocks have 7.50e9 weights, and a pair of tokens is 2 x 4096 x 32 layers =
    262,144 multiplications, twice as slow: 100 tokens that see 100 each cost 750e9 + 5e9.
    """
    shape = recipe.shape
    linear = shape.params - shape.embedding_params + recipe.trained * (not recipe.full)
    attention = ATTENTION * 2 * shape.query * shape.layers
    return lambda one: one.tokens * linear + _pairs(recipe, one) * attention


def _on_processor(recipe: Recipe) -> bool:
    """Only there nothing is launched elsewhere (cost/processor.py)."""
    return not recipe.stack.kernel_s


def _pairs(recipe: Recipe, one: Passes) -> float:
    """Pairs of tokens that attention computes for a row; a processor leaves out those that a mask would hide."""
    return one.tree_pairs if one.tree_pairs is not None and _on_processor(recipe) else one.pairs


def _made(work: Work, recipe: Recipe, one: Passes) -> Way:
    """The recipe of such a pass. No kernel skips a pair of those that are counted: each is half of a span."""
    train = work.job.train
    share = train.batch_size // recipe.ranks
    tokens = one.size * one.tokens
    answer = sum(work.rows.answers) / len(work.rows.answers)
    learnt = one.size * answer if train.loss_on == "completion" else tokens
    changed = replace(
        recipe, tokens=tokens, span=2 * _pairs(recipe, one) / one.tokens, accumulation=share // one.size,
        head_tokens=min(tokens, learnt),
    )  # fmt: skip
    return Way(
        kind=one.kind, size=one.size, recipe=changed, widest=float(one.widest),
        learnt=float(one.learnt) if train.loss_on == "completion" else 0.0,
    )  # fmt: skip
