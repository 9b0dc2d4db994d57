"""SkyPilot's catalogue of cloud machines, as its own environment reads it (sky.catalog.list_accelerators).

What is known to be wrong in it is mended or left out: RunPod's spot prices that repeat the on-demand price, its
GPU memory in GB where MiB are meant, machines at zero dollars, every Lambda machine in every region. Not mended:
Google's machines are without their local SSDs (0.7 % of an a3-highgpu-8g); the source `google` has them.
https://github.com/skypilot-org/skypilot-catalog (issues 31; skypilot 2496, 3615; read 2026-11-23)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

from cost.prices.files import EVERYWHERE, MOST_USD_PER_HOUR, Quote, Row
from cost.prices.markets import SKYPILOT_CLOUDS
from cost.refresh.fetch import RefreshError

URL = "https://github.com/skypilot-org/skypilot-catalog"
NO_GPUS = ("tpu", "trainium", "inferentia", "gaudi", "mi1", "mi2", "mi3", "radeon")
"""How accelerators begin that the pinned torch does not run on."""
ONE_PRICE = ("lambda", "runpod")
"""Providers that charge the same everywhere; a row a region would only say so many times."""

COLUMNS = (
    "cloud", "instance_type", "accelerator_name", "accelerator_count", "cpu_count", "device_memory", "memory",
    "price", "spot_price", "region",
)  # fmt: skip
"""The fields of sky.catalog.common.InstanceTypeInfo, which is what a row of the answer holds."""


def parse_catalogue(rows: Iterable[Mapping[str, Any]], today: date) -> list[Row]:
    """The rows of the clouds whose prices are used. Raises RefreshError when there is none."""
    found: dict[tuple[str, str, str], Row] = {}
    for raw in rows:
        row = _row(raw, today)
        if row is not None:
            found[row.key] = row
    if not found:
        raise RefreshError("SkyPilot's catalogue holds no price of a machine with GPUs")
    return list(_once(found.values()))


def _row(raw: Mapping[str, Any], today: date) -> Row | None:
    provider = str(raw["cloud"]).casefold()
    gpu, count = str(raw["accelerator_name"]), raw["accelerator_count"]
    on_demand, spot = _quote(raw["price"], today), _quote(raw["spot_price"], today)
    if provider == "runpod" and on_demand and spot and spot.hourly == on_demand.hourly:
        spot = None
    if (
        provider not in SKYPILOT_CLOUDS
        or not raw["instance_type"]
        or gpu.casefold().startswith(NO_GPUS)
        or not isinstance(count, int | float)
        or count < 1
        or count != int(count)
        or (on_demand is None and spot is None)
    ):
        return None
    return Row(
        provider=provider,
        instance_type=str(raw["instance_type"]),
        region=str(raw["region"]),
        gpu=gpu,
        gpus=int(count),
        gpu_memory_gib=_gib(raw["device_memory"]),
        vcpus=int(raw["cpu_count"]) if raw["cpu_count"] and raw["cpu_count"] >= 1 else None,
        memory_gib=raw["memory"] or None,
        on_demand=on_demand,
        spot=spot,
    )


def _quote(value: float | None, today: date) -> Quote | None:
    if not isinstance(value, int | float) or not 0 < value <= MOST_USD_PER_HOUR:
        return None
    return Quote(hourly=Decimal(str(value)), as_of=today, url=URL, origin="refreshed")


def _gib(value: float | None) -> float | None:
    if not value:
        return None
    return value * 1024 if value < 1 else value  # 80 "MiB" are 80 GB


def _once(rows: Iterable[Row]) -> Iterator[Row]:
    """One row for everywhere where a provider charges the same everywhere."""
    alike: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        alike[row.provider, row.instance_type].append(row)
    for (provider, _), group in alike.items():
        same = _same(group)
        yield from [replace(group[0], region=EVERYWHERE)] if provider in ONE_PRICE and same else group


def _same(group: Sequence[Row]) -> bool:
    return len({(row.on_demand and row.on_demand.hourly, row.spot and row.spot.hourly) for row in group}) == 1
