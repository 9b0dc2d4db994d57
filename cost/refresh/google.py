"""Google's Cloud Billing Catalog (an API key): Compute Engine's machines with GPUs, put together from their parts.

The catalogue sells vCPUs, memory, GPUs and local SSDs apart, a SKU each, and names them in prose: "A2 Instance
Core running in Americas", "Nvidia L4 GPU running in Americas", "Spot Preemptible A2 Instance Ram running in ...",
"Nvidia L4 GPU attached to Spot Preemptible VMs running in ...". A machine is priced when every part of it is.
`skus` a page, nextPageToken to the next one. https://cloud.google.com/billing/v1/how-tos/catalog-api (2026-11-23)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from cost.prices.files import Quote, Row
from cost.refresh.fetch import Fetch, RefreshError
from cost.refresh.machines import GOOGLE, Shape

URL = "https://cloudbilling.googleapis.com"
PATH = "/v1/services/6F81-5844-456A/skus"
"""Compute Engine. Vertex AI's own SKUs say the same prices with its fee in them."""
KEY_HEADER = "x-goog-api-key"
MOST_PAGES = 100
HOURS_A_MONTH = 730

FAMILIES = {
    "N1 Predefined Instance": "n1-standard", "G2 Instance": "g2-standard", "G4 Instance": "g4-standard",
    "A2 Instance": "a2-", "A3 Instance": "a3-highgpu", "A3Plus Instance": "a3-megagpu",
}  # fmt: skip
"""How a SKU of vCPUs or memory begins -> the machine types that are made of it."""
GPUS = {
    "Nvidia Tesla T4 GPU": "T4", "Nvidia L4 GPU": "L4", "Nvidia Tesla A100 GPU": "A100",
    "Nvidia Tesla A100 80GB GPU": "A100-80GB", "Nvidia H100 80GB GPU": "H100",
    "Nvidia H100 80GB Mega GPU": "H100-MEGA", "Nvidia H100 Mega 80GB GPU": "H100-MEGA",
    "Nvidia H100 80GB Plus GPU": "H100-MEGA", "RTX 6000 96GB": "RTXPRO6000",
}  # fmt: skip
"""How a SKU of GPUs begins -> the GPU (the names that SkyPilot 0.14.1's fetch_gcp.py looks for)."""
SSD = "SSD backed Local Storage"
UNITS = {"core": "h", "ram": "GiBy.h", "gpu": "h", "ssd": "GiBy.mo"}
_SPOT = re.compile(r"^Spot Preemptible | attached to Spot Preemptible VMs", re.IGNORECASE)
_PLACE = re.compile(r" (?:running )?in .+$")
_NAMES = {
    **{f"{name} {word}".casefold(): (family, part) for name, family in FAMILIES.items()
       for word, part in (("Core", "core"), ("Ram", "ram"))},
    **{name.casefold(): (gpu, "gpu") for name, gpu in GPUS.items()},
    SSD.casefold(): ("", "ssd"),
}  # fmt: skip
"""A SKU's description without its place -> what it prices. The whole of it must be here: commitments, sole
tenancy, custom machines, workstations and reservations have other descriptions."""

Part = tuple[str, str]
"""(family or GPU, core | ram | gpu | ssd)"""


@dataclass(frozen=True)
class Rates:
    """(part, region, spot) -> US dollars for its unit: a vCPU-hour, GiB-hour, GPU-hour, GiB-month."""

    of: Mapping[tuple[Part, str, bool], Decimal]

    def machine(self, name: str, shape: Shape, region: str, spot: bool) -> Decimal | None:
        """US dollars an hour for a machine; None when a part of it has no price."""
        family = next((family for family in FAMILIES.values() if name.startswith(family)), "")
        needed: list[tuple[Part, Decimal]] = [
            ((family, "core"), Decimal(shape.vcpus or 0)),
            ((family, "ram"), Decimal(str(shape.memory_gib or 0))),
            ((shape.gpu, "gpu"), Decimal(shape.gpus)),
        ]
        if shape.ssd_gib:
            needed.append((("", "ssd"), Decimal(shape.ssd_gib) / HOURS_A_MONTH))
        total = Decimal(0)
        for part, amount in needed:
            rate = self.of.get((part, region, spot))
            if rate is None:
                return None
            total += rate * amount
        return total


def read_google(fetch: Fetch, api_key: str, today: date, base_url: str = URL) -> list[Row]:
    """What each machine with GPUs costs in every region. Raises RefreshError."""
    found: dict[tuple[Part, str, bool], Decimal] = {}
    for skus in _pages(fetch, api_key, base_url):
        for key, rate in parse_skus(skus, today):
            found[key] = max(rate, found.get(key, rate))
    return list(_rows(Rates(found), today, f"{base_url}{PATH}"))


def parse_skus(skus: Iterable[Any], today: date) -> Iterator[tuple[tuple[Part, str, bool], Decimal]]:
    """((part, region, spot), US dollars for its unit) of the SKUs that machines with GPUs are made of."""
    for sku in skus:
        if not isinstance(sku, Mapping):
            continue
        description = str(sku.get("description", ""))
        spot = bool(_SPOT.search(description))
        part = _NAMES.get(_PLACE.sub("", _SPOT.sub("", description)).casefold())
        usage = sku.get("category", {}).get("usageType")
        # Some spot SKUs are wrongly marked OnDemand; none the other way round.
        if part is None or usage not in ("OnDemand", "Preemptible") or (usage == "Preemptible" and not spot):
            continue
        rate = _rate(sku, UNITS[part[1]], today)
        if rate is not None:
            for region in sku.get("serviceRegions", ()):
                yield (part, str(region), spot), rate


def _rate(sku: Mapping[str, Any], unit: str, today: date) -> Decimal | None:
    """The one rate that is in force, in US dollars for `unit`; None for tiers, other units and currencies."""
    in_force = [
        info for info in sku.get("pricingInfo", ()) if str(info.get("effectiveTime", ""))[:10] <= today.isoformat()
    ]
    if not in_force:
        return None
    expression = max(in_force, key=lambda info: str(info.get("effectiveTime", ""))).get("pricingExpression", {})
    tiers = expression.get("tieredRates", ())
    if expression.get("usageUnit") != unit or len(tiers) != 1 or tiers[0].get("startUsageAmount", 0):
        return None
    money = tiers[0].get("unitPrice", {})
    if money.get("currencyCode") != "USD":
        return None
    rate = Decimal(str(money.get("units", 0) or 0)) + Decimal(money.get("nanos", 0) or 0) / 10**9
    return rate if rate > 0 else None


def _pages(fetch: Fetch, api_key: str, base_url: str) -> Iterator[list[Any]]:
    url, token = f"{base_url}{PATH}", ""
    for _ in range(MOST_PAGES):
        params = {"currencyCode": "USD", "pageSize": "5000", **({"pageToken": token} if token else {})}
        page = fetch.json(url, params, {KEY_HEADER: api_key})  # not in the address, which errors show
        skus = page.get("skus", []) if isinstance(page, Mapping) else None
        if not isinstance(skus, list):
            raise RefreshError(f"{url} sent a page without skus")
        yield skus
        token = str(page.get("nextPageToken") or "")
        if not token:
            return
    raise RefreshError(f"{url} has more than {MOST_PAGES} pages")


def _rows(rates: Rates, today: date, url: str) -> Iterator[Row]:
    for region in sorted({region for _, region, _ in rates.of}):
        for name, shape in GOOGLE.items():
            quotes = {
                spot: Quote(hourly=round(hourly, 6).normalize(), as_of=today, url=url, origin="refreshed")
                for spot in (False, True)
                if (hourly := rates.machine(name, shape, region, spot)) is not None
            }
            if quotes:
                yield Row(
                    provider="gcp",
                    instance_type=name,
                    region=region,
                    gpu=shape.gpu,
                    gpus=shape.gpus,
                    gpu_memory_gib=shape.gpu_memory_gib,
                    vcpus=shape.vcpus,
                    memory_gib=shape.memory_gib,
                    on_demand=quotes.get(False),
                    spot=quotes.get(True),
                )
