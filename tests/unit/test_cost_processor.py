"""Training on a processor: unknown before something was measured on it, then the model times what was."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.calibration import Calibration
from cost.estimate import hardware_of
from cost.ledger import training_of
from cost.offers import Offer
from cost.phases import Hours
from cost.processor import MICRO_BATCH, nominal_step_s, processor_hours, processor_recipe
from tests.unit.cost_jobs import job, work

HERE = Offer(backend="local", instance_type="CPU", gpu=None, gpus=0)


def measured(factor: float) -> Calibration:
    return Calibration(factor=factor, low=factor * 0.8, high=factor * 1.3, n=1, source="1 probe of yours")


def hours(factor: float) -> Hours:
    found = processor_hours(work(), measured(factor))
    assert isinstance(found, Hours)
    return found


def test_rows_a_pass_are_those_of_train_entry() -> None:
    tree = ast.parse((Path(__file__).parents[2] / "train_entry/trainers.py").read_text(encoding="utf-8"))
    [values] = [
        node.value for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "(CPU_MICRO_BATCH, GPU_MICRO_BATCH)"
    ]  # fmt: skip
    assert ast.literal_eval(values)[0] == MICRO_BATCH
    recipe = processor_recipe(work())
    assert recipe is not None
    assert (recipe.accumulation, recipe.checkpointing) == (2, False)
    one = processor_recipe(work(job(train={"micro_batch": 1, "gradient_checkpointing": True})))
    assert one is not None
    assert (one.accumulation, one.checkpointing) == (16, True)


def test_nothing_is_said_before_something_was_measured() -> None:
    found = hardware_of(work(), HERE, lambda gpu, kind, stack: None)
    assert found.hours is None and "launch cost --probe" in (found.why_not or "")
    nominal = training_of(found, "lora")
    recipe = processor_recipe(work())
    assert nominal is not None and recipe is not None
    assert nominal.step_s == nominal_step_s(recipe)
    assert nominal.key == ("processor", "lora", "trainer")


def test_what_was_measured_multiplies_the_nominal_time() -> None:
    recipe = processor_recipe(work())
    assert recipe is not None
    step_s = nominal_step_s(recipe)
    assert step_s is not None
    steps = 3000 * 3 / 16
    assert hours(1.0).train_s == pytest.approx(step_s * steps)
    assert hours(2.5).train_s == pytest.approx(2.5 * step_s * steps)


def test_judging_is_as_much_slower_as_training() -> None:
    one, other = hours(1.0), hours(2.0)
    assert other.phases["judging"] == pytest.approx(2 * one.phases["judging"])


def test_a_calibration_makes_hours_and_keeps_the_nominal_step() -> None:
    found = hardware_of(work(), HERE, lambda gpu, kind, stack: measured(3.0) if gpu == "processor" else None)
    assert found.hours is not None
    assert found.hours.train_s == pytest.approx(hours(3.0).train_s)
    before = hardware_of(work(), HERE, lambda gpu, kind, stack: None)
    assert training_of(found, "lora") == training_of(before, "lora"), "a calibration never calibrates another"


@given(st.floats(0.01, 100))
def test_bands_are_ordered_whatever_was_measured(factor: float) -> None:
    found = hours(factor)
    assert 0 < found.low < found.expected < found.high
