"""LoRA with cast matrices gives what peft's own gives, and learns in fp32."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear

from train_entry.adapters import CastLinear, cast_adapters


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(32, 48), torch.nn.Linear(48, 8, bias=False)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def pair(dtype, **settings):
    """(peft's model, the same one with cast adapters); the base in `dtype`, adapters that do something."""
    models = []
    for cast in (False, True):
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"], **settings)
        model = get_peft_model(Two().to(dtype), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
        if cast:
            assert cast_adapters(model) == (0 if settings else 2)
        models.append(model)
    return models


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_outputs_and_gradients_are_those_of_peft_and_the_masters_stay_fp32(dtype, near):
    found = []
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    for model in pair(dtype):
        out = model(x)
        out.float().pow(2).sum().backward()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 4 and all(p.dtype == p.grad.dtype == torch.float32 for p in trained.values())
        found.append((out, {n: p.grad for n, p in trained.items()}))
    (theirs, their_gradients), (ours, our_gradients) = found
    assert ours.dtype == theirs.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=near, atol=near)
    for name, gradient in their_gradients.items():
        off = float((our_gradients[name] - gradient).norm() / gradient.norm())
        assert off < near, name


def test_autocast_computes_the_adapter_in_its_type():
    theirs, ours = pair(torch.float32)
    x = torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(x), theirs(x), rtol=3e-2, atol=3e-2)
    seen = []
    layer = ours.base_model.model.first
    layer.lora_dropout["default"].register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        ours(x)
    assert seen == [torch.bfloat16]


def test_switching_off_and_merging_are_peft_s():
    theirs, ours = pair(torch.float32)
    x = torch.randn(5, 32)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert torch.equal(ours(x), theirs(x))
    tuned = ours(x)
    torch.testing.assert_close(ours.merge_and_unload()(x), tuned, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_adapters_are_left_alone(settings):
    _, model = pair(torch.float32, **settings)
    kinds = {type(m) for m in model.modules() if isinstance(m, Linear)}
    assert CastLinear not in kinds and kinds
