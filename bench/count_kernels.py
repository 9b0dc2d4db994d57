"""Count what a micro-batch does beside its matrix products: where the numbers of cost/stacks.py come from.

Runs in the training environment (torch, transformers, peft), on a processor and on models of two and four small
layers: kernels, their bytes and what autograd keeps are the same as on a GPU, and linear in the widths.
`python -m bench.count_kernels`, about five minutes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOKENS = 256
HIDDEN, FFN, HEADS, VOCAB = 256, 640, 4, 64
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
NO_KERNEL = {"detach", "_unsafe_view", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
DROPOUT = {"bernoulli_", "div_"}
"""A processor's dropout is three kernels where a GPU has one: two are not counted."""

Make = Callable[..., Any]


class Counted(TorchDispatchMode):
    """Kernels and the bytes of their inputs and outputs, forward and backward apart."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "forward"
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if view or name in NO_KERNEL | DROPOUT:
            return out
        self.kernels[self.phase] += 1
        if name not in PRODUCTS and "attention" not in name:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor) and t.dim()]
            self.bytes[self.phase] += sum(t.numel() * t.element_size() for t in tensors)
        return out


def count(model: Any, autocast: bool) -> dict[str, float]:
    """One micro-batch of `model`: bytes are for each token."""
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    weights = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no address comes twice
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model(input_ids=ids, labels=ids, use_cache=False)
    counted = Counted()
    with counted:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        counted.phase = "backward"
        loss.backward()
    return {
        "kept": sum(s.nbytes() for s in kept.values()) / TOKENS,
        **{f"{phase} bytes": counted.bytes[phase] / TOKENS for phase in ("forward", "backward")},
        **{f"{phase} kernels": float(counted.kernels[phase]) for phase in ("forward", "backward")},
    }


def a_layer(make: Make, autocast: bool, **sizes: int) -> dict[str, float]:
    """The difference that one layer makes."""
    two, four = (count(make(layers=n, **sizes), autocast) for n in (2, 4))
    return {key: (four[key] - two[key]) / 2 for key in two}


def widths(make: Make, autocast: bool) -> str:
    """What one layer costs for each element of hidden state, keys and FFN: each width is changed in turn."""
    base = a_layer(make, autocast, ffn=FFN, kv_heads=HEADS)
    wide = a_layer(make, autocast, ffn=2 * FFN, kv_heads=HEADS)
    grouped = a_layer(make, autocast, ffn=FFN, kv_heads=HEADS // 2)
    text = []
    for key in ("kept", "forward bytes", "backward bytes"):
        ffn = (wide[key] - base[key]) / FFN
        kv = (base[key] - grouped[key]) / (HIDDEN / 2)
        text.append(f"{key} ({(base[key] - ffn * FFN) / HIDDEN - kv:.0f}, {kv:.0f}, {ffn:.0f})")
    return "  ".join([*text, f"kernels {base['forward kernels']:.0f} + {base['backward kernels']:.0f}"])


def model_of(kind: str, tuning: str, **lora: Any) -> Make:
    """A maker of small models. `tuning`: trained, frozen (gradients pass through), lora (peft's own layers), or
    ours (cast as train_entry casts them)."""
    import transformers

    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
        "gemma": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
        "plain": (transformers.PhiConfig, transformers.PhiForCausalLM),
    }[kind]

    def make(layers: int, ffn: int, kv_heads: int) -> Any:
        config = config_class(
            hidden_size=HIDDEN, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=HEADS,
            num_key_value_heads=kv_heads, vocab_size=VOCAB, head_dim=HIDDEN // HEADS, pad_token_id=0,
            tie_word_embeddings=False, attn_implementation="sdpa",
        )  # fmt: skip
        torch.set_default_dtype(torch.bfloat16)
        model = model_class(config).train()
        torch.set_default_dtype(torch.float32)
        if tuning == "frozen":
            model.requires_grad_(False)
            model.enable_input_require_grads()
        if tuning in ("lora", "ours"):
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=8, task_type="CAUSAL_LM", **lora))
        if tuning == "ours":
            from train_entry.adapters import cast_adapters

            assert cast_adapters(model) == layers
        return model

    return make


def main() -> int:
    print("a layer: bytes a token for each element of (hidden state, keys, FFN); kernels forward + backward")
    for kind in ("llama", "qwen3", "gemma", "plain"):
        for tuning in ("frozen", "trained"):
            print(f"{kind:6s} {tuning:8s} {widths(model_of(kind, tuning), autocast=True)}", flush=True)
    for whose in ("lora", "ours"):
        for dropout in (0.05, 0.0):
            for targets in (["q_proj"], ["gate_proj"], ["down_proj"]):
                make = model_of("llama", whose, target_modules=targets, lora_dropout=dropout)
                print(
                    f"llama, {whose} on {targets[0]}, dropout {dropout}: {widths(make, autocast=True)}", flush=True
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
