"""Many offers beside each other: which one is taken and why, what does not fit and what to change."""

from __future__ import annotations

import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from backends import registry
from cost.changes import variants
from cost.offers import Offer
from cost.preview import Candidate, Limits, Preview, Sort, cheapest_that_fits, compare
from launcher.costing import candidates_of
from launcher.costview import table
from launcher.spec import JobSpec
from tests.unit.cost_jobs import TODAY, estimator, job, offer, offers


def previewed(
    of: JobSpec | None = None, found: list[Offer] | None = None, sort: Sort = "total",
    limits: Limits | None = None, **rows: Any,
) -> Preview:  # fmt: skip
    candidates = [Candidate(offer=one, can_run=one.backend != "skypilot") for one in found or offers()]
    return compare(estimator(of, **rows), candidates, sort=sort, limits=limits)


def kind_of(preview: Preview) -> str | None:
    return preview.chosen.estimate.offer.instance_type if preview.chosen else None


def test_the_cheapest_that_fits_is_chosen_and_what_was_passed_over_is_told() -> None:
    found = previewed()
    assert kind_of(found) == "ml.g6e.2xlarge"
    fitting = [one for one in found.lines if one.candidate.can_run and one.estimate.hardware.fit == "yes"]
    totals = [one.estimate.total.usual for one in fitting if one.estimate.total]
    assert found.chosen is not None
    assert found.chosen.estimate.total is not None
    assert found.chosen.estimate.total.usual == min(totals)
    assert found.reason.startswith("cheapest that fits")
    assert "local (time unknown)" in found.reason
    assert sum(line.chosen for line in found.lines) == 1


def test_the_fastest_that_fits() -> None:
    assert kind_of(previewed(sort="time")) == "ml.p4d.24xlarge"


def test_what_fits_and_is_priced_comes_first() -> None:
    lines = previewed().lines
    groups = [2 if one.estimate.total is None else one.estimate.hardware.fit == "no" for one in lines]
    assert groups == sorted(groups)


def test_float16_is_taken_only_where_there_is_nothing_else() -> None:
    small = job(model="HuggingFaceTB/SmolLM2-135M")
    both = [offer("T4", "sagemaker"), offer("L4", "sagemaker")]
    assert kind_of(previewed(small, both)) == "ml.g6.2xlarge"
    assert kind_of(previewed(small, both[:1])) == "ml.g4dn.2xlarge"


def test_a_backend_that_only_plans_is_shown_and_not_taken() -> None:
    found = previewed(found=[offer("A10", "skypilot"), offer()])
    assert kind_of(found) == "a2-ultragpu-1g"


def test_a_limit_of_time_or_money_is_kept() -> None:
    slow = previewed(rows=60_000)
    assert kind_of(slow) is not None
    chosen = slow.chosen
    assert chosen is not None
    used = chosen.estimate.hardware.hours
    assert used is not None
    fast = previewed(rows=60_000, limits=Limits(max_hours=used.expected / 2))
    assert kind_of(fast) not in (None, kind_of(slow))
    assert kind_of(previewed(limits=Limits(budget=Decimal("0.01")))) is None


def test_the_cheapest_within_a_budget_is_found_or_nothing() -> None:
    found = previewed()
    best = cheapest_that_fits(found, Decimal(1000))
    assert best is not None
    assert best.chosen
    assert cheapest_that_fits(found, Decimal("0.01")) is None


def test_what_is_short_of_memory_says_what_to_change_and_what_that_costs() -> None:
    short = next(one for one in previewed().lines if one.estimate.offer.gpu == "T4")
    assert short.against is not None
    assert short.against.endswith("GiB short")
    assert short.change is not None
    assert short.change.what == "QLoRA"
    assert short.change.settings == ("tuning.kind=qlora",)
    assert short.change.difference is not None
    assert not short.chosen


def test_a_smaller_micro_batch_goes_before_another_method() -> None:
    wide = job(
        train={"batch_size": 64, "micro_batch": 64, "gradient_checkpointing": False},
        data={"train": "r.jsonl", "max_length": 2048},
    )
    found = previewed(wide, [offer("A100-80GB")], lengths=(2048,))
    change = found.lines[0].change
    assert change is not None
    assert change.what.startswith("micro-batch")


def test_the_next_gpu_is_named_when_no_setting_helps() -> None:
    large = job(model="meta-llama/Llama-3.1-70B", tuning={"kind": "qlora"}, train={"micro_batch": 1})
    found = previewed(large, [offer("L4"), offer("A100-80GB")], lengths=(100,))
    change = next(one.change for one in found.lines if one.estimate.offer.gpu == "L4")
    assert change is not None
    assert change.what == "A100-80GB (a2-ultragpu-1g)"
    assert change.difference is not None


def test_the_next_gpu_on_a_larger_machine_is_asked_for_with_its_number() -> None:
    large = job(model="Qwen/Qwen2.5-32B", tuning={"kind": "qlora"}, train={"micro_batch": 1})
    found = previewed(large, [offer("T4", "sagemaker"), offer("A100", "sagemaker", gpus=8)], lengths=(100,))
    change = next(one.change for one in found.lines if one.estimate.offer.gpu == "T4")
    assert change is not None
    assert change.settings == ("resources.gpu=A100", "resources.gpus=8")
    assert change.what == "8x A100 (ml.p4d.24xlarge)"


@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
def test_every_change_is_a_job_that_can_be_written(kind: str) -> None:
    found = list(variants(job(tuning={"kind": kind}, train={"gradient_checkpointing": False}), 1))
    assert [settings for _, settings, _ in found] == list(dict.fromkeys(settings for _, settings, _ in found))
    assert all(isinstance(changed, JobSpec) for _, _, changed in found)


def test_a_place_that_bills_tokens_stands_beside_the_others() -> None:
    (found,) = previewed(job(train={"epochs": 1}), lengths=(512,), rows=30_000).by_tokens
    assert (found.low, found.high) == (Decimal("7.37"), Decimal("20.74"))


def test_what_is_not_priced_is_told_once_for_all_machines() -> None:
    missing = previewed().missing
    assert any("no price on sagemaker is known (ml.p5en.48xlarge)" in text for text in missing)
    assert any("nebius" in text for text in missing)
    assert len(missing) == len(set(missing))


def test_without_any_offer_the_reason_says_so() -> None:
    found = compare(estimator(), [], not_offered=[("vertex", "no such GPU")])
    assert found.chosen is None
    assert found.reason == "no backend offers this"
    assert found.missing == ("vertex: no such GPU",)


def test_a_flexible_start_stands_beside_spot_and_is_not_taken_for_it(home: Path) -> None:
    """It is another setting of the job: its row says which, and its price is at most that on demand."""
    wanted = job(resources={"gpu": "L4", "spot": True})
    vertex = registry.create("vertex", home)
    found = compare(estimator(wanted), candidates_of(vertex, wanted, estimator(wanted)))
    flex = next(line for line in found.lines if line.estimate.offer.flex)
    assert found.chosen is not None and found.chosen.estimate.offer.spot
    assert flex.estimate.hourly is None and flex.estimate.total is not None
    assert flex.estimate.offer.note == ("flex-start: --set resources.spot=false --set resources.max_wait_hours=24")
    assert any("vertex: flex-start: no list has its price" in text for text in found.assumptions)
    alone = job(resources={"gpu": "L4", "max_wait_hours": 4})
    [only] = candidates_of(vertex, alone, estimator(alone))
    assert only.offer.flex and not only.offer.spot
    planned = candidates_of(vertex, wanted, estimator(wanted), apart=False)
    assert not any(one.offer.flex for one in planned), "a plan is for what the job says"


def test_a_machines_name_is_shown_as_it_is() -> None:
    """Brackets are no markup."""
    odd = compare(estimator(), [Candidate(offer=Offer(backend="local", instance_type="CPU [bold], 8 cores"))])
    out = io.StringIO()
    Console(file=out, width=120).print(table(odd, odd.lines, 120, TODAY))
    assert "CPU [bold], 8 cores" in out.getvalue()
