"""The vendors' price lists as they answer: what becomes a price and what only looks like one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cost.prices.files import bundled_rows
from cost.refresh import NotSetUp, RefreshError, Settings, read_source
from cost.refresh import aws as aws_list
from cost.refresh.google import KEY_HEADER
from cost.refresh.machines import GOOGLE, aws_machine, azure_machine
from cost.refresh.skypilot import COLUMNS as SKYPILOT_COLUMNS
from cost.refresh.skypilot import parse_catalogue
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
    dollars,
    ec2_product,
    price_list,
    sku,
    skus_page,
)  # fmt: skip

# AWS


def test_sagemaker_training_is_told_from_hosting_spot_and_storage(vendor: Vendor, read: Read) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(SAGEMAKER))
    found = read("sagemaker", "us-east-1")
    assert set(found) == {("ml.g5.2xlarge", "us-east-1"), ("ml.p5.48xlarge", "us-east-1")}
    small, large = found["ml.g5.2xlarge", "us-east-1"], found["ml.p5.48xlarge", "us-east-1"]
    assert dollars(small) == ("1.515", None)
    assert (large.gpu, large.gpus, large.provider) == ("H100", 8, "sagemaker")
    assert large.on_demand is not None
    assert large.on_demand.as_of == TODAY
    assert large.on_demand.url.endswith(SAGEMAKER_PATH)


def test_an_ec2_machine_is_linux_shared_and_nothing_more(vendor: Vendor, read: Read) -> None:
    vendor.plays(EC2_PATH, Answer(EC2))
    found = read("ec2", "us-east-1")
    assert {key: dollars(row) for key, row in found.items()} == {
        ("g5.xlarge", "us-east-1"): ("1.006", None),
        ("p4d.24xlarge", "us-east-1"): ("21.957642", None),
    }  # a price of zero is no price


def test_of_two_prices_the_higher_counts() -> None:
    document = price_list([ec2_product("B1", "g5.xlarge"), ec2_product("B2", "g5.xlarge")], {"B1": "1", "B2": "2"})
    assert aws_list.parse_price_list([json.dumps(document).encode()], aws_list.ec2_type) == {
        "g5.xlarge": Decimal(2)
    }


def test_ec2s_list_is_not_read_to_its_end() -> None:
    text = json.dumps(EC2).encode()
    read_so_far = []

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(text), 64):
            read_so_far.append(at)
            yield text[at : at + 64]

    assert aws_list.parse_price_list(chunks(), aws_list.ec2_type)
    assert max(read_so_far) < text.index(b'"Reserved"') + 4096


def test_each_region_is_asked_for(vendor: Vendor, read: Read) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(SAGEMAKER))
    vendor.plays(SAGEMAKER_PATH.replace("us-east-1", "eu-west-1"), Answer(SAGEMAKER))
    assert {region for _, region in read("sagemaker", "us-east-1", "eu-west-1")} == {"us-east-1", "eu-west-1"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"products": {}}, "without terms"),
        ({"products": {}, "terms": {}}, "without on-demand terms"),
        ([1, 2], "something else than JSON"),
        (b"<html>blocked</html>", "something else than JSON"),
        (price_list([], {}), "no price of a machine with GPUs"),
    ],
)
def test_what_is_no_price_list_is_refused(vendor: Vendor, read: Read, body: Any, words: str) -> None:
    vendor.plays(SAGEMAKER_PATH, Answer(body))
    with pytest.raises(RefreshError, match=words):
        read("sagemaker", "us-east-1")


# Azure


def test_azures_pages_are_followed_and_linux_is_told_from_the_rest(vendor: Vendor, read: Read) -> None:
    first = [
        azure_item(A100, 3.673),
        azure_item(A100, 0.444, meterName="NC24ads A100 v4 Spot", skuName="NC24ads A100 v4 Spot"),
        azure_item(A100, 0.7, meterName="NC24ads A100 v4 Low Priority", skuName="NC24ads A100 v4 Low Priority"),
        azure_item(A100, 99, productName="Virtual Machines NCads A100 v4 Series Windows"),
        azure_item(A100, 98, type="DevTestConsumption"),
        azure_item(A100, 97, unitOfMeasure="1/Month"),
        azure_item(A100, 96, currencyCode="EUR"),
        azure_item(A100, 95, effectiveStartDate="2999-01-01T00:00:00Z"),
        azure_item(A100, 94, isPrimaryMeterRegion=False),
        "no item",
    ]
    second = [
        azure_item("Standard_ND96isr_H100_v5", 0.0),
        azure_item("Standard_NV6ads_A10_v5", 0.454),
        azure_item("Standard_ND96isr_H200_v5", 84.8, armRegionName="eastus2"),
    ]
    vendor.plays(
        AZURE_PATH,
        azure_page(
            first, f"{vendor.url}{AZURE_PATH}?$filter=serviceName%20eq%20%27Virtual%20Machines%27&$skip=1000"
        ),
        azure_page(second, None),
    )
    found = read("azure")
    assert {key: dollars(row) for key, row in found.items()} == {
        (A100, "eastus"): ("3.673", "0.444"),
        ("Standard_ND96isr_H200_v5", "eastus2"): ("84.8", None),
    }
    asked_first, asked_second = vendor.asked
    assert "serviceName eq 'Virtual Machines'" in asked_first.query["$filter"]
    assert asked_first.query["api-version"] == "2023-01-01-preview"
    assert asked_second.query["$skip"] == "1000"


def test_azures_regions_are_asked_for_one_by_one(vendor: Vendor, read: Read) -> None:
    def answer(asked: Asked) -> Answer:
        region = "westeurope" if "armRegionName eq 'westeurope'" in asked.query["$filter"] else "eastus"
        return azure_page([azure_item(A100, 3.673, armRegionName=region)], "")

    vendor.plays(AZURE_PATH, answer)
    assert {region for _, region in read("azure", "eastus", "westeurope")} == {"eastus", "westeurope"}


def test_a_next_page_elsewhere_is_not_followed(vendor: Vendor, read: Read) -> None:
    vendor.plays(
        AZURE_PATH, azure_page([azure_item(A100, 3.673)], "https://example.com/api/retail/prices?$skip=100")
    )
    with pytest.raises(RefreshError, match=r"names a next page elsewhere: https://example\.com"):
        read("azure")


def test_pages_without_end_are_not_read_without_end(
    vendor: Vendor, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cost.refresh.azure.MOST_PAGES", 5)
    vendor.plays(AZURE_PATH, azure_page([azure_item(A100, 3.673)], f"{vendor.url}{AZURE_PATH}?$skip=100"))
    with pytest.raises(RefreshError, match="more than 5 pages"):
        read("azure")
    assert len(vendor.asked) == 5


@pytest.mark.parametrize("region", ["east us", "x' or '1' eq '1", "", "../x"])
def test_a_region_that_is_no_name_is_not_asked_for(vendor: Vendor, read: Read, region: str) -> None:
    with pytest.raises(RefreshError, match="is no region's name"):
        read("azure", region)
    assert vendor.asked == []


# Google

A3 = [
    sku("A3 Instance Core running in Americas", "0.025498"),
    sku("A3 Instance Ram running in Americas", "0.0022203", "GiBy.h"),
    sku("Nvidia H100 80GB GPU running in Americas", "9.79655057"),
    sku("SSD backed Local Storage", "0.08", "GiBy.mo"),
]
A3_SPOT = [
    sku("Spot Preemptible A3 Instance Core running in Americas", "0.0142"),
    sku("Spot Preemptible A3 Instance Ram running in Americas", "0.00124", "GiBy.h"),
    sku("Nvidia H100 80GB GPU attached to Spot Preemptible VMs running in Americas", "5.61"),
    sku("SSD backed Local Storage attached to Spot Preemptible VMs", "0.0456", "GiBy.mo"),
]


def test_google_machines_are_put_together_from_their_parts(vendor: Vendor, read: Read) -> None:
    """208 x 0.025498 + 1872 x 0.0022203 + 8 x 9.79655057 + 6000 x 0.08 / 730 = 88.489924 (list: 88.49)."""
    vendor.plays(GOOGLE_PATH, skus_page(A3, "page-two"), skus_page(A3_SPOT))
    found = read("google", key="k-123")
    on_demand, spot = dollars(found["a3-highgpu-8g", "us-central1"])
    assert on_demand == "88.489924"
    parts = 208 * Decimal("0.0142") + 1872 * Decimal("0.00124") + 8 * Decimal("5.61")
    assert spot == f"{parts + 6000 * Decimal('0.0456') / 730:.6f}"
    assert [asked.query.get("pageToken") for asked in vendor.asked] == [None, "page-two"]
    assert {asked.headers[KEY_HEADER] for asked in vendor.asked} == {"k-123"}
    assert not any("k-123" in str(asked.query) for asked in vendor.asked)


@pytest.mark.parametrize(
    "lookalike",
    [
        sku("Commitment v1: A3 Instance Core running in Americas for 1 Year", "0.01"),
        sku("Sole Tenancy A3 Instance Core running in Americas", "7"),
        sku("A3 Custom Instance Core running in Americas", "7"),
        sku("A3Plus Instance Core running in Americas", "7"),
        sku("Nvidia H100 80GB GPU Virtual Workstation running in Americas", "7"),
        sku("Nvidia H100 80GB GPU attached to DWS Defined Duration VMs running in Americas", "7"),
        sku("A3 Instance Core running in Americas", "7", "GiBy.h"),
        sku("A3 Instance Core running in Americas", "7", tiers=2),
        sku("A3 Instance Core running in Americas", "7", effectiveTime="2999-01-01T00:00:00Z"),
        sku("A3 Instance Core running in Americas", "7", usageType="Preemptible"),
        sku("A3 Instance Core running in Americas", "7", usageType="Commit1Yr"),
        sku("A3 Instance Core running in Americas", "0"),
        "no sku",
    ],
)
def test_skus_that_only_look_alike_change_no_price(vendor: Vendor, read: Read, lookalike: Any) -> None:
    vendor.plays(GOOGLE_PATH, skus_page([lookalike, *A3]))
    assert dollars(read("google", key="k")["a3-highgpu-8g", "us-central1"]) == ("88.489924", None)


def test_a_machine_with_a_part_that_has_no_price_is_not_priced(vendor: Vendor, read: Read) -> None:
    g2 = [
        sku("G2 Instance Core running in Iowa", "0.024988"),
        sku("G2 Instance Ram running in Iowa", "0.002927", "GiBy.h"),
    ]
    vendor.plays(GOOGLE_PATH, skus_page([*A3, *g2]))
    found = read("google", key="k")
    assert ("a3-highgpu-1g", "us-central1") in found
    assert not any(machine.startswith("g2-") for machine, _ in found)


def test_of_several_rates_the_one_in_force_counts(vendor: Vendor, read: Read) -> None:
    core = sku("A3 Instance Core running in Americas", "0.025498")
    older = sku("A3 Instance Core running in Americas", "1", effectiveTime="2020-01-01T00:00:00Z")
    core["pricingInfo"] = [*older["pricingInfo"], *core["pricingInfo"]]
    vendor.plays(GOOGLE_PATH, skus_page([core, *A3[1:]]))
    assert dollars(read("google", key="k")["a3-highgpu-8g", "us-central1"])[0] == "88.489924"


def test_google_needs_a_key_and_says_so(read: Read) -> None:
    with pytest.raises(NotSetUp, match="LAUNCH_GOOGLE_API_KEY"):
        read("google")


def test_a_refused_key_is_told_in_googles_words_and_not_shown(vendor: Vendor, read: Read) -> None:
    said = {"error": {"code": 403, "message": "API key not valid.\n Please pass a valid API key.", "status": "X"}}
    vendor.plays(GOOGLE_PATH, Answer(said, status=403))
    with pytest.raises(RefreshError) as refusal:
        read("google", key="k-secret")
    assert "403 API key not valid. Please pass a valid API key." in str(refusal.value)
    assert "k-secret" not in str(refusal.value)
    assert "k-secret" not in repr(Settings(today=TODAY, google_key="k-secret"))


# SkyPilot


def sky(**changes: Any) -> dict[str, Any]:
    usual = {
        "cloud": "AWS", "instance_type": "g5.xlarge", "accelerator_name": "A10G", "accelerator_count": 1.0,
        "cpu_count": 4.0, "device_memory": 24.0, "memory": 16.0, "price": 1.006, "spot_price": 0.41,
        "region": "us-east-1",
    }  # fmt: skip
    assert tuple(usual) == SKYPILOT_COLUMNS
    return {**usual, **changes}


def test_skypilots_catalogue_becomes_rows() -> None:
    (one,) = parse_catalogue([sky()], TODAY)
    assert (one.provider, one.gpu, one.gpus, one.vcpus, one.memory_gib) == ("aws", "A10G", 1, 4, 16.0)
    assert dollars(one) == ("1.006", "0.41")


@pytest.mark.parametrize(
    "wrong",
    [
        {"cloud": "Vast"},
        {"accelerator_name": "tpu-v5p-8"},
        {"accelerator_name": "Trainium"},
        {"accelerator_count": 0.167},
        {"instance_type": None},
        {"price": 0.0, "spot_price": 0.0},
        {"price": None, "spot_price": None},
        {"price": -1.0, "spot_price": None},
    ],
)
def test_what_is_of_no_use_in_skypilots_catalogue_is_left_out(wrong: dict[str, Any]) -> None:
    assert len(parse_catalogue([sky(), {**sky(instance_type="other"), **wrong}], TODAY)) == 1
    with pytest.raises(RefreshError):
        parse_catalogue([sky(**wrong)], TODAY)


def test_known_faults_of_skypilots_catalogue_are_mended() -> None:
    runpod = sky(
        cloud="RunPod", instance_type="1x_H100_SECURE", device_memory=80 / 1024, price=2.89, spot_price=2.89
    )
    found = parse_catalogue([runpod, {**runpod, "region": "CA"}], TODAY)
    (one,) = found
    assert (one.region, one.gpu_memory_gib, one.spot) == ("*", 80.0, None)
    apart = parse_catalogue([runpod, {**runpod, "region": "CA", "price": 3.0}], TODAY)
    assert {one.region for one in apart} == {"us-east-1", "CA"}


def test_a_cloud_that_skypilot_can_not_read_is_named() -> None:
    answer = {"rows": [sky()], "failed": {"gcp": "no network"}}
    found = read_source("skypilot", Settings(today=TODAY, ask_skypilot=lambda: answer))
    assert found.notes == ("gcp is missing: no network",)
    answer = {"rows": [], "failed": {"gcp": "no network", "aws": "no network"}}
    with pytest.raises(RefreshError, match="aws is missing: no network; gcp is missing"):
        read_source("skypilot", Settings(today=TODAY, ask_skypilot=lambda: answer))


def test_without_skypilots_environment_the_command_that_builds_it_is_named() -> None:
    with pytest.raises(NotSetUp, match="launch setup skypilot --install"):
        read_source("skypilot", Settings(today=TODAY))


CATALOGUES = {
    "aws": "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,"
    "AvailabilityZone,Arch\n"
    "g5.xlarge,A10G,1.0,4.0,16.0,\"{'Gpus': [{'MemoryInfo': {'SizeInMiB': 24576}}]}\",1.006,0.43,us-east-1,"
    "us-east-1a,x86_64\n"
    "g5.xlarge,A10G,1.0,4.0,16.0,\"{'Gpus': [{'MemoryInfo': {'SizeInMiB': 24576}}]}\",1.006,0.41,us-east-1,"
    "us-east-1b,x86_64\n"
    "m5.large,,,2.0,8.0,,0.096,0.03,us-east-1,us-east-1a,x86_64\n",
    "gcp": "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Region,AvailabilityZone,Price,"
    "SpotPrice\n"
    "a2-highgpu-1g,12.0,85.0,,,,us-central1,us-central1-a,0.73948,0.36975\n"
    ",,,A100,1.0,\"{'Gpus': [{'MemoryInfo': {'SizeInMiB': 40960}}]}\",us-central1,us-central1-a,2.93391,1.55827\n",
    "azure": "broken\n",
    "lambda": "broken\n",
    "nebius": "broken\n",
    "runpod": "broken\n",
}


def test_real_skypilot_reads_its_catalogue_through_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sky_python: Path
) -> None:
    from backends.base import ListsPrices
    from backends.skypilot import SkyPilotBackend

    monkeypatch.setenv("LAUNCH_SKYPILOT_PYTHON", str(sky_python))
    monkeypatch.setenv("LAUNCH_CACHE_DIR", str(tmp_path))
    for cloud, text in CATALOGUES.items():  # files without SkyPilot's mark are never downloaded anew
        file = tmp_path / "skypilot-home" / ".sky" / "catalogs" / "v8" / cloud / "vms.csv"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    backend = SkyPilotBackend(tmp_path / "home")
    assert isinstance(backend, ListsPrices)
    found = read_source("skypilot", Settings(today=TODAY, ask_skypilot=backend.list_prices))
    assert {row.instance_type: dollars(row) for row in found.rows} == {
        "g5.xlarge": ("1.006", "0.41"),
        "a2-highgpu-1g": ("3.67339", "1.92802"),  # the machine and its GPU together
    }
    assert [note.split(" ")[0] for note in found.notes] == ["azure", "lambda", "nebius", "runpod"]


# Which machines


def test_the_machines_of_the_snapshot_are_read_from_the_vendors_as_they_are_in_it() -> None:
    for one in bundled_rows():
        shape = {
            "aws": aws_machine, "sagemaker": lambda kind: aws_machine(kind.removeprefix("ml.")),
            "azure": azure_machine, "gcp": GOOGLE.get,
        }.get(one.provider, lambda kind: None)(one.instance_type)  # fmt: skip
        if one.provider in ("aws", "sagemaker", "azure", "gcp"):
            assert shape is not None, one
            assert (shape.gpu, shape.gpus, shape.gpu_memory_gib) == (one.gpu, one.gpus, one.gpu_memory_gib), one
