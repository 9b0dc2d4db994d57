"""Adapter dropout that a CPU draws quickly: torch draws one random number an element, on one core."""

from __future__ import annotations

from typing import Any

import torch

BITS = 16


class QuickDropout(torch.nn.Dropout):  # type: ignore[misc]
    """nn.Dropout whose CPU masks take 16 random bits an element (p to 1 in 65536); elsewhere unchanged."""

    def forward(self, input: Any) -> Any:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[: input.numel()].view(input.shape)
        dropped = round(self.p * 2**BITS)
        keep = (draws >= dropped - 2 ** (BITS - 1)).to(input.dtype)
        return input * keep.mul_(1 / (1 - dropped / 2**BITS))


def quicken(model: torch.nn.Module) -> None:
    """Put QuickDropout in the place of every nn.Dropout of the adapters."""
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Dropout and ".lora_dropout." in name:
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent)[child] = QuickDropout(module.p)
