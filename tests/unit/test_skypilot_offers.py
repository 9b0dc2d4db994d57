"""Our offers have the prices that SkyPilot's own optimizer takes from the same catalogue, spot and by region."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from backends.skypilot import SkyPilotBackend, environment, machines
from cost.prices.table import Price, Prices
from cost.refresh.skypilot import parse_catalogue
from launcher.spec import Resources

OPTIMIZER = Path(__file__).parent / "fixtures" / "sky_optimizer.py"
COLUMNS = (
    "InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "Price", "SpotPrice", "Region",
    "AvailabilityZone", "Arch", "LocalDiskType", "NVMeSupported", "LocalDiskSize", "LocalDiskCount",
)  # fmt: skip
DISK = ("x86_64", "ssd", "True", "1000", "8")
CATALOGUE = {
    "aws": (
        ("p4d.24xlarge", "A100", 8, 96, 1152, 21.95, 11.57, "us-east-1", "use1-az1", *DISK),
        ("p4d.24xlarge", "A100", 8, 96, 1152, 23.5, 9.9, "us-west-2", "usw2-az1", *DISK),
        ("p5.48xlarge", "H100", 8, 192, 2048, 55.04, "", "us-east-2", "use2-az1", *DISK),
        ("g6.xlarge", "L4", 1, 4, 16, 0.8048, 0.31, "us-east-1", "use1-az1", *DISK),
        ("g6.2xlarge", "L4", 1, 8, 32, 0.9776, 0.38, "us-east-1", "use1-az1", *DISK),
    ),
    "lambda": (
        ("gpu_8x_h100_sxm5", "H100", 8, 208, 1800, 23.92, "", "us-west-1"),
        ("gpu_8x_h100_sxm5", "H100", 8, 208, 1800, 23.92, "", "us-east-1"),
        ("gpu_1x_a10", "A10", 1, 30, 200, 0.75, "", "us-west-1"),
        ("gpu_1x_a10", "A10", 1, 30, 200, 0.75, "", "us-east-1"),
    ),
}
"""Cloud -> rows; the prices are of the kind that clouds ask, and nobody's."""
PLACES = (None, "aws", "aws/us-east-1", "aws/us-west-2", "aws/us-east-2", "lambda", "lambda/us-east-1")
WANTED = [(gpu, n, spot, at) for gpu, n in (("A100", 8), ("H100", 8), ("L4", 1), ("A10", 1))
          for spot in (False, True) for at in PLACES]  # fmt: skip


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's folder with SkyPilot's catalogues; what has no checksum beside it is never brought up to date."""
    kept = tmp_path / ".sky" / "catalogs" / "v8"
    for cloud, rows in CATALOGUE.items():
        whole = []
        for row in rows:
            memory = 81920 if row[1] == "H100" else 40960
            gpu = {"Name": row[1], "Manufacturer": "NVIDIA", "Count": row[2], "MemoryInfo": {"SizeInMiB": memory}}
            whole.append([*row, str({"Gpus": [gpu], "TotalGpuMemoryInMiB": memory})])
        width = len(CATALOGUE[cloud][0])
        write(kept / cloud / "vms.csv", [*COLUMNS[:width], "GpuInfo"], whole)
    regions = ("us-east-1", "us-east-2", "us-west-2")
    images = [("skypilot:custom-gpu-ubuntu", r, "ubuntu", "22.04", "ami-1", "20260101", "ami-0") for r in regions]
    header = ("Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate", "BaseImageId")
    write(kept / "aws" / "images.csv", header, images)
    names = [(gpu, "['AWS']") for gpu in ("H100", "A100", "L4", "A10")]
    write(kept / "common" / "accelerators.csv", ("AcceleratorName", "Clouds"), names)
    return tmp_path


def asked(python: Path, home: Path, script: Path, line: str) -> object:
    env = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [python, script], input=line, env=env, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_offers_cost_what_skypilots_optimizer_pays(sky_python: Path, home: Path, tmp_path: Path) -> None:
    line = json.dumps({"version": 1, "op": "prices", "argument": {"clouds": list(CATALOGUE)}})
    answer = asked(sky_python, home, environment.WORKER, line + "\n")
    assert isinstance(answer, dict) and answer["result"]["failed"] == {}
    prices = Prices(rows=tuple(parse_catalogue(answer["result"]["rows"], date(2026, 11, 30))))
    ours = []
    backend = SkyPilotBackend(tmp_path)
    for gpu, count, spot, place in WANTED:
        wanted = Resources(gpu=gpu, gpus=count, spot=spot, region=place)
        offer = next(iter(backend.offers(wanted)))
        found = prices.price(offer)
        ours.append(
            [found.provider, found.instance_type, float(found.hourly or 0)] if isinstance(found, Price) else None
        )
    requests = [
        {"accelerators": f"{gpu}:{count}", "use_spot": spot, **({"infra": place} if place else {})}
        for gpu, count, spot, place in WANTED
    ]
    chosen = asked(sky_python, home, OPTIMIZER, json.dumps(requests))
    assert isinstance(chosen, list)
    theirs = [None if one is None else [one[0], one[1], one[3]] for one in chosen]
    assert dict(zip(WANTED, ours, strict=True)) == dict(zip(WANTED, theirs, strict=True))
    regions = {w: one[2] for w, one in zip(WANTED, chosen, strict=True) if one}
    assert {place for (*_, spot, place) in regions} >= {"aws/us-west-2", "lambda/us-east-1", None}
    assert sum(one is not None for one in chosen) >= 12
    assert machines.DEFAULT in {gpu for gpu, *_ in regions}
