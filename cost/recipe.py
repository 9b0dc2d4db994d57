"""What runs on one GPU: the recipe that memory and time are computed from, and the one of train_entry."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cost.gpus import Gpu
from cost.shapes import ModelShape
from cost.stacks import (
    AUTOCAST_ADAPTER,
    AUTOCAST_ADAPTER_NO_DROPOUT,
    CAST_ADAPTER,
    CAST_ADAPTER_NO_DROPOUT,
    TRAINER,
    AdapterCost,
    Stack,
    with_dora,
)
from launcher.spec import JobSpec
from train_entry.config import Tuning

MICRO_BATCH = 4
"""Rows a forward pass on a GPU when the job names none (train_entry/trainers.py, GPU_MICRO_BATCH)."""

NF4_BYTES = 0.5 + 4 / 64
"""Bytes a weight: 4 bits, and an fp32 scale for each block of 64 (QLoRA, https://arxiv.org/abs/2305.14314)."""
NF4_DOUBLE_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""The same with the scales quantised to 8 bits, an fp32 scale for each 256 of them."""

Method = Literal["sft", "dpo", "reward", "rl"]


@dataclass(frozen=True)
class Module:
    """One adapted matrix of every layer."""

    name: str
    d_in: int
    d_out: int


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """LoRA in every layer."""

    rank: int
    modules: tuple[Module, ...]

    @property
    def params_a_layer(self) -> int:
        """rank x (d_in + d_out) for each module."""
        return sum(self.rank * (m.d_in + m.d_out) for m in self.modules)

    @property
    def distinct_inputs(self) -> int:
        """Widths of the inputs, those that several modules share counted once; attention keeps o's anyway."""
        return sum({_INPUT[m.name]: m.d_in for m in self.modules if m.name != "o"}.values())


_INPUT = {"q": "attention", "k": "attention", "v": "attention", "qkv": "attention", "o": "o",
          "gate": "ffn", "up": "ffn", "down": "down"}  # fmt: skip
"""Module -> what it reads."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One micro-batch on one GPU, in the quantities that cost something. Bytes are per parameter."""

    shape: ModelShape
    gpu: Gpu
    gpus: int = 1
    """GPUs a machine."""
    nodes: int = 1
    stack: Stack = TRAINER
    method: Method = "sft"
    full: bool = False
    """Do all weights learn?"""
    adapters: Adapters | None = None
    quant: str | None = None
    """nf4 or another 4-bit form of the block matrices; None: as they are."""
    linear_bytes: float = 2.0
    """A weight of the blocks."""
    outer_bytes: float = 2.0
    """A weight of embedding, head and norms."""
    cast_bytes: float = 0.0
    """Under autocast, the copy of an fp32 weight in the computing type, which autograd keeps."""
    trained_bytes: float = 0.0
    """A trained parameter's further copies: none for full tuning, whose weights are counted above."""
    gradient_bytes: float = 4.0
    optimizer_bytes: float = 8.0
    checkpointing: bool = False
    """Gradient checkpointing of whole blocks."""
    offloaded: bool = False
    """Are the checkpoints kept in the host's memory?"""
    tokens: float
    """Tokens a micro-batch, padding included, on average."""
    peak_tokens: float
    """Tokens of the largest micro-batch."""
    span: float
    """Tokens that attention works over in a row; twice that where no kernel skips the masked half."""
    head_tokens: float
    """Places of an average micro-batch that get logits."""
    peak_head_tokens: float
    """Places whose logits stand in memory at once, in the largest micro-batch."""
    accumulation: int = 1
    """Micro-batches an optimizer step."""
    sharded: bool = False
    """FSDP or ZeRO-3: weights, gradients and optimizer state shared out over all GPUs; else each has all."""
    tensor_parallel: int = 1
    """GPUs that work on one micro-batch together."""
    mixed_lengths: bool = False
    """Do micro-batches differ in their tokens?"""

    @property
    def ranks(self) -> int:
        return self.gpus * self.nodes

    @property
    def shards(self) -> int:
        """GPUs that the weights are shared out over."""
        return self.ranks if self.sharded else self.tensor_parallel

    @property
    def trained(self) -> float:
        """Parameters that learn."""
        if self.full:
            return self.shape.params
        return self.adapters.params_a_layer * self.shape.layers if self.adapters else 0

    @property
    def residual_bytes(self) -> float:
        """An element of the hidden state between layers: autocast leaves it in the embedding's type."""
        return max(2.0, self.outer_bytes)

    @property
    def recomputed(self) -> float:
        """Share of the blocks' forward arithmetic done again in the backward pass.

        Checkpoints stop before the last matrix product, whose output nothing needs, unless it has an adapter
        or they are reentrant. Example: Llama 3.1 8B without an adapter on it: 1 - 58.7 M / 218.1 M = 0.731.
        """
        if not self.checkpointing:
            return 0.0
        last = self.adapters is not None and any(m.name == "down" for m in self.adapters.modules)
        return 1.0 if self.stack.recomputes_all or last else 1.0 - self.shape.down_share


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How long the rows are, in tokens, as the trainer sees them (after truncation)."""

    lengths: Sequence[int]
    """Of whole rows, ascending."""
    answers: Sequence[int]
    """Of the learnt part of each row, ascending."""

    @classmethod
    def of(cls, lengths: Sequence[int], answers: Sequence[int]) -> Rows:
        if not lengths or not answers:
            raise ValueError("rows need at least one length and one answer")
        return cls(lengths=tuple(sorted(lengths)), answers=tuple(sorted(answers)))


def longest_of(ascending: Sequence[int], draws: int) -> float:
    """Expected longest of `draws` rows drawn at random: what a padded micro-batch is as wide as.

    Example: of lengths 10, 20 two draws are both 10 in a quarter of the cases: 0.25 x 10 + 0.75 x 20 = 17.5.
    """
    return _longest_of(tuple(ascending), draws)


@functools.lru_cache(maxsize=256)  # every GPU asks the same of the same rows
def _longest_of(ascending: tuple[int, ...], draws: int) -> float:
    n = len(ascending)
    return sum(length * (((i + 1) / n) ** draws - (i / n) ** draws) for i, length in enumerate(ascending))


def modules_of(shape: ModelShape, targets: str | Sequence[str]) -> tuple[Module, ...] | None:
    """The matrices of a block that get an adapter: all-linear, or layer names as the model has them.

    None when a name is not one of a block's matrices: then nobody knows here how large it is.
    """
    hidden, query, kv, ffn = shape.hidden, shape.query, shape.kv, shape.ffn
    every = {
        "q": Module("q", hidden, query), "k": Module("k", hidden, kv), "v": Module("v", hidden, kv),
        "o": Module("o", query, hidden), "up": Module("up", hidden, ffn), "down": Module("down", ffn, hidden),
    }  # fmt: skip
    if shape.gated:
        every["gate"] = Module("gate", hidden, ffn)
    if targets == "all-linear":
        return tuple(every.values())
    names = [targets] if isinstance(targets, str) else list(targets)
    chosen = [every.get(_ALIASES.get(name, name.removesuffix("_proj"))) for name in names]
    return None if None in chosen or not chosen else tuple(m for m in chosen if m is not None)


_ALIASES = {"dense": "o", "fc1": "up", "fc2": "down", "c_proj": "down", "out_proj": "o", "o_proj": "o"}


def micro_batches(batch_size: int, wanted: int | None, ranks: int) -> tuple[int, int] | None:
    """(rows a forward pass, passes a step), as train_entry shares a batch out; None when it refuses to.

    Example: 16 rows on 2 GPUs at no more than 3 a pass: 8 each, 2 a pass, 4 passes.
    """
    share, rest = divmod(batch_size, ranks)
    if rest or not share:
        return None
    limit = min(wanted or MICRO_BATCH, share)
    micro = max(m for m in range(1, limit + 1) if share % m == 0)
    return micro, share // micro


def recipe_of(
    job: JobSpec, shape: ModelShape, gpu: Gpu, rows: Rows, *, gpus: int = 1, nodes: int = 1
) -> Recipe | None:
    """What train_entry does with `job` on `gpus` x `nodes` of `gpu`; None when it would refuse the job there."""
    split = micro_batches(job.train.batch_size, job.train.micro_batch, gpus * nodes)
    if split is None:
        return None
    micro, accumulation = split
    tokens, peak, span = _tokens(job, rows, micro)
    head, peak_head = _head_tokens(job, rows, micro, tokens, peak)
    checkpointing = job.train.gradient_checkpointing
    recipe = Recipe(
        shape=shape, gpu=gpu, gpus=gpus, nodes=nodes, method=_method(job), full=job.tuning.kind == "full",
        checkpointing=True if checkpointing is None else checkpointing,
        tokens=tokens, peak_tokens=peak, span=span, head_tokens=head, peak_head_tokens=peak_head,
        accumulation=accumulation, mixed_lengths=not job.train.packing,
    )  # fmt: skip
    return _with_tuning(recipe, job.tuning, job.model.dtype)


def _method(job: JobSpec) -> Method:
    """The job's method as far as its cost is known; everything that generates while it learns is `rl`."""
    known: Mapping[str, Method] = {"sft": "sft", "dpo": "dpo", "reward": "reward"}
    return known.get(job.method, "rl")


def _with_tuning(recipe: Recipe, tuning: Tuning, dtype: str) -> Recipe | None:
    """Weights and optimizer state as train_entry/models.py makes them: fp32 masters, bf16 or NF4 base."""
    weight = {"float32": 4.0}.get(dtype, 4.0 if recipe.full and dtype == "auto" else 2.0)
    cast = 2.0 if weight == 4 else 0.0
    if recipe.full:
        return replace(
            recipe, linear_bytes=weight, outer_bytes=weight, cast_bytes=cast, gradient_bytes=weight,
            optimizer_bytes=2 * weight,
        )  # fmt: skip
    modules = modules_of(recipe.shape, tuning.targets)
    if modules is None:
        return None
    stack = replace(recipe.stack, adapter=_adapter_of(tuning))
    if tuning.dora:
        stack = with_dora(stack, recipe.shape, bool(tuning.dropout))
    # An fp32 adapter and the bf16 copy that autocast makes of it.
    adapted = replace(
        recipe, stack=stack, adapters=Adapters(rank=tuning.r, modules=modules), trained_bytes=6.0,
        linear_bytes=weight, outer_bytes=weight, cast_bytes=cast,
    )  # fmt: skip
    if tuning.kind == "qlora":
        # prepare_model_for_kbit_training makes fp32 of what is not quantised (peft 0.21.2, utils/other.py).
        return replace(adapted, quant="nf4", linear_bytes=NF4_DOUBLE_BYTES, outer_bytes=4.0, cast_bytes=2.0)
    return adapted


def _adapter_of(tuning: Tuning) -> AdapterCost:
    """train_entry casts the adapters of plain layers; those of 4-bit ones and DoRA's are peft's own."""
    if tuning.kind == "qlora" or tuning.dora:
        return AUTOCAST_ADAPTER if tuning.dropout else AUTOCAST_ADAPTER_NO_DROPOUT
    return CAST_ADAPTER if tuning.dropout else CAST_ADAPTER_NO_DROPOUT


def _tokens(job: JobSpec, rows: Rows, micro: int) -> tuple[float, float, float]:
    """(tokens a micro-batch, of the largest one, attention's span).

    Padded rows are as wide as their longest, and a mask keeps attention from skipping the upper half. Packed
    rows are one sequence of max_length with a block mask.
    """
    if job.train.packing:
        width = float(job.data.max_length)
        return micro * width, micro * width, 2 * width
    width = longest_of(rows.lengths, micro)
    return micro * width, float(micro * rows.lengths[-1]), 2 * width


def _head_tokens(job: JobSpec, rows: Rows, micro: int, tokens: float, peak: float) -> tuple[float, float]:
    """(places that get logits, those whose logits stand in memory together).

    train_entry takes logits at the columns where an answer stands, all at once, as long as those are no more than
    half of the columns (CompletionTrainer); else TRL's fused head works in tiles that hold next to nothing, over
    every learnt token.
    """
    answer = longest_of(rows.answers, micro)
    if job.train.packing or job.train.loss_on == "all" or 2 * micro * answer > tokens:
        share = min(1.0, sum(rows.answers) / sum(rows.lengths)) if job.train.loss_on == "completion" else 1.0
        # A batch of short prompts may still take the other path.
        return tokens * share, 0.0 if job.train.packing or job.train.loss_on == "all" else peak / 2
    return micro * answer, min(peak / 2, float(micro * rows.answers[-1]))
