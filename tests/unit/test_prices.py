"""Prices: where each figure comes from, what a backend adds to it, what is unknown and says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.offers import Offer
from cost.prices import Overlay, Price, Prices, Quote, Row, Unpriced
from cost.prices.files import bundled_rows, latest_day
from cost.prices.markets import MARKETS, SKYPILOT_CLOUDS
from cost.prices.overlay import parse_overlay
from cost.prices.table import merged
from cost.prices.tokens import bundled_tokens

TODAY = date(2026, 11, 25)
URL = "https://prices.example.com/list"


def quote(hourly: str | Decimal | None, as_of: date = TODAY, note: str = "") -> Quote | None:
    if hourly is None:
        return None
    return Quote(hourly=Decimal(hourly), as_of=as_of, url=URL, origin="bundled", note=note)


def row(
    provider: str = "aws", kind: str = "g5.xlarge", region: str = "us-east-1", on_demand: Any = "1.006",
    spot: Any = None, gpu: str = "A10G", gpus: int = 1, as_of: date = TODAY,
) -> Row:  # fmt: skip
    return Row(
        provider=provider, instance_type=kind, region=region, gpu=gpu, gpus=gpus,
        on_demand=quote(on_demand, as_of), spot=quote(spot, as_of),
    )  # fmt: skip


def known(*rows: Row, overlay: Overlay | None = None) -> Prices:
    return Prices(rows=rows, overlay=overlay or Overlay())


def yours(**sections: Sequence[dict[str, Any]]) -> Overlay:
    """An overlay as prices.yaml would make it: every scalar a text."""
    value = {
        name: [{k: str(v) for k, v in entry.items()} for entry in entries] for name, entries in sections.items()
    }
    lines = {(name, i): i + 1 for name, entries in sections.items() for i in range(len(entries))}
    return parse_overlay(value, lines, "prices.yaml", TODAY)


def priced(found: Price | Unpriced) -> Price:
    assert isinstance(found, Price), found
    return found


def reason(found: Price | Unpriced) -> str:
    assert isinstance(found, Unpriced), found
    return found.reason


@pytest.fixture(scope="module")
def bundled() -> Prices:
    return Prices(rows=merged(bundled_rows()), tokens=tuple(bundled_tokens()))


# What comes with the package


def test_the_snapshot_holds_offers_of_every_market_each_with_a_date_and_a_source(bundled: Prices) -> None:
    assert len(bundled.rows) >= 150
    providers = {one.provider for one in bundled.rows}
    assert providers >= {"sagemaker", "aws", "gcp", "azure", "lambda", "runpod", "modal"}
    assert {one.provider for one in bundled.tokens} == {"together"}
    for one in bundled.rows:
        for found in filter(None, (one.on_demand, one.spot)):
            assert found.hourly > 0
            assert date(2025, 1, 1) < found.as_of <= TODAY
            assert found.url.startswith("https://")
    assert all(one.as_of <= TODAY and one.url.startswith("https://") for one in bundled.tokens)


def test_the_snapshot_agrees_with_the_ratios_of_sagemaker_to_ec2(bundled: Prices) -> None:
    """x1.40 for .xlarge, x1.25 for the other G sizes, x1.15 for p4d and p5, but for rounding (facts of 2026)."""
    compared = 0
    for one in bundled.rows:
        if one.provider != "sagemaker" or one.region != "us-west-2":
            continue
        ec2 = priced(bundled.lookup("aws", one.instance_type.removeprefix("ml."), "us-east-1")).high
        size = one.instance_type.rpartition(".")[2]
        ratio = Decimal("1.15") if ".p" in one.instance_type else Decimal("1.4" if size == "xlarge" else "1.25")
        assert one.on_demand is not None
        assert abs(one.on_demand.hourly / (ec2 * ratio) - 1) < Decimal("0.003"), one
        compared += 1
    assert compared >= 30


def test_conflicting_sources_are_resolved_to_the_newest_and_the_loser_is_named(bundled: Prices) -> None:
    azure = priced(bundled.lookup("azureml", "Standard_NC48ads_A100_v4", "eastus"))
    assert (azure.hourly, azure.as_of) == (Decimal("9.554"), date(2026, 11, 9))
    assert "7.346" in azure.note
    runpod = priced(bundled.lookup("runpod", "1x_H100-SXM_SECURE"))
    assert runpod.hourly == Decimal("3.99")
    assert "3.29" in runpod.note


def test_what_the_backends_offer_first_has_a_price(bundled: Prices) -> None:
    for backend, machine, region in (
        ("sagemaker", "ml.g6.xlarge", "us-east-1"), ("sagemaker", "ml.p5.48xlarge", "us-west-2"),
        ("vertex", "g2-standard-12", "us-central1"), ("vertex", "n1-standard-8", "us-central1"),
        ("azureml", "Standard_NC24ads_A100_v4", "westeurope"), ("skypilot", "L4:1", None),
        ("skypilot", "A100-80GB:8", None), ("skypilot", "H100:8", "gcp"),
    ):  # fmt: skip
        assert priced(bundled.lookup(backend, machine, region)).high > 0, machine


def test_reading_the_snapshot_needs_the_standard_library_alone() -> None:
    script = (
        "import sys\nfrom cost.prices.files import bundled_rows\nassert bundled_rows()\n"
        "print(sorted({'yaml', 'pydantic', 'httpx', 'rich', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


# What the backends add


def test_vertex_adds_its_fee_to_the_list_price() -> None:
    """88.49 x 1.15 = 101.7635; the bill of 2025-08 said 101.54 for that machine."""
    found = priced(known(row("gcp", "a3-highgpu-8g", "us-central1", "88.49")).lookup("vertex", "a3-highgpu-8g"))
    assert found.hourly == Decimal("101.7635")
    assert [part.hourly for part in found.components] == [Decimal("88.49"), Decimal("13.2735")]
    assert "15 %" in found.components[1].what


def test_vertex_does_not_discount_its_fee_on_spot() -> None:
    """50.61 + 0.15 x 88.49 = 63.8835, not 50.61 x 1.15 = 58.2015."""
    table = known(row("gcp", "a3-highgpu-8g", "us-central1", "88.49", "50.61"))
    found = priced(table.lookup("vertex", "a3-highgpu-8g", "us-central1", spot=True))
    assert found.hourly == Decimal("63.8835")
    assert "assumed" in found.note


def test_a_flexible_start_is_unknown_below_the_price_on_demand_and_says_so() -> None:
    """$10 and a fee of 1.50: at least 0.4 of the machine and the whole fee, 5.50, at most 11.50."""
    prices = known(row("gcp", "a3-highgpu-8g", "us-central1", "10", "3", gpu="H100", gpus=8))
    found = priced(prices.price(Offer(backend="vertex", instance_type="a3-highgpu-8g", gpus=8, flex=True)))
    assert (found.hourly, found.low, found.high) == (None, Decimal("5.50"), Decimal("11.50"))
    assert "unknown, at most the price on demand" in found.note and not found.spot
    bill = Decimal("52.03") / Decimal("101.54")  # of 2025-08, the one that is known
    assert found.low / found.high < bill < 1


def test_a_rate_of_your_own_counts_for_a_flexible_start() -> None:
    mine = yours(rates=[{"backend": "vertex", "hourly": "6", "unit": "USD/instance-hour"}])
    prices = known(row("gcp", "a3-highgpu-8g", "us-central1", "10", gpu="H100", gpus=8), overlay=mine)
    found = priced(prices.price(Offer(backend="vertex", instance_type="a3-highgpu-8g", gpus=8, flex=True)))
    assert found.hourly == 6


def test_sagemaker_spot_is_unknown_below_the_on_demand_ceiling() -> None:
    found = priced(known(row("sagemaker", "ml.g5.xlarge", on_demand="1.408")).lookup(
        "sagemaker", "ml.g5.xlarge", "us-east-1", spot=True
    ))  # fmt: skip
    assert found.hourly is None
    assert (found.low, found.high) == (Decimal("0.1408"), Decimal("1.408"))
    assert "0-90 %" in found.note
    assert "unknown" in found.note


def test_azure_ml_costs_what_the_virtual_machine_costs() -> None:
    table = known(row("azure", "Standard_NC24ads_A100_v4", "eastus", "3.673"))
    found = priced(table.lookup("azureml", "standard_nc24ads_a100_v4", "eastus"))
    assert found.hourly == Decimal("3.673")
    assert len(found.components) == 1


def test_your_own_machine_is_free_and_says_so() -> None:
    found = priced(known().lookup("local", "this machine", gpus=2))
    assert found.hourly == 0
    assert found.note.startswith("free: your machine")


# SkyPilot: the cheapest of the clouds


CLOUDS = (
    row("aws", "p4d.24xlarge", "us-east-1", "21.96", None, "A100", 8),
    row("gcp", "a2-highgpu-8g", "us-central1", "29.39", "15.42", "A100", 8),
    row("lambda", "gpu_8x_a100", "*", "15.92", None, "A100", 8),
    row("runpod-community", "8x_A100", "*", "9.00", None, "A100", 8),
    row("aws", "g5.xlarge", "us-east-1", "1.006", None, "A10G", 1),
)


@pytest.mark.parametrize(
    ("region", "spot", "machine"),
    [
        (None, False, "gpu_8x_a100"),
        ("aws", False, "p4d.24xlarge"),
        ("gcp/us-central1", False, "a2-highgpu-8g"),
        ("gcp/us-central1/us-central1-a", False, "a2-highgpu-8g"),
        ("*/us-east-1", False, "gpu_8x_a100"),
        ("lambda/us-west-1", False, "gpu_8x_a100"),
        ("us-central1", True, "a2-highgpu-8g"),
        (None, True, "a2-highgpu-8g"),
    ],
)
def test_skypilot_gets_the_cheapest_machine_where_it_may_look(
    region: str | None, spot: bool, machine: str
) -> None:
    assert priced(known(*CLOUDS).lookup("skypilot", "A100:8", region, spot)).instance_type == machine


def test_skypilots_answer_names_the_cloud_and_that_it_may_choose_another() -> None:
    found = priced(known(*CLOUDS).lookup("skypilot", "a100:8"))
    assert (found.provider, found.region) == ("lambda", None)
    assert "SkyPilot chooses" in found.note


def test_skypilots_clouds_are_known_to_the_snapshot() -> None:
    assert {one.provider for one in bundled_rows()} >= set(SKYPILOT_CLOUDS)


# What is unknown, in words


@pytest.mark.parametrize(
    ("asked", "words", "fix"),
    [
        (("aws", "p9.xlarge"), "no price of p9.xlarge on aws", "--source ec2"),
        (("aws", "g5.xlarge", "eu-west-1"), "there is one for us-east-1", "--source ec2 --region eu-west-1"),
        (("aws", "g5.xlarge", "us-east-1", True), "no spot price", None),
        (("aws", "g5.xlarge", "us-east-1", False, 4), "with 1 GPU, not 4", "prices.yaml"),
        (("skypilot", "B200:8"), "no price of B200:8", "--source skypilot"),
        (("skypilot", "A10G:1", "gcp"), "there is one for aws", "--source skypilot"),
        (("skypilot", "A10G:1", "k8s/training"), "a cluster of your own", "prices.yaml"),
        (("skypilot", "A10G:1", "slurm"), "a cluster of your own", "prices.yaml"),
        (("somebody", "big"), "no price list of backend somebody", "prices.yaml"),
    ],
)
def test_what_is_not_known_says_which_part_and_what_may_help(
    asked: tuple[Any, ...], words: str, fix: str | None
) -> None:
    found = known(*CLOUDS).lookup(*asked)
    assert words in reason(found)
    assert isinstance(found, Unpriced)
    assert (found.fix is None) if fix is None else (fix in (found.fix or ""))


def test_tokens_are_no_hours(bundled: Prices) -> None:
    assert "tokens" in reason(bundled.lookup("together", "anything"))
    small, large = bundled.tokens_price("together", 8), bundled.tokens_price("together", 70)
    assert small is not None
    assert large is not None
    assert (small.low, large.low) == (Decimal("0.48"), Decimal("2.90"))
    assert bundled.tokens_price("together", 405) is None
    assert bundled.tokens_price("nobody", 8) is None


def test_a_spot_price_above_on_demand_is_not_believed() -> None:
    found = known(row(on_demand="1.00", spot="1.50")).lookup("aws", "g5.xlarge", "us-east-1", True)
    assert "above on demand" in reason(found)


# Which list counts


def test_the_newest_figure_counts_and_at_equal_age_the_later_list() -> None:
    old, new = date(2026, 6, 1), date(2026, 11, 1)
    table = merged(
        [row(on_demand="1", as_of=old), row(kind="a", on_demand="1", as_of=new), row(kind="b", on_demand="1")],
        [row(on_demand="2", as_of=new), row(kind="a", on_demand="2", as_of=old), row(kind="b", on_demand="2")],
    )
    assert {one.instance_type: str(one.on_demand and one.on_demand.hourly) for one in table} == {
        "g5.xlarge": "2", "a": "1", "b": "2",
    }  # fmt: skip


def test_a_list_without_spot_prices_leaves_those_of_another() -> None:
    (one,) = merged([row(spot="0.4")], [row(on_demand="1.1")])
    assert one.on_demand is not None
    assert one.spot is not None
    assert (one.on_demand.hourly, one.spot.hourly) == (Decimal("1.1"), Decimal("0.4"))


def test_an_offer_is_priced_as_it_is_asked_for() -> None:
    offer = Offer(backend="vertex", instance_type="n1-standard-8", region="us-central1", gpu="T4", gpus=1, nodes=2)
    table = known(row("gcp", "n1-standard-8", "us-central1", "0.73", gpu="T4"))
    assert priced(table.price(offer)).hourly == Decimal("0.8395")
    assert "with 1 GPU, not 2" in reason(table.price(replace(offer, gpus=2)))


# The user's own prices


def test_a_discount_is_taken_off_the_machine_and_not_off_the_fee_and_says_so() -> None:
    """88.49 x 0.9 + 0.15 x 88.49 = 92.9145."""
    overlay = yours(discounts=[{"backend": "vertex", "instance_type": "a3-*", "percent": 10}])
    table = known(row("gcp", "a3-highgpu-8g", "us-central1", "88.49"), overlay=overlay)
    found = priced(table.lookup("vertex", "a3-highgpu-8g", "us-central1"))
    assert found.hourly == Decimal("92.9145")
    assert "less 10 %" in found.note
    assert "prices.yaml:1" in found.note


def test_the_first_discount_that_matches_counts_alone() -> None:
    overlay = yours(discounts=[
        {"backend": "aws", "instance_type": "p5*", "percent": 30}, {"backend": "aws", "percent": 10},
        {"backend": "*", "percent": 50},
    ])  # fmt: skip
    found = priced(known(row(on_demand="1"), overlay=overlay).lookup("aws", "g5.xlarge"))
    assert found.hourly == Decimal("0.9")


def test_a_discount_counts_for_spot_only_where_it_says_so() -> None:
    table = row("gcp", "g2-standard-4", on_demand="1", spot="0.5")
    for spot, expected in (("false", "0.5"), ("true", "0.4")):
        overlay = yours(discounts=[{"backend": "gcp", "percent": 20, "spot": spot}])
        found = priced(known(table, overlay=overlay).lookup("gcp", "g2-standard-4", "us-east-1", True))
        assert found.hourly == Decimal(expected)


def test_a_discount_for_a_cloud_counts_for_skypilot_there_and_not_for_the_clouds_own_trainer() -> None:
    overlay = yours(discounts=[{"backend": "gcp", "percent": 50}])
    table = known(row("gcp", "g2-standard-4", "us-central1", "1", gpu="L4"), overlay=overlay)
    assert priced(table.lookup("skypilot", "L4:1", "gcp")).hourly == Decimal("0.5")
    assert priced(table.lookup("vertex", "g2-standard-4", "us-central1")).hourly == Decimal("1.15")


def test_your_rate_wins_over_the_lists_and_over_your_discounts() -> None:
    overlay = yours(
        rates=[{"backend": "vertex", "instance_type": "a3-highgpu-8g", "region": "us-*", "hourly": "61.20",
                "unit": "USD/instance-hour", "as_of": "2026-10-01", "note": "reserved for a year"}],
        discounts=[{"backend": "vertex", "percent": 50}],
    )  # fmt: skip
    table = known(
        row("gcp", "a3-highgpu-8g", "us-central1", "88.49"), row("gcp", "a3-highgpu-8g", "europe-west4", "112.54"),
        overlay=overlay,
    )  # fmt: skip
    found = priced(table.lookup("vertex", "a3-highgpu-8g", "us-central1"))
    assert (found.hourly, found.origin, found.as_of) == (Decimal("61.20"), "yours", date(2026, 10, 1))
    assert (found.url, found.note) == ("prices.yaml:1", "reserved for a year")
    elsewhere = priced(table.lookup("vertex", "a3-highgpu-8g", "europe-west4"))
    assert elsewhere.origin == "bundled"
    assert priced(table.lookup("vertex", "a3-highgpu-8g")).hourly == Decimal("61.20")  # the cheapest region


def test_a_rate_for_a_gpu_is_multiplied_by_their_number() -> None:
    overlay = yours(rates=[{"backend": "local", "hourly": "0.35", "unit": "usd/GPU-hour"}])
    table = known(overlay=overlay)
    assert priced(table.lookup("local", "this machine", gpus=4)).hourly == Decimal("1.40")
    assert priced(table.lookup("local", "this machine", gpus=0)).hourly == 0  # a CPU has no GPU to pay


def test_a_cluster_of_your_own_has_the_rate_that_you_give_it() -> None:
    overlay = yours(rates=[{"backend": "skypilot", "region": "k8s*", "hourly": "2", "unit": "usd/gpu-hour"}])
    found = priced(known(overlay=overlay).lookup("skypilot", "H100:8", "k8s/training", gpus=8))
    assert found.hourly == 16


def test_a_rate_in_one_cloud_makes_it_skypilots_cheapest() -> None:
    overlay = yours(rates=[
        {"backend": "aws", "instance_type": "p4d.24xlarge", "hourly": "8", "unit": "usd/instance-hour"}
    ])  # fmt: skip
    found = priced(known(*CLOUDS, overlay=overlay).lookup("skypilot", "A100:8"))
    assert (found.provider, found.hourly, found.origin) == ("aws", 8, "yours")


def test_spot_on_sagemaker_is_bounded_by_the_rate_that_you_pay() -> None:
    overlay = yours(rates=[{"backend": "sagemaker", "hourly": "1", "unit": "usd/instance-hour"}])
    table = known(row("sagemaker", "ml.g5.xlarge", on_demand="1.408"), overlay=overlay)
    found = priced(table.lookup("sagemaker", "ml.g5.xlarge", "us-east-1", spot=True))
    assert (found.low, found.high) == (Decimal("0.1"), Decimal("1"))


# Properties

money = st.decimals(min_value="0.01", max_value="200", places=4)
machines = st.builds(
    row,
    provider=st.sampled_from(["aws", "gcp", "azure", "sagemaker", "lambda"]),
    kind=st.sampled_from(["small", "large"]),
    region=st.sampled_from(["here", "there", "*"]),
    on_demand=st.none() | money,
    spot=money,
    gpus=st.sampled_from([1, 8]),
)
discount = st.fixed_dictionaries(
    {"backend": st.sampled_from(["*", "vertex", "aws", "s*"]), "percent": st.integers(0, 100),
     "spot": st.sampled_from(["true", "false"]), "region": st.sampled_from(["*", "h*"])}
)  # fmt: skip
questions = st.tuples(
    st.sampled_from([*MARKETS, "aws", "lambda"]), st.sampled_from(["small", "large", "A10G:1", "A10G:8"]),
    st.sampled_from([None, "here", "there", "aws", "gcp/here"]),
)  # fmt: skip


@given(st.lists(machines, max_size=8), st.lists(discount, max_size=3), questions)
def test_spot_is_never_above_on_demand(rows: list[Row], discounts: list[Any], asked: tuple[Any, ...]) -> None:
    table = known(*merged(rows), overlay=yours(discounts=discounts))
    spot = table.lookup(*asked, True)
    if not isinstance(spot, Price):
        return
    backend, _, _ = asked
    (same,) = (
        one for one in table.rows
        if (one.provider, one.instance_type, one.region)
        == (spot.provider, spot.instance_type, spot.region or "*")
    )  # fmt: skip
    on_demand = table.listed(same, backend, False)
    assert spot.low <= spot.high
    if isinstance(on_demand, Price):
        assert spot.high <= on_demand.high


@given(st.lists(machines, max_size=8), st.lists(discount, max_size=3), questions)
def test_a_discount_never_raises_a_price(rows: list[Row], discounts: list[Any], asked: tuple[Any, ...]) -> None:
    lists = merged(rows)
    plain, less = known(*lists), known(*lists, overlay=yours(discounts=discounts))
    pairs = [(plain.lookup(*asked), less.lookup(*asked))]
    pairs += [(plain.listed(one, asked[0], True), less.listed(one, asked[0], True)) for one in lists]
    for before, after in pairs:
        if isinstance(before, Price) and isinstance(after, Price):
            assert after.high <= before.high


@given(st.lists(machines, max_size=8), questions, st.booleans())
def test_a_price_is_its_parts_and_is_dated(rows: list[Row], asked: tuple[Any, ...], spot: bool) -> None:
    found = known(*merged(rows)).lookup(*asked, spot)
    if not isinstance(found, Price) or found.provider == "local":
        return
    assert found.high == sum(part.hourly for part in found.components)
    assert found.hourly in (None, found.high)
    assert found.as_of == TODAY
    assert found.url == URL


def test_nobodys_today_is_a_future_date() -> None:
    assert latest_day() >= date.today()
