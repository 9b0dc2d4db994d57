"""How long judging takes: scoring and answering before and after, and the held-out loss on the way.

All of it runs on one GPU, whatever their number: the others wait (train_entry/train.py). No public run says how
long it takes; the parts are those of a training step without its backward pass, in a wider band.
"""

from __future__ import annotations

import math

from cost.band import Part
from cost.recipe import Recipe, longest_of
from cost.throughput import STREAMED
from cost.work import Work

LESS, MORE = 0.35, 0.60
"""Shares by which judging may be shorter or longer."""
DECODE_KERNELS = 1.5
"""Kernels of one generated token against those of a forward pass: the cache, sampling, generate's bookkeeping."""


def forward_s(recipe: Recipe, tokens: float, passes: float, adapted: bool) -> float:
    """Seconds of `passes` forward passes over `tokens` tokens in all, without a backward pass.

    Example: Llama 3.1 8B without adapters on an A100-80GB, 10 passes of 1,000 tokens: the GPU computes 2 x 6.98e9
    x 1e4 / 218e12 = 0.640 and moves 32 x (106 x 4096 + 20 x 1024 + 10 x 14336) x 1e4 / 1.631e12 = 0.117; the
    processor launches 10 x (32 x 38 x 16 us + 10 ms) = 0.295; the slower counts: 0.757.
    """
    shape, gpu, stack = recipe.shape, recipe.gpu, recipe.stack
    computing = 2 * shape.active_block_params * tokens / (gpu.tflops * 1e12 * gpu.sustained)
    reading = _weights_read(recipe) * passes / (gpu.hbm_gbs * 1e9)
    moved = stack.blocks[shape.block].forward.bytes(shape)
    if adapted and recipe.adapters:
        modules = recipe.adapters.modules
        moved += sum(stack.adapter.forward_in * m.d_in + stack.adapter.forward_out * m.d_out for m in modules)
    moving = moved * shape.layers * tokens / (gpu.hbm_gbs * 1e9 * STREAMED)
    launching = passes * (launch_s(recipe, adapted) + stack.micro_batch_s)
    return max(max(computing, reading) + moving, launching) + passes * unpack_s(recipe)


def decode_s(recipe: Recipe, tokens: float, adapted: bool) -> float:
    """Seconds to generate `tokens` tokens one after the other, for a batch of rows at once.

    Example: Llama 3.1 8B without adapters on an A100-80GB, 100 tokens: launching 32 x 38 x 16 us x 1.5 = 0.0292
    each takes longer than reading 15.0 GB at 2,039 GB/s = 0.0074: 2.92.
    """
    reading = _weights_read(recipe) / (recipe.gpu.hbm_gbs * 1e9)
    launching = DECODE_KERNELS * launch_s(recipe, adapted)
    return tokens * (max(reading, launching) + unpack_s(recipe))


def judging(work: Work, recipe: Recipe, adapted: bool) -> Part:
    """Seconds to judge the model once on the held-out rows: the base model, or with `adapted` the tuned one."""
    rows = work.judged_count
    if not rows:
        return Part(value=0.0)
    job, held_out = work.job, work.held_out
    length = sum(held_out.lengths) / len(held_out.lengths)
    batches = math.ceil(rows / job.eval.batch_size)
    answers = longest_of(held_out.answers, min(job.eval.batch_size, rows))
    if job.task == "classification":
        scored = rows * (length + (work.labels - 1) * sum(held_out.answers) / len(held_out.answers))
        seconds = forward_s(recipe, scored, batches, adapted)
        if job.eval.generation:
            seconds += forward_s(recipe, rows * length, batches, adapted)
            seconds += decode_s(recipe, batches * (answers + 2), adapted)
        return Part(value=seconds, less=LESS, more=MORE)
    # A model that was not taught to stop goes on to the end.
    usual = min(answers, job.eval.max_new_tokens) if adapted else float(job.eval.max_new_tokens)
    prompts = forward_s(recipe, rows * length, batches, adapted)
    value = prompts + decode_s(recipe, batches * usual, adapted)
    longest = prompts + decode_s(recipe, batches * float(job.eval.max_new_tokens), adapted)
    return Part(value=value, less=LESS, more=longest / value * (1 + MORE) - 1)


def held_out_loss(work: Work, recipe: Recipe) -> Part:
    """Seconds that measuring the held-out loss takes on the way, evals_per_epoch times an epoch."""
    job, rows = work.job, work.held_out
    if job.train.dry_run_steps or not work.held_out_count:
        return Part(value=0.0)
    times = max(1, math.ceil(job.train.evals_per_epoch * work.epochs))
    tokens = work.held_out_count * sum(rows.lengths) / len(rows.lengths)
    passes = math.ceil(work.held_out_count / job.eval.batch_size)
    return Part(value=times * forward_s(recipe, tokens, passes, True), less=LESS, more=MORE)


def launch_s(recipe: Recipe, adapted: bool) -> float:
    """Processor time of one forward pass through the layers."""
    kernels = recipe.stack.blocks[recipe.shape.block].kernels_forward
    if adapted and recipe.adapters:
        kernels += recipe.stack.adapter.kernels_forward * len(recipe.adapters.modules)
    return recipe.shape.layers * kernels * recipe.stack.kernel_s


def unpack_s(recipe: Recipe) -> float:
    """Time to unpack the 4-bit weights once."""
    if not recipe.quant:
        return 0.0
    return recipe.shape.block_params * recipe.stack.unpacking / (recipe.gpu.hbm_gbs * 1e9)


def _weights_read(recipe: Recipe) -> float:
    """Bytes of weights that one pass reads."""
    return 2.0 * (recipe.shape.active_block_params + recipe.shape.embedding_params)
