"""A row of the measured runs -> the recipe that ran: everything that is only true of the data file stands here."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench import cost_paths as paths
from cost.gpus import Gpu, find_gpu
from cost.memory import Counted
from cost.recipe import NF4_BYTES, NF4_DOUBLE_BYTES, Adapters, Method, Module, Recipe, modules_of
from cost.shapes import ModelShape, known_shape
from cost.stacks import Stack
from launcher.errors import ConfigError

Row = Mapping[str, str]

COLUMNS = (
    "source", "date", "model", "method", "gpu", "n_gpus", "seq_len", "global_batch", "precision",
    "packing_or_avg_tokens", "tokens_per_s_per_gpu", "peak_mem_gib_per_gpu", "notes", "micro_batch",
    "sec_per_microbatch", "grad_ckpt", "stack", "mem_metric", "peak_tokens_per_micro", "arch", "lora_params",
    "opt", "quant", "score_time", "score_mem", "group",
)  # fmt: skip
"""What is read of a row."""
ALPACA_TOKENS = 120
"""Tokens of an Alpaca row with its template, where the file says Alpaca and no more."""
LENGTH_SPREAD = 0.5
"""Standard deviation over mean of row lengths in instruction data (Alpaca, MetaMathQA)."""
HF_GROUPS = (
    "litgpt",
    "peft",
    "qwen",
    "torchtune",
    "automodel",
    "canifinetune",
    "axolotl",
    "trl",
    "swift",
    "unsloth",
)
"""Stacks that are eager or compiled transformers, peft, litgpt or torchtune: judged apart from the rest."""


class NoCase(Exception):
    """The row can't be turned into a recipe; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: its recipe, how its memory was counted, what its time holds beside training."""

    recipe: Recipe
    counted: Counted
    other_s: float = 0.0


def complete(row: Mapping[str, object]) -> Row:
    """The row with every column that is read, absent ones empty; others are left out."""
    found = {name: row.get(name) for name in COLUMNS}
    return {name: value.strip() if isinstance(value, str) else "" for name, value in found.items()}


def scored(row: Row, what: str) -> bool:
    return _number(row, what) == 1


def is_hf(row: Row) -> bool:
    return row["group"].startswith(HF_GROUPS) or "eager" in row["stack"].lower()


def time_truth(row: Row) -> float | None:
    """Seconds a micro-batch, of one GPU's time."""
    if measured := _number(row, "sec_per_microbatch"):
        return measured
    rate, rows, length = (_number(row, k) for k in ("tokens_per_s_per_gpu", "micro_batch", "seq_len"))
    return rows * length / rate if rate and rows and length else None


def memory_truth(row: Row) -> float | None:
    return _number(row, "peak_mem_gib_per_gpu")


def case_of(row: Row) -> Case:
    """Raises NoCase where the row leaves out, or names, something that nothing is known about."""
    shape, gpu, stack = _shape(row), _gpu(row), _stack(row)
    rows, length = _number(row, "micro_batch"), _number(row, "seq_len")
    if not rows or not length:
        raise NoCase("micro-batch or sequence length are not given")
    tokens, span, mixed = _tokens(row, rows, length)
    peak = _number(row, "peak_tokens_per_micro") or rows * length
    ranks = max(1, int(_number(row, "n_gpus") or 1))
    batch = _number(row, "global_batch") or rows * ranks
    machines = _machines(gpu, ranks)
    megatron = stack.name.startswith("megatron")
    recipe = Recipe(
        shape=shape, gpu=gpu, gpus=machines[0], nodes=machines[1], stack=stack, method=_method(row),
        full="full" in row["method"], checkpointing=_number(row, "grad_ckpt") == 1,
        offloaded="actoff" in row["opt"], tokens=tokens, peak_tokens=peak, span=span, head_tokens=tokens,
        peak_head_tokens=peak, accumulation=max(1, round(batch / (rows * ranks))), mixed_lengths=mixed,
        sharded=ranks > 1 and not megatron and "multinode" not in row["notes"],
        tensor_parallel=_tensor_parallel(row, shape, gpu, ranks, batch) if megatron else 1,
    )  # fmt: skip
    recipe = _with_weights(row, _with_adapters(row, recipe))
    other = paths.PEFT_BENCHMARK_OTHER_S if stack.name == "peft" else 0.0
    return Case(recipe=recipe, counted=_counted(row), other_s=other)


def _number(row: Row, column: str) -> float | None:
    try:
        value = float(row.get(column) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _shape(row: Row) -> ModelShape:
    name = row["arch"]
    if name in paths.ARCHITECTURES:
        return paths.ARCHITECTURES[name]
    for candidate in (paths.ARCH_NAMES.get(name, name), row["model"].replace(" ", "-")):
        try:
            return known_shape(candidate)
        except ConfigError:
            continue
    raise NoCase(f"the shape of {row['model']} ({name or 'no arch'}) is not known")


def _gpu(row: Row) -> Gpu:
    """Memory does not depend on the GPU: a row that doesn't state it is computed as if it were an A100."""
    stated = row["gpu"]
    if not stated or stated.startswith("("):
        if row["score_time"] == "1":
            raise NoCase("the GPU is not stated")
        stated = "A100-80GB"
    try:
        return find_gpu(stated)
    except ConfigError as exc:
        raise NoCase(exc.message) from exc


def _stack(row: Row) -> Stack:
    group, stack, quant = row["group"], row["stack"].lower(), _quant(row)
    if group.startswith("qwen"):
        return paths.QWEN_GPTQ if quant.startswith("gptq") else paths.QWEN
    if group.startswith("litgpt"):
        return paths.LITGPT_2023 if row["date"] < "2024" else paths.LITGPT
    if group.startswith("peft"):
        return paths.PEFT_BENCHMARK
    if group.startswith("llmfoundry"):
        return paths.fp8(paths.LLM_FOUNDRY) if "fp8" in row["precision"] else paths.LLM_FOUNDRY
    if "megatron" in stack:
        return _megatron(row)
    if "optimized" in stack or "compile" in stack:
        return paths.COMPILED_CHUNKED if "cce" in row["opt"] else paths.COMPILED
    if group.startswith("torchtune"):
        return paths.TORCHTUNE
    if "eager" in stack:
        return _transformers(quant)
    return paths.UNKNOWN


def _megatron(row: Row) -> Stack:
    """fp8 where the GPU has it; NVIDIA's MLPerf 5.1 submissions on Blackwell were the first in NVFP4."""
    gpu = _gpu(row)
    if "fp8" not in row["precision"] or not gpu.fp8:
        return paths.MEGATRON
    if "v5.1" in row["source"] and gpu.generation == "blackwell":
        return paths.fp8(paths.MEGATRON, paths.FP4_SPEED)
    return paths.fp8(paths.MEGATRON)


def _transformers(quant: str) -> Stack:
    """Plain transformers + peft; an fp32 head (prepare_model_for_kbit_training) makes fp32 logits: 16 bytes."""
    if not quant.startswith("nf4"):
        return paths.EAGER
    return replace(paths.EAGER, logit_bytes=16.0, keeps_unpacked_inputs=True)


def _tokens(row: Row, rows: float, length: float) -> tuple[float, float, bool]:
    """(tokens a micro-batch, span of attention, do lengths differ).

    Padding makes a micro-batch as wide as its longest row: about a normal distribution's largest of so many.
    """
    text = row["packing_or_avg_tokens"].lower()
    stated = re.search(r"([\d.]+) tok/sample|median ~([\d.]+)|avg[^\d]{0,12}([\d.]+)", text)
    if stated:
        mean = float(next(g for g in stated.groups() if g))
    elif "alpaca" in text or "unpacked" in text:
        mean = float(ALPACA_TOKENS)
    else:
        return rows * length, length, False
    # peft's iterator puts rows of about one length together.
    spread = 0.0 if row["group"].startswith("peft") else LENGTH_SPREAD
    width = min(length, mean * (1 + spread * _largest_of_normal(rows)))
    return rows * width, width, True


def _largest_of_normal(draws: float) -> float:
    """Expected largest of so many standard normal draws (0, 0.56, 1.03, 1.42 for 1, 2, 4, 8), interpolated."""
    known = ((1, 0.0), (2, 0.56), (4, 1.03), (8, 1.42), (16, 1.77), (64, 2.34))
    for (a, low), (b, high) in itertools.pairwise(known):
        if draws <= b:
            return low + (high - low) * math.log(max(draws, a) / a) / math.log(b / a)
    return known[-1][1]


def _machines(gpu: Gpu, ranks: int) -> tuple[int, int]:
    """(GPUs a machine, machines): eight a machine; an NVL72 rack is one."""
    at_most = 72 if gpu.name.startswith("GB") else 8
    return (ranks, 1) if ranks <= at_most else (at_most, math.ceil(ranks / at_most))


def _method(row: Row) -> Method:
    text = row["method"]
    if "dpo" in text:
        return "dpo"
    return "rl" if any(word in text for word in ("grpo", "ppo", "rloo")) else "sft"


def _tensor_parallel(row: Row, shape: ModelShape, gpu: Gpu, ranks: int, batch: float) -> int:
    """GPUs a sample: as many as share one by count, and as many as hold weights (and what learns) in memory."""
    bytes_a_param = 6.0 if "full" in row["method"] else 1.0 if "fp8" in row["precision"] else 2.0
    for_memory = bytes_a_param * shape.params / 2**30 / (0.75 * gpu.memory_gib)
    wanted = max(for_memory, ranks / batch)
    return min(ranks, 8, 2 ** max(0, math.ceil(math.log2(wanted)))) if wanted > 1 else 1


def _with_adapters(row: Row, recipe: Recipe) -> Recipe:
    """lora_params is a count, r<rank>:<targets> or r<rank>:<six flags for q k v o mlp head>."""
    if recipe.full:
        return recipe
    text, shape = row["lora_params"], recipe.shape
    parsed = re.fullmatch(r"r(\d+):(\S+)", text)
    modules = _modules(row, shape, parsed.group(2) if parsed else "")
    if parsed:
        rank = int(parsed.group(1))
    else:
        width = shape.layers * sum(m.d_in + m.d_out for m in modules)
        rank = max(1, round((_number(row, "lora_params") or 16 * width) / width))
    return replace(recipe, adapters=Adapters(rank=rank, modules=modules))


def _modules(row: Row, shape: ModelShape, targets: str) -> tuple[Module, ...]:
    every = {m.name: m for m in modules_of(shape, "all-linear") or ()}
    mlp: list[str] = [name for name in ("gate", "up", "down") if name in every]
    if re.fullmatch("[01]{6}", targets):
        flags = dict(zip("qkvo", targets, strict=False))
        names: list[str] = [n for n, on in flags.items() if on == "1"] + (mlp if targets[4] == "1" else [])
    elif targets in ("", "qv"):
        # peft's rows name a file (rank10-target-mlp); without a word, q and v are its default.
        names = mlp if "target-mlp" in row["notes"] else ["q", "v"]
        names = list(every) if not targets and row["stack"] in ("megatron_fp8", "optimized") else names
    else:
        names = {"qvo": ["q", "v", "o"], "qvo+mlp": ["q", "v", "o", *mlp]}.get(targets, list(every))
    if row["group"].startswith(("qwen", "litgpt")) and {"q", "v"} <= set(names):
        # One matrix makes queries, keys and values.
        fused = Module("qkv", shape.hidden, shape.query + 2 * shape.kv)
        return (fused, *(every[n] for n in names if n not in "qkv"))
    return tuple(every[n] for n in names)


_QUANT_BYTES = {"": 2.0, "nf4": NF4_BYTES, "nf4dq": NF4_DOUBLE_BYTES, "gptq4": 0.5 + 4 / 128}
_QUANT_NAMES = {
    **dict.fromkeys(("none", "no", "bf16", "fp16", "16bit"), ""), "nf4-dq": "nf4dq", "nf4_dq": "nf4dq",
    "gptq": "gptq4", "gptq-int4": "gptq4", "int4-gptq": "gptq4", "4bit": "nf4", "bnb-4bit": "nf4",
    "bnb4": "nf4", "bnb.nf4": "nf4", "bnb.nf4-dq": "nf4dq",
}  # fmt: skip
"""Other spellings of those."""


def _quant(row: Row) -> str:
    """How the weights are stored. Raises NoCase for a form that nothing is known of."""
    text = row["quant"].lower() or ("nf4" if row["method"] == "qlora" else "")
    name = _QUANT_NAMES.get(text, text)
    if name not in _QUANT_BYTES:
        raise NoCase(f"weights in {row['quant']} are not known")
    return name


def _with_weights(row: Row, recipe: Recipe) -> Recipe:
    opt, group = row["opt"], row["group"]
    quant = _quant(row)
    if recipe.full:
        state = 2.0 if "8bit" in opt else 0.0 if opt in ("offloaded", "sgd_like") else 4.0
        mixed = opt in ("lion/adam", "zero")
        recipe = replace(
            recipe, gradient_bytes=0.0 if "nograd" in opt or opt == "offloaded" else 2.0,
            optimizer_bytes=12.0 if mixed else state,
        )  # fmt: skip
    elif quant.startswith("gptq"):  # DeepSpeed's fp16: flat copies, fp32 masters, their gradients and moments
        recipe = replace(recipe, trained_bytes=4.0, gradient_bytes=2.0, optimizer_bytes=12.0)
    elif "fp32lora" in opt or not opt:
        recipe = replace(recipe, trained_bytes=4.0 if group.startswith("peft") else 6.0)
    else:
        recipe = replace(recipe, trained_bytes=2.0, gradient_bytes=2.0, optimizer_bytes=4.0)
    if not quant:
        return recipe
    bytes_a_weight = _QUANT_BYTES[quant]
    prepared = quant.startswith("nf4") and not group.startswith(("litgpt", "torchtune"))
    outer = 4.0 if prepared else 2.0
    if group.startswith("litgpt") and not recipe.shape.tied:  # Fabric quantises the head, too
        outer = (2.0 + bytes_a_weight) / 2
    return replace(recipe, quant=quant, linear_bytes=bytes_a_weight, outer_bytes=outer)


def _counted(row: Row) -> Counted:
    metric = row["mem_metric"]
    if metric.startswith("published"):
        return "device"
    return "reserved" if metric == "max_reserved" else "allocated"
