"""A budget becomes a time limit at the offer's rate; without a rate it is refused, not ignored."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from backends.base import Plan
from launcher.client import Client
from launcher.errors import OverBudgetError
from launcher.planning import Planned
from launcher.prices import user_file
from launcher.screen import money
from launcher.spec import JobSpec


@pytest.fixture
def client(home: Path) -> Client:
    return Client(home)


def planned(client: Client, tmp_path: Path, backend: str = "sagemaker", **changes: Any) -> Planned:
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'
    )
    spec = {
        "name": "demo", "model": "org/m", "task": "generation", "data": {"train": "rows.jsonl"},
        "resources": {"gpu": "A10G", "region": "us-west-2"}, **changes,
    }  # fmt: skip
    return client.plan(JobSpec.model_validate(spec), tmp_path, backend)


def rate(plan: Plan) -> Decimal:
    assert plan.offer.hourly is not None
    return plan.offer.hourly


def test_a_plan_says_what_the_job_costs_at_most_and_how_old_the_price_is(client: Client, tmp_path: Path) -> None:
    plan = planned(client, tmp_path, resources={"gpu": "A10G", "region": "us-west-2", "max_hours": 2}).plan
    assert plan.estimate.high == round(rate(plan) * Decimal("2.25"), 2)
    assert plan.estimate.low is None
    assert plan.offer.price_source is not None
    assert plan.offer.price_source.as_of <= date.today()
    assert money({"low": None, "high": plan.estimate.high}) == f"at most ${plan.estimate.high:.2f}"


def test_a_budget_becomes_the_hard_stop(client: Client, tmp_path: Path) -> None:
    plan = planned(client, tmp_path, budget=5).plan
    seconds = plan.request["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert abs(float(rate(plan)) * seconds / 3600 - 5) < 0.01
    assert plan.estimate.high is not None
    assert plan.estimate.high <= Decimal("5.01")


def test_a_shorter_limit_of_the_job_stays(client: Client, tmp_path: Path) -> None:
    resources = {"gpu": "A10G", "region": "us-west-2", "max_hours": 1}
    plan = planned(client, tmp_path, budget=500, resources=resources).plan
    assert plan.job.resources.max_hours == 1


def test_two_nodes_cost_twice_as_much(client: Client, tmp_path: Path) -> None:
    one = planned(client, tmp_path).plan
    two = planned(client, tmp_path, resources={"gpu": "A10G", "region": "us-west-2", "nodes": 2}).plan
    assert rate(two) == 2 * rate(one)


def test_spot_is_planned_at_its_ceiling(client: Client, tmp_path: Path) -> None:
    one = planned(client, tmp_path).plan
    spot = planned(client, tmp_path, resources={"gpu": "A10G", "region": "us-west-2", "spot": True}).plan
    assert rate(spot) == rate(one)


def test_a_budget_that_buys_nothing_is_refused_with_the_rate(client: Client, tmp_path: Path) -> None:
    with pytest.raises(OverBudgetError, match="an hour") as refusal:
        planned(client, tmp_path, budget=0.1)
    assert refusal.value.exit_code == 6


def test_a_budget_without_a_known_price_is_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(OverBudgetError, match="not known"):
        planned(client, tmp_path, budget=50, resources={"gpu": "H200", "region": "us-west-2", "gpus": 8})


def test_a_budget_is_kept_on_the_dearest_machine_of_the_fallback(client: Client, tmp_path: Path) -> None:
    alone = {"gpu": "A10G", "region": "us-west-2"}
    listed = {**alone, "fallback": ["ml.g5.xlarge", "ml.p4d.24xlarge"]}
    large = planned(client, tmp_path, resources={"gpu": "A100", "region": "us-west-2"}).plan
    first = planned(client, tmp_path, budget=50, resources=alone).plan
    plan = planned(client, tmp_path, budget=50, resources=listed).plan
    assert (plan.offer.instance_type, rate(plan)) == (first.offer.instance_type, rate(first))
    assert large.offer.instance_type == "ml.p4d.24xlarge"
    assert plan.estimate.rates["ml.p4d.24xlarge"] == rate(large) and first.estimate.rates == {}
    seconds = plan.request["StoppingCondition"]["MaxRuntimeInSeconds"]
    assert abs(float(rate(large)) * seconds / 3600 - 50) < 0.01
    assert plan.estimate.ceiling is not None and abs(plan.estimate.ceiling - 50) < Decimal("0.01")


def test_a_budget_with_a_fallback_of_unknown_price_is_refused_by_its_name(client: Client, tmp_path: Path) -> None:
    resources = {"gpu": "A10G", "region": "us-west-2", "fallback": ["ml.p4d.24xlarge", "ml.p5en.48xlarge"]}
    with pytest.raises(OverBudgetError, match=r"ml\.p5en\.48xlarge is not known") as refusal:
        planned(client, tmp_path, budget=50, resources=resources)
    assert "resources.fallback" in (refusal.value.hint or "")
    unlimited = planned(client, tmp_path, resources=resources).plan
    assert unlimited.estimate.high is None
    assert "the price of ml.p5en.48xlarge" in unlimited.estimate.missing


def test_a_budget_counts_the_gpus_that_skypilot_may_fall_back_to(client: Client, tmp_path: Path) -> None:
    resources = {"gpu": "L4", "region": None, "fallback": ["A100-80GB:8"]}
    plan = planned(client, tmp_path, "skypilot", budget=50, resources=resources).plan
    assert plan.job.resources.max_hours is not None
    assert plan.job.resources.max_hours * float(rate(plan)) < 25


@pytest.mark.parametrize(
    ("region", "infra", "hourly"),
    [(None, None, "6.247685"), ("gcp/us-central1", None, "5.068798"), (None, "azure", "4.775"),
     (None, "azure/eastus", "3.673"), (None, "gcp", "6.247685")],
)  # fmt: skip
def test_a_budget_on_skypilot_is_kept_where_it_costs_most(
    client: Client, tmp_path: Path, region: str | None, infra: str | None, hourly: str
) -> None:
    site = {"skypilot": {"store": "s3://bucket", **({"infra": infra} if infra else {})}}
    resources = {"gpu": "A100-80GB", "region": region}
    found = planned(client, tmp_path, "skypilot", budget=30, resources=resources, site=site).plan
    assert rate(found) == Decimal(hourly)
    assert found.request["task"]["resources"].get("infra") == (region or infra), "the dearest is not asked for"


def test_the_estimate_of_a_job_with_a_budget_is_of_the_dearest_place(client: Client, tmp_path: Path) -> None:
    """Else it would be let through and stopped before its end."""
    place = {"model": "HuggingFaceTB/SmolLM2-135M", "resources": {"gpu": "A100-80GB"},
             "site": {"skypilot": {"store": "s3://bucket"}}}  # fmt: skip
    loose = planned(client, tmp_path, "skypilot", **place).plan.estimate
    kept = planned(client, tmp_path, "skypilot", budget=30, **place).plan.estimate
    assert loose.high is not None and kept.high is not None
    assert kept.high > 3 * loose.high
    with pytest.raises(OverBudgetError, match="in gcp/asia-southeast1, the dearest place it may be in, takes"):
        planned(client, tmp_path, "skypilot", budget=float(kept.high) - 0.5, **place)


def test_a_rate_of_this_machine_counts_in_the_plan_and_a_budget_of_it_stops_the_job(
    client: Client, tmp_path: Path
) -> None:
    user_file().parent.mkdir(parents=True, exist_ok=True)
    user_file().write_text("rates: [{backend: local, hourly: 2, unit: USD/instance-hour}]")
    plan = planned(client, tmp_path, "local", resources={"max_hours": 3}).plan
    assert plan.offer.hourly == 2
    assert plan.estimate.ceiling is not None and plan.estimate.ceiling >= 6
    kept = planned(client, tmp_path, "local", resources={}, budget=5).plan
    assert kept.job.resources.max_hours is not None and kept.job.resources.max_hours < 2.5
