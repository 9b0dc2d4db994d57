"""How much memory a recipe needs on each GPU, part by part.

    peak = weights + optimizer state + the largest of
             at the loss:          earlier gradients + what autograd keeps + logits
             as backward ends:     all gradients + one layer
             in the optimizer step: all gradients + its scratch
           + what the allocator, CUDA and NCCL take for themselves

Every part is a short function below, with its example; the numbers a layer come from cost/stacks.py. All parts
are GiB (2**30 bytes).
"""

from __future__ import annotations

from typing import Literal

from cost.band import Band, Part, Refusal
from cost.recipe import Recipe

GIB = 2**30

CONTEXT_GIB = 0.5
"""CUDA context, cuBLAS and kernel images of a PyTorch process: what nvidia-smi shows before the first tensor."""
COMMUNICATION_GIB = 0.8
"""NCCL's buffers, once there is more than one GPU."""
FRAGMENTED = 0.03
"""Share of what comes and goes that PyTorch's allocator holds beside it, on average. Between peft's public
max_memory_reserved and what autograd keeps by count lie 2 to 4 %."""
FRAGMENTED_AT_MOST = 0.12
CACHED_GIB = 0.4
"""What the allocator holds whatever the size: cuBLAS workspaces and half-used segments of 2 and 20 MiB."""

BESIDE = ("fragments", "cache", "runtime")
"""Parts that are no tensors."""
Counted = Literal["allocated", "reserved", "device"]
"""By tensors (max_memory_allocated), by PyTorch's allocator (max_memory_reserved), or by the whole process: what
has to fit on the GPU."""

Fit = Literal["yes", "tight", "no"]


def memory(recipe: Recipe, counted: Counted = "device") -> Band | Refusal:
    """GiB that each GPU needs at the peak of a training step."""
    if recipe.method == "rl":
        return Refusal("reinforcement learning: its generation engine takes what it is given, no public figures")
    parts = {
        "weights": Part(value=weights_gib(recipe), less=0.01, more=0.02),
        "optimizer": Part(value=optimizer_gib(recipe), less=0.05, more=0.10),
        **_largest_phase(recipe),
    }
    if counted != "allocated":
        moving = sum(p.value for name, p in parts.items() if name not in ("weights", "optimizer"))
        parts["fragments"] = Part(value=FRAGMENTED * moving, less=1.0, more=FRAGMENTED_AT_MOST / FRAGMENTED - 1)
        parts["cache"] = Part(value=CACHED_GIB, less=0.8, more=1.5)
    if counted == "device":
        runtime = CONTEXT_GIB + recipe.stack.buffers_gib + (COMMUNICATION_GIB if recipe.ranks > 1 else 0.0)
        parts["runtime"] = Part(value=runtime, less=0.3, more=0.5)
    return Band.of(parts)


def corrected(needed: Band, factor: float) -> Band:
    """The same where the peak of tensors was measured as `factor` times what is computed.

    What the allocator and CUDA take stays as it is. What is not known of the tensors then is half as much.
    Example: 14-16-20 GiB, of which 15 are tensors, and a factor of 1.1: 16.5-17.5-19.5.
    """
    tensors = sum(value for name, value in needed.parts.items() if name not in BESIDE)
    more = tensors * (factor - 1)
    expected = needed.expected + more
    return Band(
        low=expected - (needed.expected - needed.low) / 2,
        expected=expected,
        high=expected + (needed.high - needed.expected) / 2,
        parts={**needed.parts, "measured": more},
    )


def fits(needed: Band, available_gib: float) -> Fit:
    """Does it fit: surely, probably, or not as far as is known."""
    if needed.high <= available_gib:
        return "yes"
    return "tight" if needed.expected <= available_gib else "no"


def _largest_phase(recipe: Recipe) -> dict[str, Part]:
    """What is there beside weights and optimizer state when there is most."""
    earlier, late, every = gradients_gib(recipe)
    passing = unpacked_gib(recipe)
    phases = (
        {"gradients": earlier, "activations": kept_gib(recipe), "logits": logits_gib(recipe), "scratch": passing},
        {"gradients": late, "activations": layer_gib(recipe), "scratch": passing},
        {"gradients": every, "scratch": optimizer_scratch_gib(recipe)},
    )
    largest = max(phases, key=lambda phase: sum(phase.values()))
    return {name: Part(value=value, less=_LESS[name], more=_MORE[name]) for name, value in largest.items()}


_LESS = {"gradients": 0.05, "activations": 0.15, "logits": 0.25, "scratch": 0.50}
_MORE = {"gradients": 0.10, "activations": 0.25, "logits": 0.30, "scratch": 1.00}
"""Shares by which the parts may be less or more: other versions of the libraries, other kernels."""


def weights_gib(recipe: Recipe) -> float:
    """All weights of the model, quantised or not, shared out, and the adapters.

    Example: Llama 3.1 8B in bf16 with 42 M LoRA parameters (6 bytes each): (8.03e9 x 2 + 0.25e9) / 2**30 = 15.2.
    """
    shape = recipe.shape
    model = shape.block_params * recipe.linear_bytes + (shape.outer_params + shape.vectors) * recipe.outer_bytes
    if recipe.full and recipe.method == "dpo":
        model *= 2  # the untouched reference; with LoRA it is the base without its adapters
    return (model / recipe.shards + recipe.trained * recipe.trained_bytes / _shared(recipe)) / GIB


def optimizer_gib(recipe: Recipe) -> float:
    """Example: fp32 AdamW on 42 M LoRA parameters: 8 x 42e6 / 2**30 = 0.31."""
    return recipe.trained * recipe.optimizer_bytes / _shared(recipe) / GIB


def gradients_gib(recipe: Recipe) -> tuple[float, float, float]:
    """(gradients at the loss, when only the first layer is left, at the end).

    Those of earlier micro-batches are there all along; DDP's buckets hold a second copy. Those of a single
    micro-batch grow from the head down: at the loss there is the head's, the embedding's comes last.
    Example: 42 M fp32 gradients of LoRA, one micro-batch: 0.00, 0.15, 0.16; on two GPUs each time 0.31.
    """
    shape = recipe.shape
    every = recipe.trained * recipe.gradient_bytes / _shared(recipe) / GIB
    if recipe.ranks > 1 and not recipe.sharded:
        return 2 * every, 2 * every, 2 * every
    if recipe.accumulation > 1 or recipe.ranks > 1:
        return every, every, every
    if not recipe.full:
        return 0.0, every * (1 - 1 / shape.layers), every
    head = shape.embedding_params / shape.params
    last = shape.block_params / shape.layers / shape.params + (0.0 if shape.tied else head)
    return every * head, every * (1 - last), every


def kept_gib(recipe: Recipe) -> float:
    """What autograd keeps for the backward pass.

    Without checkpoints every layer's inputs; with them one hidden state a layer and, as far as it is more than
    the logits, one layer in full. Example: Llama 3.1 8B frozen, 4,096 tokens: without 32 x 139,264 x 4096 / 2**30
    = 17.0; with checkpoints 32 x 2 x 4096 x 4096 / 2**30 = 1.00 and a layer of 0.53.
    """
    shape, tokens = recipe.shape, recipe.peak_tokens / recipe.tensor_parallel
    head_copy = recipe.cast_bytes * shape.embedding_params if recipe.outer_bytes > 2 else 0.0
    if not recipe.checkpointing:
        return shape.layers * layer_gib(recipe) + head_copy / GIB
    checkpoints = 0.0 if recipe.offloaded else recipe.residual_bytes * shape.hidden * shape.layers * tokens
    # The logits are gone when the first layer is run again.
    return (checkpoints + head_copy) / GIB + max(0.0, layer_gib(recipe) - logits_gib(recipe))


def layer_gib(recipe: Recipe) -> float:
    """One layer in full, with bf16 copies of its weights where the masters are fp32."""
    tokens = recipe.peak_tokens / recipe.tensor_parallel
    copies = (
        recipe.cast_bytes * recipe.shape.block_params / recipe.shape.layers if recipe.linear_bytes > 2 else 0.0
    )
    return (layer_bytes(recipe) * tokens + copies) / GIB


def layer_bytes(recipe: Recipe) -> float:
    """Bytes a token that autograd keeps of one layer, its adapters included.

    Example: Llama 3.1 8B frozen 12 x 4096 + 4 x 1024 + 6 x 14336 = 139,264; an adapter with dropout on q and v
    adds 3 x (4096 + 4096) = 24,576.
    """
    stack, shape = recipe.stack, recipe.shape
    block = stack.blocks[shape.block]
    kept = (block.kept_trained if recipe.full else block.kept_frozen).bytes(shape)
    if recipe.adapters:
        inputs = (
            sum(m.d_in for m in recipe.adapters.modules)
            if stack.adapter.own_copy
            else (recipe.adapters.distinct_inputs)
        )
        kept += stack.adapter.kept * inputs
    if recipe.quant and stack.keeps_unpacked_inputs:
        kept += 2 * (3 * shape.hidden + shape.ffn)
    return kept


def logits_gib(recipe: Recipe) -> float:
    """Logits, their fp32 copy, log-probabilities and gradient, as many as live at once.

    Example: 1,024 places, 128,256 words, 12.5 bytes: 1.53.
    """
    places = recipe.peak_head_tokens / recipe.tensor_parallel
    return places * recipe.shape.vocab * recipe.stack.logit_bytes / GIB


def unpacked_gib(recipe: Recipe) -> float:
    """What a pass over the layers needs for a moment: a 4-bit matrix unpacked, layers gathered from all GPUs.

    Example: Llama 3.1 8B in NF4: its largest matrix in bf16, 2 x 4096 x 14336 / 2**30 = 0.11.
    """
    shape = recipe.shape
    scratch = 2.0 * shape.hidden * shape.ffn if recipe.quant else 0.0
    if recipe.sharded:
        # FSDP holds the layer at work and the next one whole, in the type they travel in.
        layer = min(2.0, recipe.linear_bytes) * shape.block_params / shape.layers
        scratch += 2 * layer + 2.0 * shape.embedding_params
    return scratch / GIB


def optimizer_scratch_gib(recipe: Recipe) -> float:
    """What an optimizer that is not fused needs for a moment: torch's foreach AdamW 8 bytes, fused ones nothing.

    Example: 42 M LoRA parameters, 8 bytes: 0.31.
    """
    return recipe.trained * recipe.stack.optimizer_scratch / _shared(recipe) / GIB


def _shared(recipe: Recipe) -> int:
    """Over how many GPUs the trained parameters' state is shared out."""
    return recipe.ranks if recipe.sharded else recipe.tensor_parallel
