"""The memory estimate against a count of every tensor: the project's own code paths, one micro-batch each.

Runs in the training environment, on a processor: `python -m bench.count_peaks`, about two minutes. What is counted
is what torch.cuda.max_memory_allocated() would show beside the weights, but for kernels that exist on one kind of
device only.
"""

from __future__ import annotations

import sys
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cost.band import Band
from cost.gpus import find_gpu
from cost.memory import GIB, memory, weights_gib
from cost.recipe import Adapters, Recipe, modules_of
from cost.shapes import ModelShape
from cost.stacks import AUTOCAST_ADAPTER_NO_DROPOUT, CAST_ADAPTER_NO_DROPOUT, TRAINER

TOKENS = 512
SHAPE = ModelShape(name="small", layers=8, hidden=512, ffn=1376, heads=8, kv_heads=4, head_dim=64, vocab=8192)


class Live(TorchDispatchMode):
    """Bytes of all tensors alive but those of the model's weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@dataclass(frozen=True)
class Path:
    """One way in which train_entry tunes a model."""

    name: str
    tuning: str
    checkpointing: bool


PATHS = [Path(f"{t}{', checkpoints' * c}", t, c) for t in ("lora", "qlora", "full") for c in (False, True)]


def counted_mib(path: Path) -> float:
    model = _model(path)
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    live = Live(model)
    with live:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    return float(live.peak / 2**20)


def _model(path: Path) -> Any:
    """As train_entry/models.py makes it; bf16 stands for the 4-bit weights, which unpack to it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=SHAPE.hidden, intermediate_size=SHAPE.ffn, num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads, num_key_value_heads=SHAPE.kv_heads, vocab_size=SHAPE.vocab,
        tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    if path.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if path.tuning == "full":
        return model
    model = model.to(torch.bfloat16)
    tuned = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    if path.tuning == "lora":
        from train_entry.adapters import cast_adapters

        cast_adapters(tuned)
    if path.checkpointing:
        tuned.enable_input_require_grads()
    for name, parameter in tuned.named_parameters():
        if path.tuning == "qlora" and any(word in name for word in ("norm", "embed", "lm_head")):
            parameter.data = parameter.data.float()
    return tuned


def estimated_mib(path: Path) -> float:
    adapter = AUTOCAST_ADAPTER_NO_DROPOUT if path.tuning == "qlora" else CAST_ADAPTER_NO_DROPOUT
    recipe = Recipe(
        shape=SHAPE, gpu=find_gpu("A100"), stack=replace(TRAINER, adapter=adapter),
        tokens=TOKENS, peak_tokens=TOKENS, span=TOKENS, head_tokens=TOKENS, peak_head_tokens=TOKENS,
        checkpointing=path.checkpointing, full=path.tuning == "full", optimizer_bytes=0.0,
    )  # fmt: skip
    if path.tuning == "full":
        recipe = replace(recipe, linear_bytes=4.0, outer_bytes=4.0, cast_bytes=2.0)
    else:
        modules = modules_of(SHAPE, "all-linear") or ()
        recipe = replace(recipe, adapters=Adapters(rank=8, modules=modules))
    if path.tuning == "qlora":
        recipe = replace(recipe, outer_bytes=4.0, cast_bytes=2.0)
    found = memory(recipe, "allocated")
    assert isinstance(found, Band)
    return (found.expected - weights_gib(recipe)) * GIB / 2**20


def main() -> int:
    print(f"peak beside the weights, MiB ({SHAPE.layers} layers of {SHAPE.hidden}, {TOKENS} tokens)")
    for path in PATHS:
        counted, estimated = counted_mib(path), estimated_mib(path)
        print(
            f"{path.name:20s} counted {counted:7.1f}  estimated {estimated:7.1f}  {estimated / counted - 1:+.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
