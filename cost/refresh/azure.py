"""Azure's Retail Prices API (no credentials): virtual machines with GPUs, on demand and spot.

`Items` a page, NextPageLink to the next one, null or empty on the last. Linux on demand is the item whose product
is not Windows and whose meter is neither Spot nor Low Priority.
https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices (2026-11-23)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from cost.prices.files import MOST_USD_PER_HOUR, Quote, Row
from cost.refresh.fetch import Fetch, RefreshError
from cost.refresh.machines import azure_machine

URL = "https://prices.azure.com"
PATH = "/api/retail/prices"
VERSION = "2023-01-01-preview"
MOST_PAGES = 500
FILTER = (
    "serviceName eq 'Virtual Machines'",
    "priceType eq 'Consumption'",
    "contains(armSkuName, 'Standard_N')",
    "contains(productName, 'Windows') eq false",
)
"""Values are case-sensitive in this version; every size with a GPU begins with N."""
NOT_PLAIN = (" Windows", " Win", "CloudServices", "Cloud Services", "Dedicated")

Prices = dict[tuple[str, str, bool], Decimal]
"""(size, region, spot) -> US dollars an hour."""


def read_azure(fetch: Fetch, regions: Sequence[str], today: date, base_url: str = URL) -> list[Row]:
    """What each machine with GPUs costs in `regions` (none: in all). Raises RefreshError."""
    found: Prices = {}
    for region in regions or (None,):
        for items in _pages(fetch, region, base_url):
            for key, price in parse_items(items, today):
                found[key] = max(price, found.get(key, price))
    return list(_rows(found, today, f"{base_url}{PATH}"))


def parse_items(items: Iterable[Any], today: date) -> Iterator[tuple[tuple[str, str, bool], Decimal]]:
    """((size, region, spot), US dollars an hour) of the items that are a plain Linux machine with GPUs."""
    for item in items:
        if not isinstance(item, Mapping) or not _plain(item, today):
            continue
        size, region, price = item.get("armSkuName"), item.get("armRegionName"), item.get("retailPrice")
        if not isinstance(size, str) or not isinstance(region, str) or azure_machine(size) is None:
            continue
        if not isinstance(price, Decimal | int) or not 0 < price <= MOST_USD_PER_HOUR:
            continue  # some sizes are listed at zero before they are sold
        meter = f"{item.get('meterName', '')} {item.get('skuName', '')}"
        if "Low Priority" not in meter:
            yield (size, region.casefold(), "Spot" in meter), Decimal(price)


def _plain(item: Mapping[str, Any], today: date) -> bool:
    product = str(item.get("productName", ""))
    return (
        item.get("currencyCode") == "USD"
        and item.get("type") == "Consumption"
        and item.get("unitOfMeasure") == "1 Hour"
        and item.get("isPrimaryMeterRegion", True) is not False
        and not item.get("tierMinimumUnits")
        and str(item.get("effectiveStartDate", ""))[:10] <= today.isoformat()
        and not any(word in product for word in NOT_PLAIN)
    )


def _pages(fetch: Fetch, region: str | None, base_url: str) -> Iterator[Sequence[Any]]:
    parts = FILTER if region is None else (*FILTER, f"armRegionName eq '{region}'")
    url: str = f"{base_url}{PATH}"
    params: dict[str, str] | None = {"api-version": VERSION, "currencyCode": "USD", "$filter": " and ".join(parts)}
    for _ in range(MOST_PAGES):
        page = fetch.json(url, params)
        items = page.get("Items") if isinstance(page, Mapping) else None
        if not isinstance(items, list):
            raise RefreshError(f"{url.split('?')[0]} sent a page without Items")
        yield items
        following = page.get("NextPageLink")
        if not following:
            return
        if not isinstance(following, str) or _host(following) != _host(base_url):
            raise RefreshError(f"{base_url}{PATH} names a next page elsewhere: {str(following).split('?')[0]}")
        url, params = following, None
    raise RefreshError(f"{base_url}{PATH} has more than {MOST_PAGES} pages")


def _host(url: str) -> tuple[str, str | None, int | None]:
    """Azure writes its links with :443."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _rows(found: Prices, today: date, url: str) -> Iterator[Row]:
    quotes: dict[tuple[str, str], dict[bool, Quote]] = defaultdict(dict)
    for (size, region, spot), price in found.items():
        quotes[size, region][spot] = Quote(hourly=price, as_of=today, url=url, origin="refreshed")
    for (size, region), of in quotes.items():
        shape = azure_machine(size)
        assert shape is not None
        yield Row(
            provider="azure",
            instance_type=size,
            region=region,
            gpu=shape.gpu,
            gpus=shape.gpus,
            gpu_memory_gib=shape.gpu_memory_gib,
            vcpus=shape.vcpus,
            on_demand=of.get(False),
            spot=of.get(True),
        )
