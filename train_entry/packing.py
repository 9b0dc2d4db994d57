"""How rows are put into forward passes: chosen by what the rows and the model make cheapest, then checked.

prefix     rows are a tree: what they begin with alike is computed once (train_entry/prefix.py), and on a CPU no
           pair of tokens of different rows (train_entry/tree_attention.py)
flat       rows end to end without padding (TRL's padding-free batches); a step still has train.batch_size rows
padded     rows side by side, padded to the longest
sequences  sequences of data.max_length filled with rows (TRL's packing); a step has batch_size sequences
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from train_entry.config import TrainJob
from train_entry.data import Example, label_ids
from train_entry.prefix import ROW_TOKENS, PrefixCollator, packs_of, width_of
from train_entry.tree_attention import by_segments

Kind = Literal["prefix", "flat", "padded", "sequences"]

EXACT = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "granite", "olmo2", "smollm3", "starcoder2")
"""model_type whose layers take a mask of our own and see nothing but it and the positions (a test says so)."""
BUDGET = 2048
"""Tokens of a pack: its mask is quadratic, and so is its attention."""
LOGITS = 512
"""Learnt tokens a pass for which more rows may share it."""
ATTENTION = 2.0
"""Time of an attention's multiplication under a mask, in that of one of the linear layers."""
GAIN = 0.95
"""A way is taken when it costs this much of the simpler one, or less."""
SAMPLED, CHECKED = 256, 8
"""Rows that the costs are measured on, and that the check computes."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The way that was chosen, why, and how many rows a pass and passes a step it takes."""

    kind: Kind
    why: str
    micro: int
    passes: int

    def collator(self, pad: int) -> Any:
        """For a prefix or flat pass; `pad` is the tokenizer's."""
        if self.kind == "prefix":
            return PrefixCollator(BUDGET)
        return DataCollatorForLanguageModeling(pad_token_id=pad, padding_free=True)


@dataclass(frozen=True)
class Cost:
    """What a row costs: tokens computed, and pairs of them that attention computes."""

    tokens: float
    pairs: float


def choose(
    model: Any, config: Any, job: TrainJob, rows: Sequence[Example], pad: int,
    agreed: Callable[[bool], bool], tell: Callable[[str], None], most_rows: int | None = None,
) -> Packing:  # fmt: skip
    """The cheapest way that gives the unpacked loss. `agreed`: whether it is true on every rank.

    `most_rows`: what the device is known to take in a pass.
    """
    asked = job.train.packing
    micro, passes = config.per_device_train_batch_size, config.gradient_accumulation_steps
    if asked is not None:
        said = f"train.packing is {str(asked).lower()}"
        return Packing(kind="sequences" if asked else "padded", why=said, micro=micro, passes=passes)
    refused = ""
    for packing in _by_cost(model, config, job, rows, most_rows):
        if packing.kind != "padded":
            off = difference(model, packing, job, rows, pad)
            if not agreed(off <= tolerance(model)):
                refused += f"; {packing.kind} packing gave another loss, by {off:.2g} of it"
                tell(f"{packing.kind} packing is left out: its loss differs by {off:.2g} of the unpacked one")
                continue
        return Packing(kind=packing.kind, why=packing.why + refused, micro=packing.micro, passes=packing.passes)
    raise AssertionError("padded is always possible")


def obstacle(model: Any, config: Any, job: TrainJob) -> str | None:
    """Why a shared prefix can't be computed once for this model and job; None when it can."""
    about = model.config.get_text_config()
    layers = set(getattr(about, "layer_types", None) or ["full_attention"])
    window = getattr(about, "sliding_window", None) if getattr(about, "use_sliding_window", True) else None
    reasons = {
        "every token is learnt, the shared ones too (train.loss_on: all)": job.train.loss_on == "all",
        "label smoothing is on": bool(config.label_smoothing_factor),
        "one process drives several GPUs": config.n_gpu > 1,
        f"attention is {about._attn_implementation}, not sdpa": about._attn_implementation != "sdpa",
        "the model has sliding-window attention": window is not None or any("sliding" in kind for kind in layers),
        f"the model has {', '.join(sorted(layers))} layers": layers != {"full_attention"},
        f"{about.model_type} models are not known to take a mask of one's own": about.model_type not in EXACT,
    }
    return next((why for why, true in reasons.items() if true), None)


def difference(model: Any, packing: Packing, job: TrainJob, rows: Sequence[Example], pad: int) -> float:
    """How far the losses of the first rows' tokens, packed, are from those of the rows alone, as a share."""
    first = sorted(rows[: max(2, min(CHECKED, packing.micro))], key=lambda row: row.prompt)
    tokens = [as_tokens(row, job.train.loss_on) for row in first]
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        packed = learnt_losses(model, packing.collator(pad)(tokens))
        alone = torch.cat([learnt_losses(model, _single(row)) for row in tokens])
    model.train(was_training)
    if packed.shape != alone.shape:
        return float("inf")
    return float((packed - alone).abs().sum() / alone.sum().clamp(min=1e-6))


def tolerance(model: Any) -> float:
    """What rounding may make of the loss's share, by the type of the base weights."""
    narrow = any(p.dtype in (torch.bfloat16, torch.float16, torch.uint8) for p in model.parameters())
    return 3e-2 if narrow else 1e-3


def as_tokens(row: Example, loss_on: str) -> dict[str, list[int]]:
    return {"input_ids": [*row.prompt, *row.completion], "labels": label_ids(row, loss_on)}


def _by_cost(
    model: Any, config: Any, job: TrainJob, rows: Sequence[Example], most_rows: int | None
) -> Iterator[Packing]:
    """The ways that are possible, the one to take first; padded is the last."""
    micro, passes = config.per_device_train_batch_size, config.gradient_accumulation_steps
    price, segments = _price(model), by_segments(model.device)
    widest = max(map(len, rows))
    most = most_rows or micro * passes
    # The price has no launches of kernels in it: with fewer rows a pass a GPU waits for them.
    least = 1 if segments else micro
    divisors = [micro] if job.train.micro_batch else _divisors(micro * passes)
    sizes = [size for size in divisors if size == micro or least <= size <= most]
    costs: dict[Kind, tuple[Cost, int]] = {"padded": (_cost(rows, micro, "padded"), micro)}
    why_not = obstacle(model, config, job)
    for kind in ("flat", "prefix"):
        if config.n_gpu > 1 or (kind == "prefix" and why_not):
            continue
        fitting = [s for s in sizes if s <= micro or _fits(rows, s, kind, min(BUDGET, micro * widest))]
        found = [(_cost(rows, size, kind, segments), size) for size in fitting]
        costs[kind] = min(found, key=lambda one: price(one[0]))
    best: Kind = "padded"
    order: list[Kind] = ["padded"]
    for kind in ("flat", "prefix"):
        if kind in costs and price(costs[kind][0]) <= GAIN * price(costs[best][0]):
            best = kind
            order.insert(0, kind)
    note = f"; no shared prefix: {why_not}" if why_not else ""
    for kind in order:
        cost, size = costs[kind]
        yield Packing(kind=kind, why=_said(rows, kind, cost, costs["padded"][0]) + note, micro=size,
                      passes=micro * passes // size)  # fmt: skip


def _said(rows: Sequence[Example], kind: Kind, cost: Cost, padded: Cost) -> str:
    mean = sum(map(len, rows)) / len(rows)
    compared = "" if kind == "padded" else f", {padded.tokens:.1f} if padded"
    return f"{cost.tokens:.1f} tokens are computed for a row of {mean:.1f}{compared}"


def _price(model: Any) -> Callable[[Cost], float]:
    """Multiplications of a row's cost in this model, attention's weighed by their time."""
    about = model.config.get_text_config()
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    width = about.num_attention_heads * (
        getattr(about, "head_dim", None) or about.hidden_size // about.num_attention_heads
    )
    linear = base.num_parameters(exclude_embeddings=True)
    attention = ATTENTION * 2 * width * about.num_hidden_layers
    return lambda cost: cost.tokens * linear + cost.pairs * attention


def _divisors(share: int) -> list[int]:
    return [size for size in range(1, share + 1) if share % size == 0]


def _samples(rows: Sequence[Example], size: int) -> list[list[Example]]:
    """Passes of `size` rows as training draws them, always the same ones."""
    drawn = random.Random(0).sample(list(rows), min(len(rows), SAMPLED))
    return [drawn[at : at + size] for at in range(0, max(1, len(drawn) - size + 1), size)]


def _cost(rows: Sequence[Example], size: int, kind: Kind, segments: bool = False) -> Cost:
    passes = [_pass(batch, kind, segments) for batch in _samples(rows, size)]
    count = sum(len(batch) for batch in _samples(rows, size))
    return Cost(sum(cost.tokens for cost in passes) / count, sum(cost.pairs for cost in passes) / count)


def _pass(batch: Sequence[Example], kind: Kind, segments: bool = False) -> Cost:
    """`segments`: a prefix pass computes no pair of tokens that its mask would hide."""
    if kind == "padded":
        width = max(map(len, batch))
        return Cost(len(batch) * width, len(batch) * width**2)
    if kind == "flat":
        tokens = sum(map(len, batch))
        return Cost(tokens, tokens**2)
    packs = packs_of([(e.prompt, e.completion) for e in batch], BUDGET)
    width = width_of(packs)
    pairs = sum(pack.tree(width).pairs for pack in packs) if segments else len(packs) * width**2
    return Cost(len(packs) * width, pairs)


def _fits(rows: Sequence[Example], size: int, kind: Kind, budget: int) -> bool:
    """Whether passes of `size` rows keep within the memory that padded ones may take."""
    samples = _samples(rows, size)
    learnt = max(sum(len(e.completion) for e in batch) for batch in samples)
    return learnt <= LOGITS and max(_pass(batch, kind).tokens for batch in samples) <= budget


def _single(row: dict[str, list[int]]) -> dict[str, Any]:
    return {key: torch.tensor([value]) for key, value in row.items()}


def learnt_losses(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The learnt tokens' losses of a batch from any collator, in its order."""
    labels = batch["labels"]
    if "shift_labels" not in batch:
        columns = (labels[:, 1:] != -100).any(dim=0).nonzero().squeeze(1)
        batch, labels = {**batch, "logits_to_keep": columns}, labels[:, columns + 1]
    rest = {k: v for k, v in batch.items() if k not in ("labels", "shift_labels", ROW_TOKENS)}
    there = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in rest.items()}
    logits = model(**there, use_cache=False).logits
    targets = labels.flatten()
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.to(logits.device), ignore_index=-100, reduction="none"
    )
    return losses.cpu()[targets != -100]
