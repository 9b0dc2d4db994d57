"""The ledger: estimates against what jobs took, and what that says of the next one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cost.assumptions import _calibrated
from cost.calibration import Calibration, Training, calibrate
from cost.estimate import CostEstimate, Hardware, OfferEstimate, hardware_of
from cost.ledger import Compared, Trained, calibrations, training_of
from cost.prices.table import Unpriced
from cost.throughput import micro_batch_s
from launcher.commands.cost_accuracy import accuracy
from launcher.events import Event
from launcher.home import home as home_of
from launcher.ledger import calibrations_of, entries_of
from launcher.store import JobRecord, Store
from tests.unit.cost_jobs import offer, work
from tests.unit.cost_recipes import recipe

STARTED = datetime(2026, 11, 20, 12, tzinfo=UTC)
A100 = Training(gpu="A100-80GB", kind="lora", stack="trainer", step_s=2.0)
RATIOS = st.lists(st.floats(0.2, 5), min_size=1, max_size=30)


def record(number: int, **changes: Any) -> JobRecord:
    """An hour and a half on SageMaker where two were expected, at $4: $6 for $8."""
    fields: dict[str, Any] = {
        "id": f"job-{number}", "name": "job", "backend": "sagemaker", "state": "SUCCEEDED", "lineage": "x",
        "created": STARTED + timedelta(days=number), "started": STARTED, "ended": STARTED + timedelta(hours=1.5),
        "bundle_sha256": "", "spec": {"train": {"dry_run_steps": None}}, "billable_s": 5400.0,
        "machine": "ml.p4d.24xlarge",
        "estimate": {
            "low": "5.00", "expected": "8.00", "high": "10.00", "hourly": "4", "instance_type": "ml.p4d.24xlarge",
            "hours": {"low": 1.6, "expected": 2.0, "high": 2.5}, "training": A100.as_json(),
        },
        "ref": "sagemaker://us-east-1/job", "drained": 1,
    }  # fmt: skip
    return JobRecord(**{**fields, **changes})


def event(job: str, seq: int, name: str, **fields: Any) -> Event:
    return Event("run", seq, STARTED + timedelta(seconds=seq), name, fields)


@pytest.fixture
def store(home: Path) -> Store:
    return Store(home / "record.db")


ROWS = Trained(model="org/m", rows=100, tokens=5000, batch_size=16, micro_batch=None, loss_on="completion")
TOLD = {"model": {"id": "org/m"}, "train": {"batch_size": 16, "loss_on": "completion", "dry_run_steps": None}}


def add(
    store: Store, job: JobRecord, *, steps: int = 1000, train_s: float = 2400.0, packing: str | None = "padded"
) -> None:
    store.add(job)
    if packing:
        told = {"packing": {"kind": packing}, "data": {"train_rows": 100, "train_tokens": 5000}}
        store.add_events(job.id, [event(job.id, n, k, **v) for n, (k, v) in enumerate(told.items(), 50)], None)
    # Judging behind the last step took three times the memory.
    done = {"steps": steps, "train_s": train_s, "tokens_per_s": 1.0, "step_s": 1.0, "peak_gib": 3.0, "files": []}
    peaks = [event(job.id, 40 + n, "step", peak_gib=peak) for n, peak in enumerate([0.9, 1.0, 0.8])]
    store.add_events(job.id, [*peaks, event(job.id, 0, "done", **done)], None)


def ledger(store: Store) -> list[Any]:
    return entries_of(store.find(""), store.events)


def test_a_finished_job_is_compared_in_hours_dollars_and_step_time(store: Store) -> None:
    add(store, record(1))
    [entry] = ledger(store)
    assert entry.hours == Compared(low=1.6, expected=2.0, high=2.5, actual=1.5)
    assert entry.hours.error == pytest.approx(1 / 3) and entry.hours.inside is False
    assert entry.cost.actual == 6.0 and entry.cost.error == pytest.approx(1 / 3) and entry.cost.inside is True
    assert (entry.step_s, entry.ratio) == (2.4, 1.2)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "FAILED"},
        {"state": "CANCELLED"},
        {"spec": {"train": {"dry_run_steps": 5}}},
        {"resumes": "job-0"},
    ],
    ids=["failed", "cancelled", "dry run", "resumed"],
)
def test_what_was_not_the_whole_job_is_not_compared_but_its_steps_count(
    store: Store, changes: dict[str, Any]
) -> None:
    add(store, record(1, **changes))
    [entry] = ledger(store)
    assert (entry.hours, entry.cost) == (None, None)
    assert entry.ratio == 1.2


def test_a_job_on_this_machine_costs_its_time_at_the_users_rate(store: Store) -> None:
    add(store, record(1, backend="local", machine=None, billable_s=None))
    add(store, record(2, backend="local", machine=None, billable_s=None, estimate={"hourly": None}))
    assert [entry.cost.actual for entry in ledger(store)] == [6.0, 0.0]


def test_a_machine_of_the_fallback_costs_its_own_rate(store: Store) -> None:
    mine = {
        "hourly": "4",
        "instance_type": "ml.p4d.24xlarge",
        "rates": {"ml.p4d.24xlarge": "4", "ml.p5.48xlarge": "6"},
    }
    add(store, record(1, machine="ml.p5.48xlarge", estimate=mine))
    add(store, record(2, machine="ml.p5.48xlarge", estimate={**mine, "rates": {}}))
    costs = [found.actual["cost"] for job in ("job-1", "job-2") if (found := store.get(job))]
    assert costs == ["9.00", None]


def test_a_job_that_goes_on_is_not_in_the_ledger(store: Store) -> None:
    store.add(record(1, state="RUNNING", ended=None))
    assert ledger(store) == []


def test_an_older_record_without_expectations_is_unknown_not_wrong(store: Store) -> None:
    add(store, record(1, estimate={"low": None, "expected": None, "high": "9.00"}, billable_s=None))
    [entry] = ledger(store)
    assert entry.hours == Compared(low=None, expected=None, high=None, actual=1.5)
    assert (entry.hours.error, entry.cost.error, entry.cost.inside, entry.ratio) == (None, None, None, None)


@pytest.mark.parametrize("damaged", [None, [], "x", {"gpu": "A100"}, {**A100.as_json(), "step_s": "much"}])
def test_a_damaged_expectation_is_none(damaged: Any) -> None:
    assert Training.read(damaged) is None
    assert Training.read(json.loads(json.dumps(A100.as_json()))) == A100


def test_of_few_steps_the_first_is_left_out(store: Store) -> None:
    add(store, record(1), steps=4, train_s=100.0)
    steps = [event("job-1", n, "step", step=n, step_s=s) for n, s in enumerate([91.0, 3.0, 2.5, 3.5], 1)]
    store.add_events("job-1", steps, None)
    [entry] = ledger(store)
    assert entry.step_s == 3.0


def test_jobs_calibrate_their_own_gpu_tuning_and_stack_and_no_other(store: Store) -> None:
    for number, seconds in enumerate((2000.0, 2400.0, 2880.0), 1):
        add(store, record(number), train_s=seconds)
    other = Training(gpu="L4", kind="qlora", stack="trainer", step_s=4.0).as_json()
    add(store, record(4, estimate={"training": other}), train_s=2000.0)
    look = calibrations_of(ledger(store))
    found = look("A100-80GB", "lora", "trainer")
    assert found is not None
    assert found.n == 3 and found.factor == pytest.approx(1.2)
    assert found.source == "3 earlier jobs of yours"
    assert found.low < 1.0 < 1.44 < found.high
    single = look("L4", "qlora", "trainer")
    assert single is not None and single.factor == pytest.approx(0.5)
    assert look("A100-80GB", "qlora", "trainer") is None and look("H100", "lora", "trainer") is None


@pytest.mark.parametrize("packing", ["prefix", "flat", None])
def test_a_job_whose_rows_were_packed_calibrates_no_job_with_other_rows(store: Store, packing: str | None) -> None:
    """Rows that begin alike take a quarter of the time; the next job's may not begin alike."""
    add(store, record(1, spec=TOLD), train_s=500.0, packing=packing)
    look = calibrations_of(ledger(store), replace(ROWS, tokens=5001))
    assert look("A100-80GB", "lora", "trainer") is None
    add(store, record(2))
    found = look_again(store, replace(ROWS, model="org/other"))
    assert found is not None and found.factor == pytest.approx(1.2) and found.n == 1


@pytest.mark.parametrize("packing", ["prefix", "flat"])
def test_a_job_with_the_same_rows_is_packed_the_same_way(store: Store, packing: str) -> None:
    add(store, record(1, spec=TOLD), train_s=500.0, packing=packing)
    add(store, record(2, spec=TOLD), train_s=2400.0)
    found = look_again(store, ROWS)
    assert found is not None and found.factor == pytest.approx(0.25) and found.n == 1


def test_a_probe_whose_rows_were_packed_says_nothing_of_other_rows_on_another_gpu(store: Store) -> None:
    add(store, gpu_probe(1), train_s=500.0, packing="prefix")
    assert look_again(store, ROWS, "H100") is None


def look_again(store: Store, rows: Trained, gpu: str = "A100-80GB") -> Calibration | None:
    return calibrations_of(ledger(store), rows)(gpu, "lora", "trainer")


def test_the_band_of_a_calibration_by_hand() -> None:
    one = calibrate([1.2], "one")
    assert one.factor == pytest.approx(1.2)
    assert one.high == pytest.approx(1.2 * math.exp(1.64 * 0.12 * math.sqrt(2)))
    three = calibrate([1.2, 1.2, 1.2], "three")
    assert three.low == pytest.approx(1.2 * math.exp(-1.64 * 0.12 * math.sqrt(3 / 5) * math.sqrt(4 / 3)))


def test_only_the_newest_jobs_count() -> None:
    assert calibrate([9.0] * 5 + [1.0] * 20, "x").factor == pytest.approx(1.0)


@given(RATIOS)
def test_bands_are_ordered_and_hold_what_was_usual(ratios: list[float]) -> None:
    found = calibrate(ratios, "x")
    assert 0 < found.low < found.factor < found.high
    assert min(ratios) - 1e-9 <= found.factor <= max(ratios) + 1e-9


@given(st.floats(0.2, 5), st.integers(1, 19))
def test_another_job_that_took_the_same_narrows_the_band(ratio: float, n: int) -> None:
    def width(found: Calibration) -> float:
        return found.high / found.low

    assert width(calibrate([ratio] * (n + 1), "x")) < width(calibrate([ratio] * n, "x"))


def test_what_is_recorded_is_the_model_without_any_calibration() -> None:
    made = recipe(accumulation=4)
    hardware = Hardware(gpu=made.gpu, recipe=made, needed=None, available_gib=None, fit=None, hours=None)
    found = training_of(hardware, "lora")
    expected = micro_batch_s(made)
    assert found is not None
    assert found.step_s == pytest.approx(4 * expected.expected)  # type: ignore[union-attr]
    assert found.key == ("A100-80GB", "lora", "trainer")


def test_what_the_model_refuses_is_not_recorded() -> None:
    assert training_of(_hardware(None), "lora") is None
    assert training_of(_hardware(recipe(method="rl")), "lora") is None


def _hardware(made: Any) -> Hardware:
    return Hardware(gpu=None, recipe=made, needed=None, available_gib=None, fit=None, hours=None)


def test_an_estimate_without_a_model_has_no_expectation() -> None:
    assert CostEstimate(low=None, expected=Decimal(1), high=None).training is None


def test_the_command_shows_errors_and_what_is_in_force(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    add(store, record(1))
    add(store, record(2), train_s=500.0, packing="prefix")
    store.close()
    shown = CliRunner().invoke(accuracy, [])
    assert shown.exit_code == 0, shown.output
    line = next(text for text in shown.output.splitlines() if "job-1" in text)
    assert line.split() == [
        "job-1", "sagemaker", "2h", "00m", "1h", "30m", "+33", "%", "$8.00", "$6.00", "+33", "%", "x", "1.20",
    ]  # fmt: skip
    assert "2 jobs compared, median error 33 %, 0 inside" in shown.output
    assert "0.91-1.59" in shown.output
    assert "trainer, but prefix" in shown.output and "0.25" in shown.output


def test_the_command_prints_json_with_null_for_what_is_unknown(store: Store) -> None:
    add(store, record(1))
    add(store, record(2, estimate={}, billable_s=None))
    store.close()
    shown = CliRunner().invoke(accuracy, ["--json"])
    found = json.loads(shown.output)
    assert [job["job"] for job in found["jobs"]] == ["job-1", "job-2"]
    assert found["jobs"][0]["step_s"] == {"modelled": 2.0, "measured": 2.4, "ratio": 1.2}
    assert found["jobs"][1]["hours"] == {
        "low": None, "expected": None, "high": None, "actual": 1.5, "error": None, "inside": None,
    }  # fmt: skip
    assert found["calibrations"][0]["n"] == 1 and found["calibrations"][0]["memory"] is None
    assert found["jobs"][0]["peak_gib"] == {"modelled": None, "measured": 1.0, "ratio": None}
    assert found["summary"]["compared"] == 1


def test_an_empty_record_says_what_to_do(home: Path) -> None:
    shown = CliRunner().invoke(accuracy, [])
    assert shown.exit_code == 0 and "launch run" in shown.output
    assert home_of() == home


def gpu_probe(number: int, gpu: str = "A100-80GB") -> JobRecord:
    training = Training(gpu=gpu, kind="lora", stack="trainer", step_s=2.0).as_json()
    spec = {"model": {"id": "org/m"}, "train": {"dry_run_steps": 5}}
    return record(number, backend="local", spec=spec, estimate={"training": training})


def test_a_probe_counts_for_other_gpus_too_scaled_and_in_a_wider_band(store: Store) -> None:
    add(store, gpu_probe(1))
    look = calibrations_of(ledger(store))
    own, other = look("A100-80GB", "lora", "trainer"), look("H100", "lora", "trainer")
    assert own is not None and other is not None
    assert own.source == "1 probe of yours"
    assert other.source == "probed on A100-80GB, scaled"
    assert other.factor == own.factor == pytest.approx(1.2)
    assert other.low < own.low and other.high > own.high
    assert look("H100", "qlora", "trainer") is None


def test_a_probes_peak_corrects_the_memory_that_is_computed(store: Store) -> None:
    """1.0 GiB of tensors were measured where 0.8 were computed: 1.25 times."""
    probed = gpu_probe(1)
    told = replace(A100, peak_gib=0.8)
    add(store, replace(probed, estimate={"training": told.as_json()}))
    look = calibrations_of(ledger(store), ROWS)
    for gpu in ("A100-80GB", "L4"):  # tensors are the same on every GPU
        known = look(gpu, "lora", "trainer")
        assert known is not None and known.memory == pytest.approx(1.25)
    plain = hardware_of(work(), offer("L4"), lambda gpu, kind, stack: None)
    found = hardware_of(work(), offer("L4"), look)
    assert plain.needed is not None and found.needed is not None
    tensors = sum(plain.needed.parts[name] for name in ("weights", "optimizer", "gradients", "activations",
                                                        "logits", "scratch"))  # fmt: skip
    assert found.needed.expected == pytest.approx(plain.needed.expected + 0.25 * tensors)
    assert (plain.fit, found.fit) == ("yes", "tight")
    said = list(_calibrated([_estimate_of(found)]))
    assert said[1] == "memory on L4: x 1.25 of what is computed, as measured (probed on A100-80GB, scaled)"


def test_a_peak_says_nothing_of_another_models_weights(store: Store) -> None:
    told = replace(A100, peak_gib=0.8)
    add(store, replace(gpu_probe(1), estimate={"training": told.as_json()}))
    other = replace(gpu_probe(2), spec={"model": {"id": "org/large"}, "train": {"dry_run_steps": 5}})
    add(store, replace(other, estimate={"training": replace(told, peak_gib=2.0).as_json()}))
    for gpu in ("A100-80GB", "L4"):
        for model, factor in (("org/m", 1.25), ("org/large", 0.5), ("org/else", None)):
            known = calibrations_of(ledger(store), replace(ROWS, model=model))(gpu, "lora", "trainer")
            assert known is not None and known.n == 2, "time is that of all"
            assert known.memory == (None if factor is None else pytest.approx(factor))
    [listed] = calibrations(ledger(store)).values()
    assert listed.memory is None, "two models' peaks have no middle"


def test_the_peak_is_that_of_the_steps_and_none_where_memory_ran_out(store: Store) -> None:
    add(store, replace(gpu_probe(1), estimate={"training": replace(A100, peak_gib=0.8).as_json()}))
    [entry] = ledger(store)
    assert (entry.peak_gib, entry.memory_ratio) == (1.0, pytest.approx(1.25))
    store.add_events("job-1", [event("job-1", 60, "micro_batch", step=2, rows=2, was=4)], None)
    [entry] = ledger(store)
    assert (entry.peak_gib, entry.memory_ratio) == (None, None)
    assert entry.ratio == 1.2


@pytest.mark.parametrize(
    ("changes", "packing"),
    [
        ({"peak_gib": None}, "padded"),
        ({"gpu": "processor", "peak_gib": 0.8}, "padded"),
        ({"peak_gib": 0.8}, "flat"),
    ],
    ids=["not modelled", "a process's, not a GPU's", "rows went another way"],
)
def test_a_peak_that_is_no_measure_of_the_model_corrects_nothing(
    store: Store, changes: dict[str, Any], packing: str
) -> None:
    told = replace(A100, **changes)
    add(store, replace(gpu_probe(1), estimate={"training": told.as_json()}), packing=packing)
    [entry] = ledger(store)
    assert entry.memory_ratio is None


def test_a_finished_job_there_goes_before_a_probe_elsewhere(store: Store) -> None:
    add(store, gpu_probe(1))
    there = Training(gpu="H100", kind="lora", stack="trainer", step_s=1.2).as_json()
    add(store, record(2, estimate={"training": there}))
    found = calibrations_of(ledger(store))("H100", "lora", "trainer")
    assert found is not None and found.factor == pytest.approx(2.0)
    assert found.source == "1 earlier job of yours"


def test_a_probe_on_a_processor_says_nothing_of_gpus(store: Store) -> None:
    add(store, gpu_probe(1, "processor"))
    look = calibrations_of(ledger(store))
    assert look("processor", "lora", "trainer") is not None
    assert look("A100-80GB", "lora", "trainer") is None


def test_a_gpu_says_nothing_of_a_processor(store: Store) -> None:
    add(store, gpu_probe(1))
    assert calibrations_of(ledger(store))("processor", "lora", "trainer") is None


def test_the_preview_names_what_calibrates_it(store: Store) -> None:
    add(store, gpu_probe(1))
    look = calibrations_of(ledger(store))
    timed = [hardware_of(work(), offer(gpu), look) for gpu in ("A100-80GB", "H100")]
    said = list(_calibrated([_estimate_of(one) for one in timed]))
    assert said == [
        "training on A100-80GB: x 1.20 (1 probe of yours)",
        "training on H100-SXM: x 1.20 (probed on A100-80GB, scaled)",
    ]
    plain = hardware_of(work(), offer("H100"), lambda gpu, kind, stack: None)
    assert timed[1].hours is not None and plain.hours is not None
    assert timed[1].hours.train_s == pytest.approx(1.2 * plain.hours.train_s)


def _estimate_of(hardware: Hardware) -> OfferEstimate:
    return OfferEstimate(offer=offer(), price=Unpriced(reason="not asked"), hardware=hardware)
