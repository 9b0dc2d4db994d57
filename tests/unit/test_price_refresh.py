"""Reading price lists on bad days, and `launch prices refresh`: whole or not at all, what was there stays."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.prices.files import COLUMNS, read_rows
from cost.refresh import SOURCES, RefreshError, Settings
from cost.refresh.fetch import Truncated
from cost.refresh.jsonwalk import JsonWalk
from launcher.commands.prices import SOURCES as NAMES
from launcher.errors import BackendError, BackendNotInstalledError, ConfigError
from launcher.prices import ORDER, known_prices, refresh, refreshed_file
from tests.conftest import Launch
from tests.unit.price_vendor import (
    A100,
    AZURE_PATH,
    EC2,
    EC2_PATH,
    GOOGLE_PATH,
    SAGEMAKER,
    SAGEMAKER_PATH,
    TODAY,
    Answer,
    Asked,
    Read,
    Vendor,
    azure_item,
    azure_page,
    ec2_product,
    price_list,
    reader,
    sku,
    skus_page,
)  # fmt: skip

# Bad days

L4 = [
    sku("G2 Instance Core running in Americas", "0.02"),
    sku("G2 Instance Ram running in Americas", "0.003", "GiBy.h"),
    sku("Nvidia L4 GPU running in Americas", "0.56"),
]  # fmt: skip

WHOLE = {
    "sagemaker": (SAGEMAKER_PATH, [Answer(SAGEMAKER)]),
    "ec2": (EC2_PATH, [Answer(EC2)]),
    "azure": (AZURE_PATH, [azure_page([azure_item(A100, 3.673)], AZURE_PATH), azure_page([], None)]),
    "google": (GOOGLE_PATH, [skus_page(L4[:1], "page-two"), skus_page(L4[1:])]),
}
"""Source -> where it is asked, and its pages on a good day."""


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("bad", ["429", "500", "truncated"])
@pytest.mark.parametrize("source", WHOLE)
def test_every_source_is_read_again_on_its_last_page_and_whole_or_not_at_all(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch, pauses: list[float], source: str, bad: str
) -> None:
    """One bad answer is waited out; a vendor that stays bad leaves the list of the time before in force."""
    path, pages = WHOLE[source]
    pages = [
        Answer(json.loads(page.content().decode().replace(AZURE_PATH, vendor.url + AZURE_PATH))) for page in pages
    ]
    monkeypatch.setenv("LAUNCH_PRICES_URL", vendor.url)
    monkeypatch.setenv("LAUNCH_GOOGLE_API_KEY", "k")
    monkeypatch.setattr("cost.refresh.Settings", partial(Settings, pause=pauses.append))
    answer = {
        "429": Answer(status=429, headers={"Retry-After": "7"}),
        "500": Answer(status=500),
        "truncated": replace(pages[-1], cut=len(pages[-1].content()) * 2 // 3),
    }[bad]
    vendor.plays(path, *pages[:-1], answer, pages[-1])
    [good] = refresh([source], ["us-east-1"] if source in ("sagemaker", "ec2") else [], dict)
    assert (good.error, good.rows) == (None, {"sagemaker": 2, "ec2": 2, "azure": 1, "google": 8}[source])
    assert pauses == [7.0 if bad == "429" else 1.0]
    kept = refreshed_file(source).read_bytes()
    vendor.plays(path, *pages[:-1], answer)
    [failed] = refresh([source], [], dict)
    assert failed.error and failed.kept == TODAY and "4 times" in failed.error
    assert refreshed_file(source).read_bytes() == kept


def test_retry_after_may_be_a_date(vendor: Vendor, read: Read, pauses: list[float]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    vendor.plays(SAGEMAKER_PATH, Answer(status=503, headers={"Retry-After": later}), Answer(SAGEMAKER))
    assert read("sagemaker", "us-east-1")
    assert 0 < pauses[0] <= 30


def test_a_vendor_that_wants_too_much_patience_is_left(vendor: Vendor, read: Read, pauses: list[float]) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(RefreshError, match="answered 429 and asks to wait 3600 s: try again later"):
        read("sagemaker", "us-east-1")
    assert pauses == []


def test_a_vendor_that_stays_broken_is_left_after_four_times(
    vendor: Vendor, read: Read, pauses: list[float]
) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(status=500))
    with pytest.raises(RefreshError, match="answered 500, 4 times"):
        read("sagemaker", "us-east-1")
    assert pauses == [1.0, 2.0, 4.0]
    assert len(vendor.asked) == 4


def test_what_the_vendor_refuses_is_not_asked_again(vendor: Vendor, read: Read) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(status=403))
    with pytest.raises(RefreshError, match="answered 403"):
        read("sagemaker", "us-east-1")
    assert len(vendor.asked) == 1


def test_a_redirect_is_not_followed(vendor: Vendor, read: Read) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(status=302, headers={"Location": f"{vendor.url}/elsewhere"}))
    with pytest.raises(RefreshError, match="answered 302"):
        read("sagemaker", "us-east-1")


@pytest.mark.parametrize("before", [1, 100, 1000])
def test_a_body_that_breaks_off_is_read_again_and_never_half_used(vendor: Vendor, read: Read, before: int) -> None:
    text = json.dumps(SAGEMAKER).encode()
    cut = Answer(text, cut=len(text) - text.index(b'}, "Reserved"') + before)
    vendor.plays(SAGEMAKER_PATH, cut, Answer(text))
    assert len(read("sagemaker", "us-east-1")) == 2
    vendor.plays(SAGEMAKER_PATH, cut)
    with pytest.raises(RefreshError, match=r"broke off.*4 times"):
        read("sagemaker", "us-east-1")


def test_a_page_that_is_cut_before_it_is_sent_is_read_again(vendor: Vendor, read: Read) -> None:
    whole = azure_page([azure_item(A100, 3.673)], None).content()
    vendor.plays(AZURE_PATH, Answer(whole[:-20]), Answer(whole))
    assert len(read("azure")) == 1
    vendor.plays(AZURE_PATH, Answer(whole, cut=20))
    with pytest.raises(RefreshError, match="broke off"):
        read("azure")
    vendor.plays(SAGEMAKER_PATH, Answer(json.dumps(SAGEMAKER).encode()[:600]))
    with pytest.raises(RefreshError, match="breaks off"):
        read("sagemaker", "us-east-1")


@pytest.mark.parametrize(
    "page", [b"[]", b"{}", b'{"Items": 3}', b"null", b"<html>", b"\xff\xfe", b'{"Items": [], "NextPageLink": 7}']
)
def test_a_page_of_another_form_is_refused(vendor: Vendor, read: Read, page: bytes) -> None:
    vendor.plays(AZURE_PATH, Answer(page))
    with pytest.raises(RefreshError):
        read("azure")
    vendor.plays(GOOGLE_PATH, Answer(page if page != b"{}" else b'{"skus": {}}'))
    with pytest.raises(RefreshError):
        read("google", key="k")


def test_nobody_at_the_address_is_told_at_once(pauses: list[float]) -> None:
    gone = Vendor()
    gone.close()
    with pytest.raises(RefreshError, match="can't be reached"):
        reader(gone.url, pauses)("sagemaker", "us-east-1")
    assert pauses == []


def test_a_vendor_that_does_not_answer_is_not_waited_for(
    vendor: Vendor, read: Read, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cost.refresh.fetch.READ_TIMEOUT_S", 0.05)
    over = threading.Event()

    def silent(_: Asked) -> Answer:
        over.wait(30)
        return Answer(status=404)

    vendor.plays(SAGEMAKER_PATH, silent)
    try:
        with pytest.raises(RefreshError, match="does not answer in time, 4 times"):
            read("sagemaker", "us-east-1")
    finally:
        over.set()
    assert pauses == [1.0, 2.0, 4.0]


def test_a_page_without_end_is_not_read_to_its_end(
    vendor: Vendor, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cost.refresh.fetch.MOST_PAGE_BYTES", 2**20)
    vendor.plays(AZURE_PATH, Answer(b" " * (2**20 + 2**17)))
    with pytest.raises(RefreshError, match="more than 1 MiB in one page"):
        read("azure")
    monkeypatch.setattr("cost.refresh.jsonwalk.MOST_MEMBER_CHARS", 2**16)
    vendor.plays(SAGEMAKER_PATH, Answer(b'{"products": {"A": "' + b"x" * 2**20))
    with pytest.raises(RefreshError, match="unexpectedly large part"):
        read("sagemaker", "us-east-1")


# JSON piece by piece

documents = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=5,
)


def pieces(text: bytes, size: int) -> list[bytes]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@given(documents, st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
def test_a_document_in_pieces_is_the_document(
    document: dict[str, Any], size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    walk = JsonWalk(pieces(text, size))
    assert {name: walk.value() for name in walk.members()} == document


@given(documents, st.integers(1, 9), st.data())
def test_a_document_that_breaks_off_is_never_taken_for_whole(
    document: dict[str, Any], size: int, data: st.DataObject
) -> None:
    text = json.dumps(document).encode()
    cut = data.draw(st.integers(0, len(text) - 1))
    walk = JsonWalk(pieces(text[:cut], size))
    with pytest.raises(Truncated):
        for _ in walk.members():
            walk.value()


# Files, and the command


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: Vendor) -> None:
    monkeypatch.setenv("LAUNCH_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("LAUNCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LAUNCH_PRICES_URL", vendor.url)
    monkeypatch.delenv("LAUNCH_GOOGLE_API_KEY", raising=False)


def nobody() -> Mapping[str, Any]:
    raise BackendNotInstalledError("SkyPilot is not installed", "launch setup skypilot --install")


@pytest.mark.usefixtures("places")
def test_a_refreshed_list_wins_and_a_failed_one_keeps_what_was_there(vendor: Vendor) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(SAGEMAKER))
    (outcome,) = refresh(["sagemaker"], ["us-east-1"], nobody)
    assert (outcome.error, outcome.rows, outcome.regions) == (None, 2, 1)
    before = refreshed_file("sagemaker").read_bytes()
    found = known_prices().lookup("sagemaker", "ml.g5.2xlarge", "us-east-1")
    assert getattr(found, "origin", None) == "refreshed"

    vendor.plays(SAGEMAKER_PATH, Answer(status=403))
    (outcome,) = refresh(["sagemaker"], ["us-east-1"], nobody)
    assert "answered 403" in (outcome.error or "")
    assert outcome.kept == TODAY
    assert refreshed_file("sagemaker").read_bytes() == before
    assert list(refreshed_file("sagemaker").parent.iterdir()) == [refreshed_file("sagemaker")]


@pytest.mark.usefixtures("places")
def test_another_regions_prices_stay_when_one_is_refreshed(vendor: Vendor) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(SAGEMAKER))
    vendor.plays(SAGEMAKER_PATH.replace("us-east-1", "eu-west-1"), Answer(SAGEMAKER))
    for region in ("us-east-1", "eu-west-1"):
        list(refresh(["sagemaker"], [region], nobody))
    rows = read_rows(refreshed_file("sagemaker").read_text(), "sagemaker.csv", "refreshed", TODAY)
    assert {row.region for row in rows} == {"us-east-1", "eu-west-1"}


@pytest.mark.usefixtures("places")
def test_a_cloud_that_fails_keeps_the_prices_of_the_time_before() -> None:
    def machine(cloud: str) -> dict[str, Any]:
        return {
            "cloud": cloud, "instance_type": f"{cloud}-1", "accelerator_name": "L4", "accelerator_count": 1.0,
            "cpu_count": 4.0, "device_memory": 24.0, "memory": 16.0, "price": 1.0, "spot_price": None,
            "region": "x",
        }  # fmt: skip

    def answers(*clouds: str, **failed: str) -> Mapping[str, Any]:
        return {"rows": [machine(cloud) for cloud in clouds], "failed": failed}

    list(refresh(["skypilot"], [], lambda: answers("AWS", "Nebius")))
    (outcome,) = refresh(["skypilot"], [], lambda: answers("AWS", nebius="no network"))
    assert outcome.notes == ("nebius is missing: no network",)
    rows = read_rows(refreshed_file("skypilot").read_text(), "skypilot.csv", "refreshed", TODAY)
    assert {row.instance_type for row in rows} == {"AWS-1", "Nebius-1"}
    list(refresh(["skypilot"], [], lambda: answers("AWS")))
    rows = read_rows(refreshed_file("skypilot").read_text(), "skypilot.csv", "refreshed", TODAY)
    assert {row.instance_type for row in rows} == {"AWS-1"}


@pytest.mark.usefixtures("places")
def test_a_damaged_list_is_replaced_and_named(vendor: Vendor) -> None:
    refreshed_file("sagemaker").parent.mkdir(parents=True)
    refreshed_file("sagemaker").write_text(",".join(COLUMNS) + "\nbroken\n")
    vendor.plays(SAGEMAKER_PATH, Answer(SAGEMAKER))
    (outcome,) = refresh(["sagemaker"], ["us-east-1"], nobody)
    assert outcome.error is None
    assert "sagemaker.csv:2" in outcome.notes[0]
    assert known_prices()


@pytest.mark.usefixtures("places")
def test_a_price_that_no_file_may_hold_is_not_written(vendor: Vendor) -> None:
    odd = price_list([ec2_product("B1", "g5.xlarge")], {"B1": "123456"})
    vendor.plays(EC2_PATH, Answer(odd))
    (outcome,) = refresh(["ec2"], ["us-east-1"], nobody)
    assert outcome.error
    assert not refreshed_file("ec2").exists()


@pytest.mark.usefixtures("places")
def test_without_a_name_the_usual_lists_are_read_and_those_not_set_up_skipped(vendor: Vendor) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(SAGEMAKER))
    vendor.plays(SAGEMAKER_PATH.replace("us-east-1", "us-west-2"), Answer(SAGEMAKER))
    vendor.plays(AZURE_PATH, azure_page([azure_item(A100, 3.673)], None))
    outcomes = {one.source: one for one in refresh([], [], nobody)}
    assert set(outcomes) == {"sagemaker", "azure", "google", "skypilot"}
    assert {name for name, one in outcomes.items() if one.skipped} == {"google", "skypilot"}
    asked_for = {one.source: one for one in refresh(["google", "skypilot"], [], nobody)}
    assert not any(one.skipped for one in asked_for.values())
    assert all(one.error for one in asked_for.values())


@pytest.mark.usefixtures("places")
def test_a_backend_that_fails_is_a_source_that_failed() -> None:
    def fails() -> Mapping[str, Any]:
        raise BackendError("SkyPilot's environment does not answer: it is broken", "remove it")

    (outcome,) = refresh(["skypilot"], [], fails)
    assert outcome.error == "SkyPilot's environment does not answer: it is broken"
    assert not outcome.skipped


@pytest.mark.parametrize("url", ["https://prices.example.com", "http://10.0.0.1:80", "nonsense"])
def test_only_a_server_on_this_machine_may_stand_for_the_vendors(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_PRICES_URL", url)
    with pytest.raises(ConfigError, match="is not on this machine"):
        list(refresh(["sagemaker"], [], nobody))


def test_the_names_on_the_command_line_are_those_of_the_sources() -> None:
    assert list(SOURCES) == list(NAMES)
    assert set(ORDER) == set(SOURCES)


def test_the_command_tells_each_source_and_fails_when_one_did(
    typed: Launch, vendor: Vendor, tmp_path: Path
) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(SAGEMAKER))
    vendor.plays(AZURE_PATH, Answer(status=403))
    env = {"LAUNCH_CACHE_DIR": str(tmp_path / "cache"), "LAUNCH_PRICES_URL": vendor.url}
    args = ("prices", "refresh", "--source", "sagemaker", "--source", "azure", "--region", "us-east-1")
    done = typed(*args, env=env)
    assert done.returncode == 1
    assert "sagemaker: 2 prices in 1 regions" in done.stdout
    assert "azure: failed:" in done.stdout
    assert "the bundled prices stay" in " ".join(done.stdout.split())
    assert "1 of 2 price lists could not be read: azure" in done.stderr
    assert "Traceback" not in done.stderr

    shown = json.loads(typed("prices", "show", "-b", "sagemaker", "--gpu", "H100", "--json", env=env).stdout)
    origins = {one["region"]: one["origin"] for one in shown["prices"]}
    assert origins == {"us-east-1": "refreshed", "us-west-2": "bundled"}
    told = json.loads(typed(*args, "--json", env=env).stdout)
    assert [(one["source"], one["ok"]) for one in told] == [("sagemaker", True), ("azure", False)]


def test_help_of_the_command_reads_no_price_list() -> None:
    script = (
        "import sys\nsys.argv = ['launch', 'prices', 'refresh', '--help']\nfrom launcher import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted({'yaml', 'pydantic', 'rich', 'httpx', 'cost'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "LOADED []"
