"""Recipes that the tests of memory and time share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from cost.gpus import GPUS, find_gpu
from cost.recipe import NF4_DOUBLE_BYTES, Adapters, Recipe, modules_of
from cost.shapes import KNOWN_MODELS, known_shape
from cost.stacks import TRAINER

LLAMA = known_shape("llama-3.1-8b")


def recipe(**fields: Any) -> Recipe:
    """Llama 3.1 8B, frozen, one A100-80GB, 1,000 tokens in one row, FlashAttention-2; `fields` win."""
    given: dict[str, Any] = {
        "shape": LLAMA, "gpu": find_gpu("A100-80GB"), "stack": replace(TRAINER, attention="flash2"),
        "tokens": 1000, "peak_tokens": 1000, "span": 1000, "head_tokens": 1000, "peak_head_tokens": 1000,
        "trained_bytes": 6.0,
    }  # fmt: skip
    return Recipe(**{**given, **fields})


def lora(targets: str | tuple[str, ...] = "all-linear", rank: int = 16) -> Adapters:
    """Adapters of Llama 3.1 8B: 41,943,040 parameters on all linear layers at rank 16."""
    return Adapters(rank=rank, modules=modules_of(LLAMA, targets) or ())


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe that train_entry or a sharded trainer could follow."""
    shape = known_shape(draw(st.sampled_from(KNOWN_MODELS)))
    kind = draw(st.sampled_from(["lora", "qlora", "full"]))
    targets = draw(st.sampled_from(["all-linear", ("q_proj", "v_proj")]))
    tokens = draw(st.floats(1, 1e6))
    head = draw(st.floats(0, tokens))
    base = Recipe(
        shape=shape, gpu=draw(st.sampled_from(list(GPUS.values()))), gpus=draw(st.integers(1, 8)),
        nodes=draw(st.integers(1, 4)), full=kind == "full", checkpointing=draw(st.booleans()), tokens=tokens,
        peak_tokens=tokens * draw(st.floats(1, 4)), span=draw(st.floats(1, 32768)), head_tokens=head,
        peak_head_tokens=head, accumulation=draw(st.integers(1, 16)), sharded=draw(st.booleans()),
        mixed_lengths=draw(st.booleans()), method=draw(st.sampled_from(["sft", "dpo", "reward"])),
    )  # fmt: skip
    if kind == "full":
        return replace(base, linear_bytes=4.0, outer_bytes=4.0, cast_bytes=2.0)
    adapted = replace(
        base, adapters=Adapters(rank=16, modules=modules_of(shape, targets) or ()), trained_bytes=6.0
    )
    if kind == "qlora":
        return replace(adapted, quant="nf4", linear_bytes=NF4_DOUBLE_BYTES, outer_bytes=4.0, cast_bytes=2.0)
    return adapted
