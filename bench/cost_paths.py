"""The code paths behind published training runs, as cost/stacks.py describes the project's own.

Counted with bench/count_kernels.py where the library could be installed (litgpt 0.5.13), else read from its
source; each says from where.
"""

from __future__ import annotations

from dataclasses import replace

from cost.shapes import ModelShape
from cost.stacks import (
    AUTOCAST_ADAPTER,
    BF16_ADAPTER,
    EAGER_BLOCKS,
    TRAINER,
    AdapterCost,
    BlockCost,
    Stack,
    Widths,
)

EAGER = replace(TRAINER, name="eager", attention="flash2", adapter=AUTOCAST_ADAPTER)
"""transformers + peft + Trainer with flash attention or unpadded SDPA."""

PEFT_BENCHMARK = replace(
    EAGER,
    name="peft",
    adapter=AdapterCost(
        kept=4, forward_in=6, forward_out=24, backward_in=12, backward_out=20, kernels_forward=6,
        kernels_backward=8,
    ),
    optimizer_traffic=60.0,
    optimizer_scratch=8.0,
)  # fmt: skip
"""huggingface/peft method_comparison/MetaMathQA/run.py: no autocast, fp32 adapters, no dropout, AdamW foreach."""
PEFT_BENCHMARK_OTHER_S = 0.06
"""That script's train time also holds tokenising the data set, the perplexity before and after, the test set's
generation (1,319 questions in 26 batches) and an emptied cache every ten steps: some five minutes over 5,000
steps, from reading run.py and not from its results."""

QWEN = replace(
    EAGER,
    name="qwen",
    recomputes_all=True,
    logit_bytes=14.0,
    optimizer_traffic=60.0,
    optimizer_scratch=8.0,
    buffers_gib=0.8,
)
"""QwenLM/Qwen finetune.py (2023): reentrant checkpoints; accelerate keeps an fp32 copy of the logits."""
QWEN_GPTQ = replace(
    QWEN,
    name="qwen-gptq",
    adapter=AdapterCost(
        kept=2, forward_in=10, forward_out=10, backward_in=16, backward_out=4, kernels_forward=8,
        kernels_backward=10,
    ),
    logit_bytes=8.6,
    unpacking=27.0,
    optimizer_scratch=10.0,
    buffers_gib=1.5,
)  # fmt: skip
"""The same in fp16 under DeepSpeed ZeRO-2; GPTQ unpacks its weights with PyTorch's integer kernels."""

_LITGPT_BLOCKS = {
    "llama": BlockCost(
        kept_frozen=Widths(13, 9, 6), kept_trained=Widths(26, 8, 8), forward=Widths(164, 24, 10),
        backward_frozen=Widths(310, 50, 18), backward_trained=Widths(340, 58, 18),
        kernels_forward=43, kernels_frozen=66, kernels_trained=78,
    ),
    "gemma": BlockCost(
        kept_frozen=Widths(50, 8, 6), kept_trained=Widths(72, 8, 8), forward=Widths(431, 24, 10),
        backward_frozen=Widths(670, 60, 18), backward_trained=Widths(737, 66, 18),
        kernels_forward=206, kernels_frozen=105, kernels_trained=123,
    ),
    "plain": BlockCost(
        kept_frozen=Widths(7.5, 9.5, 2), kept_trained=Widths(10, 8, 4), forward=Widths(60, 6, 4),
        backward_frozen=Widths(83, 36, 6), backward_trained=Widths(89, 39, 8),
        kernels_forward=24, kernels_frozen=37, kernels_trained=46,
    ),
}  # fmt: skip
LITGPT = replace(
    EAGER,
    name="litgpt",
    blocks={**EAGER_BLOCKS, **_LITGPT_BLOCKS},
    adapter=AdapterCost(
        kept=3, forward_in=9, forward_out=20, backward_in=14, backward_out=10, kernels_forward=8,
        kernels_backward=9,
    ),
    logit_bytes=8.2,
    logit_traffic=30,
    micro_batch_s=0.015,
    keeps_unpacked_inputs=True,
    optimizer_traffic=50.0,
)  # fmt: skip
"""litgpt: its own model, bf16-true; the head's products in chunks whose outputs Fabric makes fp32."""
LITGPT_2023 = replace(LITGPT, name="litgpt-2023", layer_sync_s=0.0025)
"""Before its zero padding held an index on the GPU, every layer made one from a Python list and waited for it."""

_FUSED = BlockCost(
    kept_frozen=Widths(9, 4, 5), kept_trained=Widths(13, 4, 7), forward=Widths(24, 4, 5),
    backward_frozen=Widths(48, 8, 11), backward_trained=Widths(50, 8, 12),
    kernels_forward=10, kernels_frozen=18, kernels_trained=20,
)  # fmt: skip
_FUSED_EVERYWHERE = dict.fromkeys(EAGER_BLOCKS, _FUSED)
TORCHTUNE = replace(EAGER, name="torchtune", adapter=BF16_ADAPTER)
COMPILED = replace(
    TORCHTUNE,
    name="compiled",
    blocks=_FUSED_EVERYWHERE,
    adapter=replace(BF16_ADAPTER, forward_out=6),
    logit_bytes=10.0,
    logit_traffic=14,
    micro_batch_s=0.005,
    optimizer_traffic=24.0,
    unpacking=5.3,
)
"""torch.compile: neighbours fused; what is cheap to compute again is not kept (its partitioner's own rule)."""
COMPILED_CHUNKED = replace(COMPILED, name="compiled, chunked loss", logit_bytes=2.5)
LLM_FOUNDRY = replace(COMPILED, name="llm-foundry", attention="flash1")
"""mosaicml/llm-foundry (2023): fused norms, Triton attention of the first generation, FSDP."""
MEGATRON = replace(
    COMPILED, name="megatron", attention="fused", kernel_s=2e-6, micro_batch_s=0.002, optimizer_traffic=18.0
)
"""Megatron, NeMo and the MLPerf submissions: everything fused, CUDA graphs, tensor parallelism."""
FP8_SPEED = 2 * 0.88
"""fp8 products against bf16 ones: twice the peak, of which the best one reaches 70.9 % where bf16 reaches 80.3 %
(H100 SXM, the table that cost/gpus.py names)."""
FP4_SPEED = 1.3 * FP8_SPEED
"""NVFP4 against fp8 on one machine: the products' part of MLPerf 5.1 against 5.0 on 8 x B200."""
_FP8_CAST = 64
"""Bytes an element of the hidden state and layer: the inputs of every product are read in bf16, written in fp8."""


def fp8(stack: Stack, speed: float = FP8_SPEED) -> Stack:
    """`stack` with its matrix products in fp8 (or at another speed)."""
    blocks = {
        name: replace(
            cost,
            backward_frozen=replace(cost.backward_frozen, hidden=cost.backward_frozen.hidden + _FP8_CAST),
            backward_trained=replace(cost.backward_trained, hidden=cost.backward_trained.hidden + _FP8_CAST),
        )
        for name, cost in stack.blocks.items()
    }
    return replace(stack, name=f"{stack.name}, fp8", blocks=blocks, product_speed=speed)


UNKNOWN = replace(EAGER, name="unknown", doubt=0.35)


def arch(
    name: str, layers: int, hidden: int, ffn: int, heads: int, vocab: int, kv: float = 1.0, tied: bool = False,
    gated: bool = True, block: str = "",
) -> ModelShape:  # fmt: skip
    """A shape as the data file's `arch` column names it; `kv` is the keys' share of the heads."""
    return ModelShape(
        name=name, layers=layers, hidden=hidden, ffn=ffn, heads=heads, kv_heads=max(1, round(heads * kv)),
        head_dim=hidden // heads, vocab=vocab, tied=tied, gated=gated,
        block=block or ("llama" if gated else "plain"),
    )  # fmt: skip


def _mpt(size: str, layers: int, hidden: int, heads: int) -> ModelShape:
    return arch(f"mpt-{size}", layers, hidden, 4 * hidden, heads, 50368, tied=True, gated=False)


ARCHITECTURES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        arch("stablelm-3b", 16, 4096, 16384, 32, 50688, gated=False),
        arch("qwen-1.8b", 24, 2048, 5504, 16, 151936),
        arch("qwen-7b", 32, 4096, 11008, 32, 151936),
        arch("qwen-14b", 40, 5120, 13696, 40, 152064),
        arch("qwen-72b", 80, 8192, 24576, 64, 152064),
        arch("falcon-7b", 32, 4544, 18176, 71, 65024, kv=1 / 71, tied=True, gated=False),
        _mpt("1b", 24, 2048, 16),
        _mpt("3b", 32, 2560, 20),
        _mpt("7b", 32, 4096, 32),
        _mpt("13b", 40, 5120, 40),
        _mpt("30b", 48, 7168, 64),
        _mpt("70b", 80, 8192, 64),
    )
}
"""Architectures of the data file that cost/shapes.py has no built-in row for."""
ARCH_NAMES: dict[str, str] = {
    "phi1.5": "phi-1.5", "phi2": "phi-2", "phi3-mini": "phi-3-mini", "tinyllama": "tinyllama-1.1b",
    "llama3-405b": "llama-3.1-405b", "llama32-1b": "llama-3.2-1b", "llama32-3b": "llama-3.2-3b",
    "gemma2-2b": "gemma-2-2b",
    "gemma2-9b": "gemma-2-9b", "gemma2-27b": "gemma-2-27b", "qwen25-0.5b": "qwen2.5-0.5b",
    "qwen25-1.5b": "qwen2.5-1.5b", "qwen25-3b": "qwen2.5-3b", "qwen25-7b": "qwen2.5-7b",
    "qwen25-14b": "qwen2.5-14b", "qwen25-32b": "qwen2.5-32b", "qwen25-72b": "qwen2.5-72b",
}  # fmt: skip
"""The data file's short names -> those of cost/shapes.py."""
