"""Price files: read strictly or refused with the line; the user's file never passed over; `launch prices show`."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.prices import Price, Quote, Row
from cost.prices.files import COLUMNS, bundled_rows, read_rows, write_rows
from launcher.errors import ConfigError
from launcher.prices import known_prices, refreshed_file, user_file
from tests.conftest import Launch

TODAY = date(2026, 11, 25)
HEADER = ",".join(COLUMNS)
GOOD = "aws,g5.xlarge,us-east-1,A10G,1,24,4,16,1.006,0.4,2026-11-01,https://example.com/list,read by hand"


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("LAUNCH_CACHE_DIR", str(tmp_path / "cache"))
    user_file().parent.mkdir(parents=True)
    refreshed_file("ec2").parent.mkdir(parents=True)


def read(*lines: str, header: str = HEADER) -> list[Row]:
    return read_rows("\n".join([header, *lines]) + "\n", "prices.csv", "refreshed", TODAY)


def refused(*lines: str, header: str = HEADER) -> str:
    with pytest.raises(ConfigError) as refusal:
        read(*lines, header=header)
    assert refusal.value.hint
    return "\n".join([refusal.value.message, *refusal.value.problems])


def test_a_line_becomes_a_machine_with_two_prices() -> None:
    (one,) = read(GOOD)
    assert (one.provider, one.gpu, one.gpus, one.gpu_memory_gib, one.vcpus) == ("aws", "A10G", 1, 24.0, 4)
    assert one.on_demand == Quote(
        hourly=Decimal("1.006"), as_of=date(2026, 11, 1), url="https://example.com/list", origin="refreshed",
        note="read by hand",
    )  # fmt: skip
    assert one.spot is not None
    assert one.spot.hourly == Decimal("0.4")


def test_columns_may_stand_in_another_order() -> None:
    swapped = HEADER.replace("provider,instance_type", "instance_type,provider")
    (one,) = read(GOOD.replace("aws,g5.xlarge", "g5.xlarge,aws"), header=swapped)
    assert one == read(GOOD)[0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1.006", "-1.006", "2: on_demand_usd_per_hour: -1.006 is negative"),
        ("1.006", "0", "2: on_demand_usd_per_hour: 0 is zero"),
        ("1.006", "a lot", "2: on_demand_usd_per_hour: 'a lot' is not a number"),
        ("1.006", "NaN", "2: on_demand_usd_per_hour: 'NaN' is not a number"),
        ("1.006", "1_006", "2: on_demand_usd_per_hour: '1_006' is not a number"),
        ("1.006", "100600", "2: on_demand_usd_per_hour: 100600 dollars an hour is above"),
        ("0.4", "-0.4", "2: spot_usd_per_hour: -0.4 is negative"),
        ("1.006,0.4", ",", "2: neither on_demand_usd_per_hour nor spot_usd_per_hour"),
        ("2026-11-01", "2026-11-26", "2: as_of: 2026-11-26 is in the future; today is 2026-11-25"),
        ("2026-11-01", "01.11.2026", "2: as_of: '01.11.2026' is not a date"),
        ("https://example.com/list", "my notes", "2: url: 'my notes' is no address"),
        ("A10G,1", "A10G,0.5", "2: gpus: '0.5' is not a whole number"),
        ("24", "-24", "2: gpu_memory_gib: '-24' is not a size"),
        ("us-east-1", "", "2: region: '' is empty"),
        (",read by hand", "", "2: 12 values, and there are 13 columns"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(old: str, new: str, words: str) -> None:
    assert f"prices.csv:{words}" in refused(GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "on_demand_usd_per_hour",
            "on_demand",
            "unknown column 'on_demand'; did you mean on_demand_usd_per_hour?",
        ),
        ("on_demand_usd_per_hour", "on_demand", "the unit is part of its name"),
        ("on_demand_usd_per_hour", "on_demand_eur_per_hour", "unknown column 'on_demand_eur_per_hour'"),
        (",note", ",note,note", "column note stands twice"),
        (",note", ",rating", "unknown column 'rating'"),
    ],
)
def test_a_column_without_its_unit_or_unknown_is_refused(old: str, new: str, words: str) -> None:
    text = refused(GOOD, header=HEADER.replace(old, new))
    assert words in text
    assert "prices.csv:1:" in text


def test_every_mistake_is_told_at_once_and_one_machine_stands_once() -> None:
    text = refused(GOOD, GOOD.replace("1.006", "-1"), GOOD)
    assert "prices.csv:3: on_demand" in text
    assert "prices.csv:4: g5.xlarge in us-east-1 stands on line 2 already" in text


@pytest.mark.parametrize("text", ["", "\n", "not a price file"])
def test_a_file_that_is_no_price_file_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"prices\.csv:1:"):
        read_rows(text, "prices.csv", "refreshed", TODAY)


quotes = st.builds(
    Quote,
    hourly=st.decimals(min_value="0.0001", max_value="500", places=6),
    as_of=st.just(TODAY),
    url=st.just("https://example.com"),
    origin=st.just("refreshed"),
    note=st.just('a "quoted", note'),
)
names = st.text(st.characters(categories=["L", "N"], include_characters="-._"), min_size=1, max_size=12)


@given(
    st.lists(
        st.builds(
            Row, provider=names, instance_type=names, region=names, gpu=names, gpus=st.integers(1, 16),
            gpu_memory_gib=st.none() | st.sampled_from([16.0, 24.0, 80.5]), vcpus=st.none() | st.integers(1, 200),
            memory_gib=st.none() | st.just(180.0), on_demand=quotes, spot=st.none() | quotes,
        ),
        unique_by=lambda row: row.key, max_size=6,
    )
)  # fmt: skip
def test_what_is_written_is_read_back(rows: list[Row]) -> None:
    back = read_rows(write_rows(rows), "prices.csv", "refreshed", TODAY)
    assert sorted(back, key=lambda row: row.key) == sorted(rows, key=lambda row: row.key)


# The user's file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rates:\n- backend: local\n  hourly: -1\n  unit: USD/gpu-hour\n", "3: rates[0].hourly: -1 is negative"),
        ("rates:\n- backend: local\n  hourly: 1\n", "2: rates[0].unit: is missing"),
        ("rates:\n- backend: local\n  unit: USD/gpu-hour\n", "2: rates[0].hourly: is missing"),
        (
            "rates:\n- backend: a\n  hourly: 1\n  unit: EUR/gpu-hour\n",
            "4: rates[0].unit: 'EUR/gpu-hour' is not USD",
        ),
        ("rates:\n- backend: a\n  hourly: 1\n  unit: USD\n", "4: rates[0].unit: 'USD' is not USD/instance-hour"),
        (
            "rates:\n- backend: a\n  hourly: 1\n  unit: usd/gpu-hour\n  as_of: 2999-01-01\n",
            "5: rates[0].as_of: 2999-01-01 is in the future",
        ),
        ("rates:\n- bakend: a\n", "2: rates[0].bakend: unknown; did you mean backend?"),
        ("discount: []\n", "1: discount: unknown; did you mean discounts?"),
        (
            "discounts:\n- backend: a\n  percent: 120\n",
            "3: discounts[0].percent: '120' is not a number from 0 to 100",
        ),
        ("discounts:\n- backend: a\n  percent: nan\n", "3: discounts[0].percent: 'nan' is not a number"),
        (
            "discounts:\n- backend: a\n  percent: 1\n  spot: yes\n",
            "4: discounts[0].spot: 'yes' is not true or false",
        ),
        ("discounts:\n- backend: [a]\n  percent: 1\n", "2: discounts[0].backend: expected one value"),
        ("discounts: many\n", "1: discounts: expected a list"),
        ("rates:\n- 4\n", "2: rates[0]: expected a mapping"),
        ("- 1\n", "1: expected a mapping with rates and discounts"),
        ("rates: [\n", "1: it ends inside brackets"),
        ("rates: []\nrates: []\n", "2: stands twice"),
    ],
)
def test_a_mistake_in_the_users_file_is_refused_with_its_line(text: str, words: str) -> None:
    user_file().write_text(text)
    with pytest.raises(ConfigError) as refusal:
        known_prices()
    assert f"{user_file()}:{words}" in refusal.value.message
    assert refusal.value.hint


def test_a_file_that_is_not_utf8_is_refused_not_ignored() -> None:
    user_file().write_bytes(b"rates: \xff\xfe")
    with pytest.raises(ConfigError, match=r"prices\.yaml:1:"):
        known_prices()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "rates: []\ndiscounts: []\n", "rates:\n# - backend: x\n"])
def test_an_empty_file_changes_nothing(text: str) -> None:
    user_file().write_text(text)
    assert known_prices().overlay.rates == ()


def test_the_users_file_wins_over_refreshed_lists_and_those_over_the_snapshot() -> None:
    def hourly() -> tuple[Decimal | None, str]:
        found = known_prices().lookup("aws", "g5.xlarge", "us-east-1")
        assert isinstance(found, Price)
        return found.hourly, found.origin

    assert hourly() == (Decimal("1.006"), "bundled")
    refreshed_file("ec2").write_text(f"{HEADER}\n{GOOD.replace('1.006', '0.99')}\n")
    assert hourly() == (Decimal("0.99"), "refreshed")
    user_file().write_text("rates:\n- {backend: aws, hourly: 0.5, unit: USD/instance-hour}\n")
    assert hourly() == (Decimal("0.5"), "yours")


def test_a_refreshed_list_that_is_older_than_the_snapshot_does_not_win() -> None:
    refreshed_file("ec2").write_text(
        f"{HEADER}\n{GOOD.replace('1.006', '0.99').replace('2026-11-01', '2024-01-01')}\n"
    )
    found = known_prices().lookup("aws", "g5.xlarge", "us-east-1")
    assert isinstance(found, Price)
    assert found.hourly == Decimal("1.006")


def test_a_damaged_refreshed_list_is_named_not_passed_over() -> None:
    refreshed_file("ec2").write_text(f"{HEADER}\n{GOOD.replace('1.006', '-1')}\n")
    with pytest.raises(ConfigError, match=r"ec2\.csv:2: on_demand_usd_per_hour: -1 is negative") as refusal:
        known_prices()
    assert "launch prices refresh" in (refusal.value.hint or "")


# launch prices show


def test_show_says_what_is_known_how_old_and_from_where(typed: Launch) -> None:
    done = typed("prices", "show")
    assert done.returncode == 0, done.stderr
    assert "sagemaker" in done.stdout
    assert "bundled" in done.stdout
    assert "2026-" in done.stdout
    assert str(user_file()) in done.stdout.replace("\n", "")
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_show_has_stable_names_in_json(typed: Launch) -> None:
    user_file().write_text("discounts:\n- {backend: vertex, percent: 10}\n")
    done = typed("prices", "show", "--backend", "vertex", "--gpu", "H100:8", "--region", "us-central1", "--json")
    found = json.loads(done.stdout)
    assert set(found) == {"sources", "yours", "prices", "tokens"}
    (one,) = found["prices"]
    assert one["instance_type"] == "a3-highgpu-8g"
    assert Decimal(one["hourly"]) == Decimal("92.9145")
    assert [Decimal(part["hourly"]) for part in one["components"]] == [Decimal("79.641"), Decimal("13.2735")]
    assert (one["backend"], one["provider"], one["origin"]) == ("vertex", "gcp", "bundled")
    assert found["yours"]["discounts"][0]["percent"] == "10"
    assert {"provider", "backends", "newest", "oldest", "origin", "prices", "regions"} <= set(found["sources"][0])
    assert len(bundled_rows()) == sum(source["prices"] for source in found["sources"])


def test_show_writes_a_price_that_is_not_known_as_a_word(typed: Launch) -> None:
    done = typed("prices", "show", "--backend", "azureml", "--gpu", "H200")
    assert "unknown" in done.stdout
    assert " 0.00" not in done.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--gpu", "H10"], "did you mean H100?"),
        (["--backend", "sagemker"], "did you mean sagemaker?"),
    ],
)
def test_show_corrects_names_that_it_does_not_know(typed: Launch, args: list[str], words: str) -> None:
    done = typed("prices", "show", *args)
    assert done.returncode == 2
    assert words in done.stderr


def test_show_names_a_mistake_in_the_users_file(typed: Launch) -> None:
    user_file().write_text("rates:\n- backend: local\n  hourly: -1\n  unit: USD/gpu-hour\n")
    done = typed("prices", "show")
    assert done.returncode == 2
    assert f"{user_file()}:3:" in done.stderr
    assert "Traceback" not in done.stderr


def test_show_of_this_machine_is_free_or_your_rate(typed: Launch) -> None:
    assert "free: your machine" in typed("prices", "show", "-b", "local").stdout
    user_file().write_text("rates:\n- {backend: local, hourly: 0.35, unit: USD/gpu-hour}\n")
    assert "local: $0.35 a GPU-hour" in typed("prices", "show", "-b", "local").stdout
