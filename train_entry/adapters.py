"""LoRA that computes in the type of the activations, with fp32 master weights.

peft casts the activations up to the adapter's fp32: the wide tensors are copied, and their products run in the
slow type. Here the two narrow matrices are cast instead; autograd adds their gradients to the fp32 masters.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear


class CastLinear(Linear):  # type: ignore[misc]
    """peft's LoRA layer for nn.Linear with its adapter cast to the activations' type."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.disable_adapters or self.merged or kwargs:
            return super().forward(x, *args, **kwargs)
        result = self.base_layer(x, *args)
        dtype = _computed_in(x)
        for name in self.active_adapters:
            if name in self.lora_A.keys():  # noqa: SIM118 - a ModuleDict
                narrow = torch.nn.functional.linear(
                    self.lora_dropout[name](x.to(dtype)), self.lora_A[name].weight.to(dtype)
                )
                # Scaled where it is small.
                wide = (self.lora_B[name].weight * self.scaling[name]).to(dtype)
                result = result + torch.nn.functional.linear(narrow, wide).to(result.dtype)
        return result


def cast_adapters(model: torch.nn.Module) -> int:
    """Make CastLinear of every plain LoRA layer for nn.Linear; how many.

    Others (4-bit, DoRA, biased) stay peft's.
    """
    changed = 0
    for module in model.modules():
        if type(module) is Linear and _plain(module):
            module.__class__ = CastLinear
            changed += 1
    return changed


def _plain(layer: Any) -> bool:
    bare = not layer.lora_variant and type(layer.get_base_layer()) is torch.nn.Linear
    return bare and all(part.bias is None for part in layer.lora_B.values())


def _computed_in(x: torch.Tensor) -> torch.dtype:
    """The type in which a linear layer computes on `x`: autocast's, where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
