"""Every part of the time estimate against its hand-computed example, and what must hold for any recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cost import throughput as t
from cost.band import Band, Part, Refusal
from cost.gpus import find_gpu
from cost.recipe import Recipe
from cost.shapes import known_shape
from tests.unit.cost_recipes import lora, recipe, recipes


def seconds(of: Recipe) -> Band:
    found = t.micro_batch_s(of)
    assert isinstance(found, Band)
    return found


def test_matrix_products() -> None:
    assert t.products_s(recipe()) == pytest.approx(0.137, abs=0.001)
    assert t.products_s(recipe(tokens=10, head_tokens=10)) == pytest.approx(0.0147, abs=0.0001)


def test_weights_that_learn_cost_a_third_pass_and_checkpoints_one_more() -> None:
    block = 2 * 1000 * recipe().shape.block_params / (312e12 * 0.70)
    frozen = t.products_s(recipe(head_tokens=0))
    assert frozen == pytest.approx(2 * block)
    assert t.products_s(recipe(head_tokens=0, full=True)) == pytest.approx(3 * block)
    assert t.products_s(recipe(head_tokens=0, checkpointing=True)) == pytest.approx(2.731 * block, rel=1e-3)


def test_attention() -> None:
    assert t.attention_s(recipe()) == pytest.approx(0.0049, abs=0.00005)


def test_traffic_of_other_kernels() -> None:
    assert t.traffic_s(recipe()) == pytest.approx(0.040, abs=0.0005)


def test_fp32_masters_are_copied_in_every_pass() -> None:
    pure, masters = (t.traffic_s(recipe(full=True, linear_bytes=size)) for size in (2.0, 4.0))
    assert masters - pure == pytest.approx(2 * 6 * recipe().shape.block_params / (0.8 * 2.039e12))


def test_launching_kernels() -> None:
    assert t.processor_s(recipe()) == pytest.approx(0.060, abs=0.0005)


def test_unpacking_four_bits() -> None:
    assert t.unpacking_s(recipe(quant="nf4", checkpointing=True)) == pytest.approx(0.093, abs=0.0005)
    assert t.unpacking_s(recipe()) == 0


def test_optimizer_step() -> None:
    one_billion = replace(known_shape("llama-3.1-8b"), layers=0, vocab=0, vectors=10**9)
    found = t.optimizer_s(recipe(shape=one_billion, full=True, accumulation=8))
    assert found == pytest.approx(0.0021, abs=0.0001)


def test_communication() -> None:
    a100, l4 = find_gpu("A100-80GB"), find_gpu("L4")
    assert t.sharding_s(recipe(gpu=a100, gpus=8, sharded=True)) == pytest.approx(0.122, abs=0.001)
    assert t.all_reduce_s(recipe(gpu=l4, gpus=2, adapters=lora(), accumulation=4)) == pytest.approx(
        0.0042, rel=0.01
    )
    seventy = recipe(shape=known_shape("llama-2-70b"), gpu=find_gpu("H100"), tokens=8192, tensor_parallel=4)
    assert t.tensor_parallel_s(seventy) == pytest.approx(0.179, abs=0.001)


@pytest.mark.parametrize(("communication", "exposed"), [(0.4, 0.20), (2.0, 1.2)])
def test_communication_hides_behind_computing(
    communication: float, exposed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = recipe(gpus=8, sharded=True)
    monkeypatch.setattr(t, "sharding_s", lambda _: communication)
    assert t.exposed_s(of, 1.0) == pytest.approx(exposed)


def test_over_machines_their_network_cards_work_together() -> None:
    assert t.link_gbs(recipe(gpus=8, nodes=2)) == 8 * 25
    assert t.link_gbs(recipe(gpus=8, nodes=1)) == 230


def test_few_tokens_take_as_long_as_none() -> None:
    few, fewer = (seconds(recipe(tokens=n, head_tokens=n, span=n)).expected for n in (64, 1))
    assert few == pytest.approx(fewer, rel=0.02)


def test_preference_tuning_runs_the_reference_too() -> None:
    sft, dpo = (t.products_s(recipe(method=method)) for method in ("sft", "dpo"))
    assert dpo == pytest.approx(1.5 * sft)


def test_reinforcement_learning_is_refused_with_a_reason() -> None:
    found = t.micro_batch_s(recipe(method="rl"))
    assert isinstance(found, Refusal)
    assert "generation" in found.reason


def test_what_nobody_measured_has_a_wider_band() -> None:
    def width(gpu: str) -> float:
        band = seconds(recipe(gpu=find_gpu(gpu)))
        return band.high / band.low

    assert width("A10G") > width("A100-80GB")
    mixture = seconds(recipe(shape=known_shape("mixtral-8x7b")))
    assert mixture.high / mixture.low > width("A100-80GB")


def test_a_band_adds_its_parts_errors_up() -> None:
    band = Band.of({"a": Part(value=2.0, less=0.1, more=0.2), "b": Part(value=1.0)})
    assert (band.low, band.expected, band.high) == pytest.approx((2.8, 3.0, 3.4))
    assert band.scaled(2).high == pytest.approx(6.8)


@given(recipes(), st.floats(1, 10))
def test_more_tokens_never_take_less(of: Recipe, factor: float) -> None:
    more = replace(of, tokens=of.tokens * factor, head_tokens=of.head_tokens * factor)
    assert seconds(more).expected >= seconds(of).expected * (1 - 1e-9)


@given(recipes())
def test_the_band_is_ordered_and_its_parts_add_up(of: Recipe) -> None:
    found = seconds(of)
    assert 0 < found.low <= found.expected <= found.high
    assert sum(found.parts.values()) == pytest.approx(found.expected)


@given(recipes())
def test_a_gpu_that_is_better_in_everything_is_never_slower(of: Recipe) -> None:
    gpu = of.gpu
    better = replace(gpu, tflops=2 * gpu.tflops, hbm_gbs=2 * gpu.hbm_gbs, link_gbs=2 * gpu.link_gbs)
    assert seconds(replace(of, gpu=better)).expected <= seconds(of).expected * (1 + 1e-9)


@given(recipes())
def test_four_bits_cost_time(of: Recipe) -> None:
    assume(not of.full and of.quant is None and of.ranks == 1)
    assert seconds(replace(of, quant="nf4")).expected > seconds(of).expected
