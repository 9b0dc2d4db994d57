"""AWS's public price lists (Price List Bulk API, no credentials): SageMaker training and EC2.

One JSON file a service and region: `products` (SKU -> attributes), then `terms` ("OnDemand", then "Reserved", SKU
-> term -> priceDimensions). EC2's is hundreds of megabytes, so it is read as it comes, and not to its end.
https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/reading-service-price-list-file-for-services.html
(2026-11-23). Attribute names of SageMaker: `component: Training`, usage type `USE1-Train:ml.g5.2xlarge`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from cost.prices.files import MOST_USD_PER_HOUR, Quote, Row
from cost.refresh.fetch import Fetch, RefreshError
from cost.refresh.jsonwalk import JsonWalk
from cost.refresh.machines import Shape, aws_machine

URL = "https://pricing.us-east-1.amazonaws.com"
PATH = "/offers/v1.0/aws/{service}/current/{region}/index.json"
TRAINING = re.compile(r"(?:^|-)Train:(ml\..+)")
"""The end of a usage type, behind the region's mark; SpotTrain: is another one."""
EC2_PLAIN = {
    "operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used",
    "licenseModel": "No License required",
}  # fmt: skip
"""What a product of EC2's says of itself when it is the machine and nothing more."""

Kind = Callable[[Mapping[str, Any]], str | None]
"""Product attributes -> instance type, None for what is not ours."""


def read_sagemaker(fetch: Fetch, region: str, today: date, base_url: str = URL) -> list[Row]:
    """What training costs on each machine with GPUs in one region. Raises RefreshError."""
    return _read(fetch, "AmazonSageMaker", "sagemaker", training_type, region, today, base_url)


def read_ec2(fetch: Fetch, region: str, today: date, base_url: str = URL) -> list[Row]:
    """What each machine with GPUs costs on demand in one region. Raises RefreshError."""
    return _read(fetch, "AmazonEC2", "aws", ec2_type, region, today, base_url)


def training_type(attributes: Mapping[str, Any]) -> str | None:
    """`ml.g5.2xlarge` of a SageMaker product that is training on demand."""
    found = TRAINING.search(str(attributes.get("usagetype", "")))
    if found is None or attributes.get("component", "Training") != "Training":
        return None
    return found[1]


def ec2_type(attributes: Mapping[str, Any]) -> str | None:
    """`g5.2xlarge` of an EC2 product that is a plain Linux machine in a region proper."""
    if any(attributes.get(name) != value for name, value in EC2_PLAIN.items()):
        return None
    if attributes.get("locationType", "AWS Region") != "AWS Region":
        return None
    if attributes.get("marketoption", "OnDemand") != "OnDemand":
        return None
    return str(attributes.get("instanceType") or "") or None


def parse_price_list(chunks: Iterable[bytes], kind: Kind) -> dict[str, Decimal]:
    """Instance type -> US dollars an hour on demand. Raises RefreshError, Truncated.

    Where one type has several prices the highest counts: an estimate is to be a ceiling.
    """
    walk = JsonWalk(chunks)
    types: dict[str, str] = {}
    for name in walk.members():
        if name == "products":
            types = dict(_products(walk, kind))
        elif name == "terms":
            return _on_demand(walk, types)
        else:
            walk.value()
    raise RefreshError("sent a price list without terms")


def _products(walk: JsonWalk, kind: Kind) -> Iterator[tuple[str, str]]:
    for sku in walk.members():
        product = walk.value()
        attributes = product.get("attributes") if isinstance(product, dict) else None
        if isinstance(attributes, dict) and (found := kind(attributes)) and _shape(found):
            yield sku, found


def _on_demand(walk: JsonWalk, types: Mapping[str, str]) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for term in walk.members():
        if term != "OnDemand":
            walk.value()
            continue
        for sku in walk.members():
            offers = walk.value()
            if sku in types and (hourly := max(_hourly(offers), default=None)):
                found[types[sku]] = max(hourly, found.get(types[sku], hourly))
        return found  # what follows is reserved capacity, the largest part of the file
    raise RefreshError("sent a price list without on-demand terms")


def _hourly(offers: Any) -> Iterator[Decimal]:
    """The prices of one product that are US dollars an hour from the first hour on."""
    for offer in offers.values() if isinstance(offers, dict) else ():
        for dimension in offer.get("priceDimensions", {}).values():
            if dimension.get("unit") != "Hrs" or dimension.get("beginRange", "0") != "0":
                continue
            try:
                price = Decimal(dimension.get("pricePerUnit", {}).get("USD", ""))
            except InvalidOperation:
                continue
            if 0 < price <= MOST_USD_PER_HOUR:  # zero is what a reservation bills by the hour
                yield price


def _read(
    fetch: Fetch, service: str, provider: str, kind: Kind, region: str, today: date, base_url: str
) -> list[Row]:
    url = base_url + PATH.format(service=service, region=region)
    prices = fetch.stream(url, lambda chunks: parse_price_list(chunks, kind))
    return [_row(provider, instance_type, region, price, today, url) for instance_type, price in prices.items()]


def _row(provider: str, instance_type: str, region: str, hourly: Decimal, today: date, url: str) -> Row:
    shape = _shape(instance_type)
    assert shape is not None
    return Row(
        provider=provider,
        instance_type=instance_type,
        region=region,
        gpu=shape.gpu,
        gpus=shape.gpus,
        gpu_memory_gib=shape.gpu_memory_gib,
        on_demand=Quote(hourly=hourly.normalize(), as_of=today, url=url, origin="refreshed"),
    )


def _shape(instance_type: str) -> Shape | None:
    return aws_machine(instance_type.removeprefix("ml."))
