"""One job on one offer: every part against its hand-computed example, and what must hold for any job."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost import judging, phases
from cost.assumptions import assumptions
from cost.band import Band, Part
from cost.calibration import Calibration
from cost.estimate import Estimator, Hardware, bill_of, bounded, estimate, priced
from cost.extras import extras_of
from cost.gpus import GPUS
from cost.offers import Offer
from cost.packing import ways_of
from cost.phases import Hours, hours_of
from cost.prices import Price
from cost.recipe import recipe_of
from cost.shapes import known_shape
from cost.work import Work, work_of
from tests.unit.cost_jobs import PRICES, counted, estimator, job, offer, offers, work
from tests.unit.cost_recipes import lora, recipe


def hours(low: float, expected: float, high: float, around: tuple[float, float, float] = (0, 0, 0)) -> Hours:
    none = Band(low=0, expected=0, high=0)
    return Hours(
        useful=Band(low=low, expected=expected, high=high),
        around=Band(low=around[0], expected=around[1], high=around[2]), rework=none, train_s=expected * 3600,
    )  # fmt: skip


def test_steps_and_passes_are_counted_as_the_trainer_makes_them() -> None:
    found = work(job(train={"batch_size": 16}), lengths=(100,), rows=1000)
    assert found.trained_tokens == 300_000
    assert found.steps() == 188
    assert found.passes(4, 2) == 375


def test_packed_rows_are_as_long_as_the_limit() -> None:
    packed = job(train={"packing": True}, data={"train": "r.jsonl", "max_length": 2048})
    assert work(packed, lengths=(100,), rows=1000).sequences == 49


def test_max_steps_ends_the_job_early_and_never_makes_it_longer() -> None:
    short = work(job(train={"batch_size": 10, "max_steps": 50}), lengths=(100,), rows=1000)
    assert short.epochs == 0.5
    assert short.steps() == 50
    assert work(job(train={"batch_size": 10, "max_steps": 5000}), rows=1000).epochs == 3


def test_a_forward_pass() -> None:
    assert judging.forward_s(recipe(), 10_000, 10, adapted=False) == pytest.approx(0.757, abs=0.001)


def test_generating() -> None:
    assert judging.decode_s(recipe(), 100, adapted=False) == pytest.approx(2.92, abs=0.01)


def test_held_out_rows_at_a_uri_are_said_not_to_be_counted() -> None:
    of = job(data={"train": "rows.jsonl", "eval": "s3://bucket/held.jsonl"})
    elsewhere = work_of(of, known_shape(of.model.id), replace(counted(), evaluation=None))
    found = Estimator(work=elsewhere, prices=PRICES)(offer())
    assert found.missing == ("judging the rows of s3://bucket/held.jsonl",)
    assert any("s3://bucket/held.jsonl" in line for line in assumptions(elsewhere, [found]))
    judges = {"baseline": False, "tuned": False}
    unjudged = replace(elsewhere, job=job(data={"train": "r.jsonl", "eval": "s3://b/h.jsonl"}, eval=judges))
    assert Estimator(work=unjudged, prices=PRICES)(offer()).missing == ()


def test_labels_that_are_not_listed_are_those_of_the_rows() -> None:
    def seconds(labels: int, **listed: object) -> float:
        of = job(task="classification", **listed)
        found = work_of(of, known_shape(of.model.id), replace(counted(), labels=labels))
        return judging.judging(found, recipe(), adapted=False).value

    assert seconds(40) > seconds(3)
    assert seconds(40, eval={"labels": ["a", "b", "c"]}) == seconds(3)


def test_your_own_machine_with_a_rate_has_a_ceiling() -> None:
    here = Offer(backend="local", instance_type="1x L4", hourly=Decimal("0.35"))
    assert estimate(here, 4).ceiling == Decimal("1.40")
    assert estimate(replace(here, hourly=None), 4).ceiling == 0


def test_adapters_slow_judging_down() -> None:
    tuned = recipe(adapters=lora())
    assert judging.decode_s(tuned, 100, True) > judging.decode_s(tuned, 100, False)


def test_training_time_is_passes_times_seconds_with_the_counts_error() -> None:
    found = work(job(train={"batch_size": 4, "epochs": 1}), lengths=(100,), rows=3000, error=0.1)
    part = phases.training_part(found, recipe(accumulation=1), Band(low=0.4, expected=0.5, high=0.6), None)
    assert part.value == 375
    assert part.less == pytest.approx(0.28)
    assert part.more == pytest.approx(0.32)


def test_a_calibration_multiplies_the_time_and_has_its_own_band() -> None:
    found, step = work(), Band(low=0.4, expected=0.5, high=0.6)
    plain = phases.training_part(found, recipe(), step, None)
    known = Calibration(factor=1.2, low=1.08, high=1.32, n=5, source="test")
    calibrated = phases.training_part(found, recipe(), step, known)
    assert calibrated.value == pytest.approx(1.2 * plain.value)
    assert (calibrated.less, calibrated.more) == (pytest.approx(0.1), pytest.approx(0.1))


def test_the_models_way_to_the_gpu() -> None:
    part = phases.before_training(work(), recipe(), "sagemaker")["model"]
    assert part.value == pytest.approx(96.4, abs=0.1)
    assert part.value * (1 + part.more) == pytest.approx(4 * part.value)


def test_checkpoints_and_result() -> None:
    found = recipe(adapters=lora())
    assert phases.saving(work(), found, 25 * 60).value == pytest.approx(4.7, abs=0.05)


def test_spot_rework() -> None:
    useful, around = {"training": Part(value=36_000)}, {"start": Part(value=600)}
    part = phases.rework(work(), useful, around)["spot rework"]
    assert part.value == pytest.approx(7.5 * 60)
    assert part.less == 1


def test_a_job_of_reinforcement_learning_is_refused() -> None:
    found = estimator()
    refused = replace(found.hardware(offer()).recipe or recipe(), method="rl")
    answer = hours_of(found.work, ways_of(found.work, refused), "vertex", False)
    assert "reinforcement learning" in getattr(answer, "reason", "")


def test_disk_bucket_and_transfer() -> None:
    items = {
        one.what: one.dollars
        for one in extras_of(work(), recipe(adapters=lora()), hours(1, 1, 1), "sagemaker", "sagemaker")
    }
    bucket = next(value for what, value in items.items() if "bucket" in what)
    download = next(value for what, value in items.items() if "download" in what)
    assert bucket == pytest.approx(0.027, abs=0.001)
    assert download == pytest.approx(0.015, abs=0.001)
    assert not any("disk" in what for what in items)


def test_hours_times_price() -> None:
    at_two = Price(
        hourly=Decimal(2), low=Decimal(2), high=Decimal(2), spot=False, components=(), provider="local",
        instance_type="m", region=None, as_of=None, url=None, origin="yours",
    )  # fmt: skip
    hardware = Hardware(
        gpu=GPUS["L4"], recipe=recipe(adapters=lora()), needed=None, available_gib=None, fit="yes",
        hours=hours(0.8, 1.0, 1.3, around=(0.1, 0.2, 0.4)),
    )  # fmt: skip
    here = offer(backend="local")
    found = priced(here, at_two, hardware, bill_of(work(), here, at_two, hardware))
    assert found.total is not None
    assert (found.total.low, found.total.expected, found.total.high) == tuple(
        map(Decimal, ("1.80", "2.40", "3.40"))
    )
    assert found.compute is not None
    assert found.compute.expected == Decimal(2)


def test_vertex_adds_its_fee_and_spot_does_not_lower_it() -> None:
    for spot, base in ((False, 5), (True, 2)):
        found = estimator()(offer(spot=spot))
        fee = next(item for item in found.items if "fee" in item.what)
        used = found.hardware.hours
        assert used is not None
        assert fee.expected == pytest.approx(Decimal("0.75") * Decimal(used.expected))
        assert found.hourly == Decimal(base) + Decimal("0.75")


def test_sagemaker_spot_is_somewhere_below_on_demand_and_nobody_knows_where() -> None:
    on_demand, spot = (estimator()(offer("L4", "sagemaker", spot=spot)) for spot in (False, True))
    assert spot.total is not None
    assert on_demand.total is not None
    assert spot.hourly is None
    assert spot.total.expected is None
    assert spot.total.high == on_demand.total.high
    assert spot.total.low < on_demand.total.low


def test_what_is_not_known_is_missing_and_never_zero() -> None:
    unpriced = estimator()(offer("H200", "sagemaker", gpus=8))
    assert unpriced.total is None
    assert "no price" in (unpriced.why_unpriced or "")
    partly = estimator()(offer("H200", "skypilot"))
    assert partly.total is not None
    assert partly.missing == ("the disk at nebius",)


def test_this_machine_is_free_and_without_a_gpu_its_time_is_unknown() -> None:
    found = estimator()(offers()[-1])
    assert found.total is not None
    assert found.total.high == 0
    assert found.hardware.hours is None
    assert "launch cost --probe" in (found.hardware.why_not or "")


def test_a_batch_that_can_not_be_shared_out_is_told() -> None:
    found = estimator(job(train={"batch_size": 6}))(offer("A100", "sagemaker", gpus=8))
    assert "6 can't be shared out over 8" in (found.why_unpriced or "")


def test_the_plans_band_ends_at_the_hard_stop() -> None:
    found = estimator()(offer())
    ceiling = estimate(replace(offer(), hourly=Decimal("5.75")), 0.1)
    plan = bounded(found, ceiling, work())
    assert plan.high == plan.ceiling == round(Decimal("0.575"), 2)


JOBS = st.builds(
    lambda kind, batch, micro, packing, checkpointing: job(
        tuning={"kind": kind},
        train={"batch_size": batch, "micro_batch": min(micro, batch), "packing": packing,
               "gradient_checkpointing": checkpointing},
    ),
    st.sampled_from(["lora", "qlora", "full"]), st.sampled_from([8, 16, 64]), st.integers(1, 16), st.booleans(),
    st.sampled_from([None, False]),
)  # fmt: skip
ROWS = st.lists(st.integers(8, 1024), min_size=1, max_size=20).map(sorted)
OFFERS = st.sampled_from([*offers(), *offers(spot=True)])


@given(of=JOBS, lengths=ROWS, where=OFFERS, error=st.floats(0, 0.5))
def test_bands_are_ordered_and_items_add_up(of: object, lengths: list[int], where: object, error: float) -> None:
    found = estimator(of, lengths=lengths, error=error)(where)  # type: ignore[arg-type]
    if found.hardware.hours is not None:
        used = found.hardware.hours
        assert 0 < used.low <= used.expected <= used.high
        assert sum(used.phases.values()) == pytest.approx(used.expected)
    if found.total is not None:
        total = found.total
        assert 0 <= total.low <= total.usual <= total.high
        if total.expected is not None and found.items:
            added = sum((item.expected or Decimal(0) for item in found.items), Decimal(0))
            assert abs(added - total.expected) < Decimal("0.01")


def test_more_tokens_cost_no_less_where_the_links_are_the_slower_part() -> None:
    """Full tuning in micro-batches of one row on 8 GPUs: sending the gradients takes longer than the rest."""
    of = job(tuning={"kind": "full"}, train={"batch_size": 8, "micro_batch": 1, "packing": False})
    where = offer("A100", "sagemaker", gpus=8)
    short, longer = (estimator(of, lengths=[n], rows=1000)(where).hardware.hours for n in (8, 18))
    assert short and longer
    assert longer.useful.high > short.useful.high and longer.useful.low > short.useful.low


@given(of=JOBS, lengths=ROWS, where=OFFERS, more=st.integers(1, 5))
def test_more_tokens_never_cost_less(of: object, lengths: list[int], where: object, more: int) -> None:
    one = estimator(of, lengths=lengths, rows=1000)(where)  # type: ignore[arg-type]
    longer = [min(1024, length + 10 * more) for length in lengths]
    for other in (
        estimator(of, lengths=lengths, rows=1000 * (1 + more))(where),  # type: ignore[arg-type]
        estimator(of, lengths=longer, rows=1000)(where),  # type: ignore[arg-type]
    ):
        assert (one.total is None) == (other.total is None)
        if one.total is not None and other.total is not None:
            assert other.total.low >= one.total.low
            assert other.total.usual >= one.total.usual
            assert other.total.high >= one.total.high


@given(of=JOBS, lengths=ROWS, name=st.sampled_from(sorted(GPUS)), factor=st.floats(1, 4))
def test_more_memory_never_fits_less(of: object, lengths: list[int], name: str, factor: float) -> None:
    from cost.memory import fits, memory

    found: Work = work(of, lengths=lengths)  # type: ignore[arg-type]
    gpu = GPUS[name]
    told = recipe_of(found.job, found.shape, gpu, found.rows)
    assert told is not None
    needed = memory(told)
    assert isinstance(needed, Band)
    order = ("no", "tight", "yes")
    larger = memory(replace(told, gpu=replace(gpu, memory_gib=gpu.memory_gib * factor)))
    assert isinstance(larger, Band)
    less, more = fits(needed, gpu.memory_gib), fits(larger, gpu.memory_gib * factor)
    assert order.index(more) >= order.index(less)


@given(of=JOBS, where=st.sampled_from(offers()))
def test_spot_is_never_above_on_demand(of: object, where: object) -> None:
    found: Estimator = estimator(of)  # type: ignore[arg-type]
    on_demand, spot = found(where), found(replace(where, spot=True))  # type: ignore[arg-type, type-var]
    if isinstance(on_demand.price, Price) and isinstance(spot.price, Price):
        assert spot.price.high <= on_demand.price.high
        assert spot.price.low <= on_demand.price.low
        if on_demand.total and spot.total and spot.hourly is None:
            assert spot.total.high <= on_demand.total.high


def test_each_hardware_is_worked_out_once() -> None:
    found = estimator()
    assert found.hardware(offer()) is found.hardware(replace(offer(), region="elsewhere"))
    assert found.prices is PRICES
    assert counted().evaluation is not None
