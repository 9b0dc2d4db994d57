"""How long one micro-batch takes on one GPU, part by part.

    time = either the processor that launches kernels or the GPU that runs them, whichever is slower,
           + unpacking 4-bit weights + the optimizer's share + communication that is not hidden

The GPU's part is arithmetic (matrix products, attention) and the traffic of all other kernels. Every part is a
short function below, with its example; all are seconds.
"""

from __future__ import annotations

from cost.band import Band, Part, Refusal
from cost.recipe import Recipe

STREAMED = 0.80
"""Share of the memory bandwidth that kernels reach which only read and write."""
CAST = 4 + 2
"""Bytes moved where an fp32 number becomes a bf16 one, or the other way."""
FP32_RESIDUAL = 100
"""Bytes more an element of the hidden state and layer when it is fp32 (counted, as in cost/stacks.py)."""
ATTENTION: dict[str, dict[str, float]] = {
    "flash1": {"ampere": 0.31, "hopper": 0.18, "ada": 0.30, "blackwell": 0.15},
    "flash2": {"ampere": 0.60, "hopper": 0.40, "ada": 0.50, "blackwell": 0.30, "cdna3": 0.30, "cdna4": 0.30},
    "fused": {"ampere": 0.60, "hopper": 0.50, "ada": 0.55, "blackwell": 0.35, "cdna3": 0.35, "cdna4": 0.35},
    "masked": {"ampere": 0.45, "hopper": 0.28, "ada": 0.40, "blackwell": 0.22, "cdna3": 0.25, "cdna4": 0.25},
}
"""Share of the peak that attention reaches, forward and backward together, by kernel and GPU generation.

flash2 and fused: FlashAttention-2 (https://arxiv.org/abs/2307.08691, 50-73 % on A100) and -3 with cuDNN
(https://arxiv.org/abs/2407.08608: FlashAttention-2 reaches 35 % on H100, the newer ones 50-75 %). flash1: slope of
llm-foundry's rows over sequence length. masked: SDPA's memory-efficient kernel, which a padding mask needs."""
ATTENTION_ELSEWHERE = 0.25
"""On generations that those kernels don't know."""
OVERLAP = 4
"""How sharply the slower of processor and GPU wins: (a**4 + b**4) ** (1/4)."""
OVERLAP_MIXED = 2
"""The same where micro-batches differ in size: some wait for one, some for the other."""
EXPOSED = 0.5
"""Share of the communication that computing does not hide, while there is less of it than computing."""
TENSOR_EXPOSED = 0.60
"""The same for tensor parallelism, whose collectives stand between the products."""
SLOWER, FASTER = 2.5, 0.3
"""Times that communication may take what it is computed to."""
ADAPTER_PASSES = 3
"""An adapter's products: forward, and backward for both its input and its weights."""
UNMEASURED_GPU = 0.10
"""Further relative error where `Gpu.sustained` is its generation's."""
MIXTURE = 0.25
"""The same for mixtures of experts, whose routing nobody measured here."""


def micro_batch_s(recipe: Recipe) -> Band | Refusal:
    """Seconds that one GPU spends on one micro-batch, its share of the optimizer step included."""
    if recipe.method == "rl":
        return Refusal(
            "reinforcement learning: generation takes most of the time, and no public run says how much"
        )
    gpu, processor = gpu_s(recipe), processor_s(recipe)
    power = OVERLAP_MIXED if recipe.mixed_lengths else OVERLAP
    waiting = (gpu**power + processor**power) ** (1 / power)
    unpack, step = unpacking_s(recipe), optimizer_s(recipe)
    bound = processor**power / (gpu**power + processor**power)
    sync = recipe.stack.layer_sync_s * recipe.shape.layers
    communication = _communication(recipe, waiting + sync + unpack)
    doubt = _doubt(recipe)
    parts = {
        "arithmetic": Part(value=waiting * (1 - bound), less=0.18 + doubt, more=0.22 + doubt),
        "launching": Part(value=waiting * bound + sync, less=0.25 + doubt, more=0.30 + doubt),
        "unpacking": Part(value=unpack, less=0.30 + doubt, more=0.30 + doubt),
        "optimizer": Part(value=step, less=0.40, more=0.40),
        "communication": communication,
    }
    return Band.of(parts)


def _doubt(recipe: Recipe) -> float:
    """Further relative error of what no run at hand has measured."""
    unmeasured = 0.0 if recipe.gpu.measured else UNMEASURED_GPU
    mixture = MIXTURE if recipe.shape.experts > 1 else 0.0
    return min(0.5, recipe.stack.doubt + unmeasured + mixture)


def gpu_s(recipe: Recipe) -> float:
    """What the GPU computes and moves."""
    return products_s(recipe) + attention_s(recipe) + traffic_s(recipe)


def products_s(recipe: Recipe) -> float:
    """Matrix products: 2 FLOPs a weight and token forward, 2 backward, 2 more for weights that learn.

    With few tokens, reading the weights (2 bytes each) takes longer than computing with them. Example: Llama 3.1
    8B frozen, no checkpoints, A100-80GB (312 TFLOP/s, 70 %), 1,000 tokens: 4 x 7.50e9 x 1,000 / 218e12 = 0.137;
    10 tokens: 2 x 2 x 7.50e9 / 2.039e12 = 0.0147.
    """
    shape = recipe.shape
    passes = 2 + recipe.full
    flops = 2 * recipe.tokens * shape.active_block_params * (passes + recipe.recomputed)
    flops += 2 * recipe.head_tokens * shape.embedding_params * passes
    if recipe.adapters:
        flops += 2 * recipe.tokens * recipe.trained * (ADAPTER_PASSES + recipe.recomputed)
    flops += _reference_flops(recipe)
    computing = flops / (recipe.gpu.tflops * 1e12 * recipe.gpu.sustained * recipe.stack.product_speed)
    read = 2.0 * (shape.active_block_params + shape.embedding_params) * (passes + recipe.recomputed)
    return max(computing, read / (recipe.gpu.hbm_gbs * 1e9))


def _reference_flops(recipe: Recipe) -> float:
    """DPO also runs the untouched model forward over every token: 2 FLOPs a weight."""
    if recipe.method != "dpo":
        return 0.0
    shape = recipe.shape
    return 2 * (recipe.tokens * shape.active_block_params + recipe.head_tokens * shape.embedding_params)


def attention_s(recipe: Recipe) -> float:
    """Attention: 4 FLOPs a token, layer, query element and earlier token; backward costs 2.5 times that.

    Example: Llama 3.1 8B, 1,000 tokens in rows of 1,000, FlashAttention-2 on an A100 (60 %): 4 x 32 x 4096 x 500
    x 1,000 x 3.5 / 187e12 = 0.0049.
    """
    shape, gpu = recipe.shape, recipe.gpu
    flops = 4 * shape.layers * shape.query * (recipe.span / 2) * recipe.tokens
    flops *= 3.5 + recipe.checkpointing + (recipe.method == "dpo")
    share = ATTENTION[recipe.stack.attention].get(gpu.generation, ATTENTION_ELSEWHERE)
    return flops / (gpu.tflops * 1e12 * share)


def traffic_s(recipe: Recipe) -> float:
    """Kernels that only read and write: norms, rotations, activations, adapters, the loss.

    Example: Llama 3.1 8B frozen without checkpoints: (346 x 4096 + 52 x 1024 + 28 x 14336) x 32 = 59.9e6 bytes a
    token, and 128,256 logits of 38 bytes; 1,000 tokens at 80 % of 2,039 GB/s: 0.040.
    """
    shape, stack = recipe.shape, recipe.stack
    block, again = stack.blocks[shape.block], float(recipe.checkpointing)
    forward = block.forward.bytes(shape)
    backward = (block.backward_trained if recipe.full else block.backward_frozen).bytes(shape)
    for m in recipe.adapters.modules if recipe.adapters else ():
        forward += stack.adapter.forward_in * m.d_in + stack.adapter.forward_out * m.d_out
        backward += stack.adapter.backward_in * m.d_in + stack.adapter.backward_out * m.d_out
    forwards = 1 + again + (recipe.method == "dpo")
    if recipe.residual_bytes > 2:
        backward += FP32_RESIDUAL * shape.hidden
    moved = (forward * forwards + backward) * shape.layers * recipe.tokens
    moved += recipe.head_tokens * shape.vocab * stack.logit_traffic
    if recipe.linear_bytes > 2:  # autocast copies every weight, and its gradient back
        moved += CAST * shape.block_params * (forwards + recipe.full)
    return moved / (recipe.gpu.hbm_gbs * 1e9 * STREAMED)


def processor_s(recipe: Recipe) -> float:
    """Launching kernels: below some hundred tokens a GPU waits for Python, whatever its speed.

    Example: 32 layers of 38 + 60 kernels of 16 us, and 10 ms outside: 0.060.
    """
    shape, stack = recipe.shape, recipe.stack
    block = stack.blocks[shape.block]
    forward = block.kernels_forward
    backward = block.kernels_trained if recipe.full else block.kernels_frozen
    if recipe.adapters:
        forward += stack.adapter.kernels_forward * len(recipe.adapters.modules)
        backward += stack.adapter.kernels_backward * len(recipe.adapters.modules)
    forwards = 1 + recipe.checkpointing + (recipe.method == "dpo")
    return stack.micro_batch_s + shape.layers * (forward * forwards + backward) * stack.kernel_s


def unpacking_s(recipe: Recipe) -> float:
    """4-bit weights are unpacked anew in every pass, however few tokens go through.

    Example: Llama 3.1 8B in NF4 with checkpoints on an A100-80GB: 3 x 6.98e9 x 9.1 / 2.039e12 = 0.093.
    """
    if not recipe.quant:
        return 0.0
    passes = 2 + recipe.checkpointing + (recipe.method == "dpo")
    return passes * recipe.shape.block_params * recipe.stack.unpacking / (recipe.gpu.hbm_gbs * 1e9)


def optimizer_s(recipe: Recipe) -> float:
    """The optimizer step's traffic, shared out over the micro-batches of a step.

    Example: full tuning of 1 B parameters, 28 bytes each, 8 micro-batches, A100-80GB: 28e9 / (0.8 x 2.039e12) / 8
    = 0.0021.
    """
    moved = recipe.trained * recipe.stack.optimizer_traffic / recipe.shards
    return moved / (recipe.gpu.hbm_gbs * 1e9 * STREAMED) / recipe.accumulation


def _communication(recipe: Recipe, computing_s: float) -> Part:
    """The links are fast or slow, not the part that is exposed: so more computing never costs less."""
    usual, most, least = (exposed_s(recipe, computing_s, times) for times in (1.0, SLOWER, FASTER))
    if not usual:
        return Part(value=0.0)
    return Part(value=usual, less=1 - least / usual, more=most / usual - 1)


def exposed_s(recipe: Recipe, computing_s: float, times: float = 1.0) -> float:
    """Communication that computing does not hide. Once it is the slower of the two, computing hides in it.

    `times`: how many times as long as computed it takes. Example: 1.0 s of computing and 0.4 s of communication:
    0.20; with 2.0 s of communication: 1.2.
    """
    tensor = times * recipe.tensor_parallel * TENSOR_EXPOSED * tensor_parallel_s(recipe)
    data = times * (sharding_s(recipe) if recipe.sharded else all_reduce_s(recipe))
    return tensor + max(EXPOSED * data, data - (1 - 0.2) * computing_s)


def sharding_s(recipe: Recipe) -> float:
    """FSDP: weights gathered forward and backward, gradients of learning weights scattered.

    Example: Llama 3.1 8B, LoRA, 8 x A100 (230 GB/s): 2 x 16.06 GB x 7/8 / 230 GB/s = 0.122.
    """
    shape, n = recipe.shape, recipe.ranks
    # Masters in fp32 are gathered in bf16.
    once = shape.block_params * min(2.0, recipe.linear_bytes) + 2.0 * (shape.outer_params + shape.vectors)
    moved = once * 2 + (2.0 * shape.params if recipe.full else 0.0)
    return moved * (n - 1) / n / (link_gbs(recipe) * 1e9)


def all_reduce_s(recipe: Recipe) -> float:
    """DDP: the gradients of what learns, twice round the ring, once a step.

    Example: 42 M fp32 gradients, 2 x L4 (10 GB/s), 4 micro-batches a step: 2 x 0.168 GB x 1/2 / 10 / 4 = 0.0042.
    """
    n = recipe.ranks // recipe.tensor_parallel
    moved = 2 * recipe.trained * recipe.gradient_bytes / recipe.tensor_parallel * (n - 1) / max(n, 1)
    return moved / (link_gbs(recipe) * 1e9) / recipe.accumulation


def tensor_parallel_s(recipe: Recipe) -> float:
    """Tensor parallelism with sequence parallelism: eight collectives of the hidden state a layer and micro-batch.

    Example: Llama 2 70B, 8,192 tokens, 4 x H100 (360 GB/s): 8 x 80 x 8192 x 8192 x 2 x 3/4 / 360e9 = 0.179.
    """
    n, shape = recipe.tensor_parallel, recipe.shape
    moved = 8 * shape.layers * recipe.tokens * shape.hidden * 2.0 * (n - 1) / n
    return moved / (recipe.gpu.link_gbs * 1e9)


def link_gbs(recipe: Recipe) -> float:
    """Bandwidth of one GPU's ring: its links, or over machines all its machine's network cards together."""
    gpu = recipe.gpu
    return gpu.link_gbs if recipe.nodes == 1 else min(gpu.link_gbs, recipe.gpus * gpu.fabric_gbs)
