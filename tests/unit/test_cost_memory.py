"""Every part of the memory estimate against its hand-computed example, and what must hold for any recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cost import memory as m
from cost.band import Band, Refusal
from cost.recipe import NF4_DOUBLE_BYTES, Recipe
from tests.unit.cost_recipes import lora, recipe, recipes


def band(of: Recipe, counted: m.Counted = "device") -> Band:
    found = m.memory(of, counted)
    assert isinstance(found, Band)
    return found


def test_a_measured_peak_moves_the_tensors_and_halves_the_doubt() -> None:
    """14-16-20 GiB, of which 15 are tensors, and 1.1 times as many: 16.5-17.5-19.5."""
    computed = Band(low=14, expected=16, high=20, parts={"weights": 13, "logits": 2, "cache": 0.4, "runtime": 0.6})
    found = m.corrected(computed, 1.1)
    assert (found.low, found.expected, found.high) == pytest.approx((16.5, 17.5, 19.5))
    assert m.corrected(computed, 1.0).expected == 16


def test_weights_of_a_model_and_its_adapters() -> None:
    assert m.weights_gib(recipe(adapters=lora())) == pytest.approx(15.2, abs=0.02)


def test_a_four_bit_base_keeps_embedding_and_head_in_full() -> None:
    shape = recipe().shape
    found = m.weights_gib(recipe(quant="nf4", linear_bytes=NF4_DOUBLE_BYTES, outer_bytes=4.0))
    by_hand = (shape.block_params * 0.51587 + (2 * shape.embedding_params + shape.vectors) * 4) / 2**30
    assert found == pytest.approx(by_hand, rel=1e-4)


def test_preference_tuning_of_all_weights_keeps_an_untouched_copy() -> None:
    sft, dpo = (m.weights_gib(recipe(full=True, trained_bytes=0.0, method=method)) for method in ("sft", "dpo"))
    assert dpo == pytest.approx(2 * sft)
    lora_sft, lora_dpo = (m.weights_gib(recipe(adapters=lora(), method=method)) for method in ("sft", "dpo"))
    assert lora_dpo == lora_sft


def test_optimizer_and_gradients_of_adapters() -> None:
    assert m.optimizer_gib(recipe(adapters=lora())) == pytest.approx(0.31, abs=0.005)
    assert m.gradients_gib(recipe(adapters=lora())) == pytest.approx((0.0, 0.15, 0.16), abs=0.005)
    assert m.gradients_gib(recipe(adapters=lora(), gpus=2)) == pytest.approx((0.31, 0.31, 0.31), abs=0.005)


def test_what_autograd_keeps() -> None:
    assert m.kept_gib(recipe(peak_tokens=4096)) == pytest.approx(17.0, abs=0.01)
    checkpointed = recipe(peak_tokens=4096, peak_head_tokens=0, checkpointing=True)
    assert m.layer_gib(checkpointed) == pytest.approx(0.53, abs=0.005)
    assert m.kept_gib(checkpointed) == pytest.approx(1.00 + 0.53, abs=0.005)


def test_autograd_keeps_the_bf16_copy_of_an_fp32_head() -> None:
    fp32 = recipe(quant="nf4", linear_bytes=NF4_DOUBLE_BYTES, outer_bytes=4.0)
    copy = m.kept_gib(replace(fp32, cast_bytes=2.0)) - m.kept_gib(fp32)
    assert copy == pytest.approx(2 * 128256 * 4096 / 2**30)


def test_one_layer_and_its_adapters() -> None:
    assert m.layer_bytes(recipe()) == 139_264
    values = 3 * (4096 + 4096)
    assert m.layer_bytes(recipe(adapters=lora(("q_proj", "v_proj")))) == 139_264 + values


def test_logits() -> None:
    assert m.logits_gib(recipe(peak_head_tokens=1024)) == pytest.approx(1.53, abs=0.005)


def test_scratch() -> None:
    assert m.unpacked_gib(recipe(quant="nf4")) == pytest.approx(0.11, abs=0.005)
    foreach = replace(recipe().stack, optimizer_scratch=8.0)
    assert m.optimizer_scratch_gib(recipe(adapters=lora(), stack=foreach)) == pytest.approx(0.31, abs=0.005)


def test_gradients_of_one_micro_batch_take_the_place_of_its_activations() -> None:
    once = recipe(full=True, linear_bytes=4.0, outer_bytes=4.0, peak_tokens=64, peak_head_tokens=64)
    at_loss, late, every = m.gradients_gib(once)
    assert at_loss == pytest.approx(4 * once.shape.embedding_params / 2**30)
    assert at_loss < late < every
    assert band(once).parts["gradients"] == every  # the optimizer step is the peak, not the loss
    assert "logits" not in band(once).parts


def test_gradients_of_several_micro_batches_come_on_top_of_activations() -> None:
    several = recipe(full=True, linear_bytes=4.0, outer_bytes=4.0, accumulation=4)
    assert len(set(m.gradients_gib(several))) == 1
    found = band(several).parts
    assert found["gradients"] + found["activations"] == pytest.approx(
        4 * several.shape.params / 2**30 + m.kept_gib(several)
    )


def test_what_counts_grows_from_tensors_to_the_whole_process() -> None:
    of = recipe(adapters=lora())
    assert band(of, "allocated").expected < band(of, "reserved").expected < band(of, "device").expected


def test_offloaded_checkpoints_are_not_on_the_gpu() -> None:
    here = recipe(peak_tokens=8192, peak_head_tokens=0, checkpointing=True)
    assert m.kept_gib(here) - m.kept_gib(replace(here, offloaded=True)) == pytest.approx(2.0, abs=0.01)


def test_reinforcement_learning_is_refused_with_a_reason() -> None:
    found = m.memory(recipe(method="rl"))
    assert isinstance(found, Refusal)
    assert "reinforcement learning" in found.reason


@given(recipes(), st.floats(1, 10))
def test_more_tokens_never_need_less(of: Recipe, factor: float) -> None:
    more = replace(of, peak_tokens=of.peak_tokens * factor, peak_head_tokens=of.peak_head_tokens * factor)
    assert band(more).expected >= band(of).expected * (1 - 1e-9)
    assert band(more).high >= band(of).high * (1 - 0.15)  # another phase, with surer parts, may be the peak


@given(recipes())
def test_the_band_is_ordered_and_its_parts_add_up(of: Recipe) -> None:
    found = band(of)
    assert 0 < found.low <= found.expected <= found.high
    assert sum(found.parts.values()) == pytest.approx(found.expected)


@given(recipes(), st.floats(1, 300), st.floats(1, 300))
def test_more_memory_never_fits_less(of: Recipe, one: float, other: float) -> None:
    order = ("no", "tight", "yes")
    small, large = sorted((one, other))
    assert order.index(m.fits(band(of), small)) <= order.index(m.fits(band(of), large))


@given(recipes(), st.integers(1, 8))
def test_more_gpus_never_need_more_on_each_when_sharded(of: Recipe, times: int) -> None:
    assume(of.ranks > 1)  # the first step to two brings NCCL's buffers
    sharded = replace(of, sharded=True)
    assert band(replace(sharded, nodes=of.nodes * times)).expected <= band(sharded).expected * (1 + 1e-9)


@given(recipes())
def test_checkpoints_never_need_more(of: Recipe) -> None:
    assume(of.shape.layers > 2 and of.residual_bytes == 2)
    plain, saved = (replace(of, checkpointing=flag) for flag in (False, True))
    assert m.kept_gib(saved) <= m.kept_gib(plain) * (1 + 1e-9)
