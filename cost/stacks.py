"""What a training stack costs apart from its matrix products: kernels, bytes moved, bytes kept, a layer and token.

The numbers are counted, not fitted: bench/count_kernels.py runs one training micro-batch of a small model under
PyTorch's dispatcher and adds up, a layer, every kernel's inputs and outputs, the kernels, and what autograd keeps
for the backward pass (torch 2.13, transformers 5.23, peft 0.21.2, 2026-11-25). They are linear in the widths of
the model, so they hold for any size of the same architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cost.shapes import ModelShape


@dataclass(frozen=True)
class Widths:
    """Bytes a token and layer: so many for each element of the hidden state, of the keys, of the FFN's middle."""

    hidden: float
    kv: float
    ffn: float

    def bytes(self, shape: ModelShape) -> float:
        """Example: Widths(12, 4, 6) on Llama 3.1 8B: 12 x 4096 + 4 x 1024 + 6 x 14336 = 139,264."""
        middle = shape.ffn * shape.active_experts + shape.shared_ffn
        return self.hidden * shape.hidden + self.kv * shape.kv + self.ffn * middle


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """One transformer block. `frozen`: its weights don't learn (LoRA); `trained`: they do."""

    kept_frozen: Widths
    """What autograd keeps for the backward pass."""
    kept_trained: Widths
    forward: Widths
    """What kernels other than matrix products read and write."""
    backward_frozen: Widths
    backward_trained: Widths
    kernels_forward: float
    kernels_frozen: float
    """Kernels of the backward pass."""
    kernels_trained: float


@dataclass(frozen=True, kw_only=True)
class AdapterCost:
    """One LoRA adapter, whose small products read and write as much as large ones."""

    kept: float
    """Bytes that autograd keeps for each element of the module's input."""
    forward_in: float
    """Bytes moved for each element of the module's input."""
    forward_out: float
    backward_in: float
    backward_out: float
    kernels_forward: float
    kernels_backward: float
    own_copy: bool = True
    """Does every module keep its own copy of the input (a cast or dropout makes one), or do they share it?"""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One code path: which kernels run, how they are launched, what stands in memory when."""

    name: str
    blocks: Mapping[str, BlockCost]
    """ModelShape.block -> cost; a stack that fuses everything has the same for all."""
    adapter: AdapterCost
    attention: str
    """Attention kernel: a key of throughput.ATTENTION."""
    logit_bytes: float
    """Bytes that live at once for each logit, at the loss."""
    logit_traffic: float
    """Bytes moved for each logit."""
    kernel_s: float
    """Processor time to launch one kernel, with its share of Python and autograd."""
    micro_batch_s: float
    """Processor time a micro-batch outside of the model: batch, loss, the trainer's own bookkeeping."""
    layer_sync_s: float = 0.0
    """Time a layer and micro-batch in which the GPU waits for the processor beside launching."""
    recomputes_all: bool = False
    """Reentrant checkpoints run whole blocks again; others stop before the last matrix product."""
    optimizer_traffic: float = 28.0
    """Bytes moved a trained parameter and optimizer step."""
    optimizer_scratch: float = 0.0
    """Bytes a trained parameter that the optimizer step needs for a moment."""
    buffers_gib: float = 0.0
    """Buffers that it makes at its start."""
    unpacking: float = 9.1
    """Bytes of memory traffic that one pass over a 4-bit parameter takes as long as."""
    keeps_unpacked_inputs: bool = False
    """Does autograd keep the input of every 4-bit matrix product?"""
    product_speed: float = 1.0
    """Matrix products against bf16 ones (fp8, fp4)."""
    doubt: float = 0.0
    """Further share by which the time may be wrong: nobody has measured this path here."""


_LLAMA = BlockCost(
    kept_frozen=Widths(12, 4, 6), kept_trained=Widths(20, 4, 8), forward=Widths(106, 20, 10),
    backward_frozen=Widths(240, 32, 18), backward_trained=Widths(256, 32, 18),
    kernels_forward=38, kernels_frozen=60, kernels_trained=71,
)  # fmt: skip
_QWEN3 = BlockCost(
    kept_frozen=Widths(16, 8, 6), kept_trained=Widths(26, 10, 8), forward=Widths(143, 56, 10),
    backward_frozen=Widths(329, 121, 18), backward_trained=Widths(353, 129, 18),
    kernels_forward=54, kernels_frozen=88, kernels_trained=103,
)  # fmt: skip
_GEMMA = BlockCost(
    kept_frozen=Widths(24, 8, 6), kept_trained=Widths(48, 12, 8), forward=Widths(235, 60, 10),
    backward_frozen=Widths(525, 125, 18), backward_trained=Widths(605, 141, 18),
    kernels_forward=82, kernels_frozen=116, kernels_trained=141,
)  # fmt: skip
_PLAIN = BlockCost(
    kept_frozen=Widths(6, 4, 8), kept_trained=Widths(10, 4, 10), forward=Widths(35, 14, 36),
    backward_frozen=Widths(61, 30, 56), backward_trained=Widths(67, 34, 58),
    kernels_forward=31, kernels_frozen=45, kernels_trained=57,
)  # fmt: skip
EAGER_BLOCKS: Mapping[str, BlockCost] = {"llama": _LLAMA, "qwen3": _QWEN3, "gemma": _GEMMA, "plain": _PLAIN}
"""transformers without compilation."""

AUTOCAST_ADAPTER = AdapterCost(
    kept=3, forward_in=24, forward_out=10, backward_in=30, backward_out=4, kernels_forward=9, kernels_backward=11
)
"""peft's fp32 adapters under bf16 autocast, with dropout: the input is cast, dropped (one mask byte) and cast."""
AUTOCAST_ADAPTER_NO_DROPOUT = AdapterCost(
    kept=2, forward_in=12, forward_out=10, backward_in=18, backward_out=4, kernels_forward=8, kernels_backward=10
)
CAST_ADAPTER = AdapterCost(
    kept=3, forward_in=5, forward_out=6, backward_in=11, backward_out=0, kernels_forward=7, kernels_backward=9
)
"""train_entry/adapters.py with dropout: the narrow matrices are cast, the input is dropped as it is (one mask
byte), the scale is multiplied into a matrix."""
CAST_ADAPTER_NO_DROPOUT = AdapterCost(
    kept=2, forward_in=0, forward_out=6, backward_in=6, backward_out=0, kernels_forward=6, kernels_backward=8,
    own_copy=False,
)  # fmt: skip
BF16_ADAPTER = AdapterCost(
    kept=2, forward_in=0, forward_out=10, backward_in=6, backward_out=4, kernels_forward=4, kernels_backward=6,
    own_copy=False,
)  # fmt: skip
"""Adapters in the model's own type without dropout: nothing is copied."""

DORA_DOUBT = 0.35


def with_dora(stack: Stack, shape: ModelShape, dropout: bool) -> Stack:
    """The same with DoRA: its norms need the adapter's whole matrix at every pass, dropout the base's product too.

    Read off peft 0.21.2 (tuners/lora/dora.py and variants.py), not counted or measured: hence the doubt. For a
    moment it holds four matrices as large as the largest in fp32, and an identity as wide as its input.
    Example: Llama 3.1 8B: 4 x (4 x 4096 x 14336 + 14336 x 14336) / 2**30 = 1.64 GiB.
    """
    plain = stack.adapter
    adapter = replace(
        plain, kept=plain.kept + 4, forward_out=plain.forward_out + 12, backward_out=plain.backward_out + 12,
        kernels_forward=plain.kernels_forward + 20, kernels_backward=plain.kernels_backward + 10,
    )  # fmt: skip
    return replace(
        stack, name=f"{stack.name}, DoRA", adapter=adapter, doubt=DORA_DOUBT, unpacking=2 * stack.unpacking,
        product_speed=stack.product_speed * (0.5 if dropout else 1.0),
        buffers_gib=stack.buffers_gib + 4 * (4 * shape.hidden * shape.ffn + shape.ffn**2) / 2**30,
    )  # fmt: skip


TRAINER = Stack(
    name="trainer",
    blocks=EAGER_BLOCKS,
    adapter=CAST_ADAPTER,
    attention="masked",
    logit_bytes=12.5,
    logit_traffic=38,
    kernel_s=16e-6,
    micro_batch_s=0.010,
)
"""train_entry: transformers + peft + TRL's SFTTrainer, eager, SDPA, fused AdamW, non-reentrant checkpoints."""
