"""A server on this machine that plays the vendors' price lists, and the documents that it sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cost.prices.files import Row, latest_day
from cost.refresh import Settings, read_source

TODAY = latest_day()
SAGEMAKER_PATH = "/offers/v1.0/aws/AmazonSageMaker/current/us-east-1/index.json"
EC2_PATH = "/offers/v1.0/aws/AmazonEC2/current/us-east-1/index.json"
AZURE_PATH = "/api/retail/prices"
GOOGLE_PATH = "/v1/services/6F81-5844-456A/skus"
Read = Callable[..., dict[tuple[str, str], Row]]
"""Reads a source from the server: (source, regions..., key=) -> (instance type, region) -> row."""


@dataclass
class Answer:
    """One HTTP answer; `cut`: so many bytes of the body are missing though their number was announced."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int = 0

    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Asked:
    """One request that the server saw."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


class _Quiet(ThreadingHTTPServer):
    """Says nothing of readers that leave before the end: they may."""

    def handle_error(self, *_: Any) -> None:
        pass


class Vendor:
    """A server that answers each path from a list, the last answer again and again."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer | Callable[[Asked], Answer]]] = {}
        self.asked: list[Asked] = []
        vendor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                asked = Asked(parts.path, query, {k.lower(): v for k, v in self.headers.items()})
                vendor.asked.append(asked)
                waiting = vendor.answers.get(parts.path, [Answer(status=404)])
                chosen = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                answer = chosen(asked) if callable(chosen) else chosen
                content = answer.content()
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - answer.cut])
                if answer.cut:
                    self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def plays(self, path: str, *answers: Answer | Callable[[Asked], Answer]) -> None:
        self.answers[path] = list(answers)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def sagemaker_product(sku: str, kind: str, component: str = "Training", mark: str = "Train") -> dict[str, Any]:
    return {
        "sku": sku,
        "productFamily": "ML Instance",
        "attributes": {
            "servicecode": "AmazonSageMaker", "location": "US East (N. Virginia)", "locationType": "AWS Region",
            "instanceType": f"{kind}-{component}", "instanceName": kind, "usagetype": f"USE1-{mark}:{kind}",
            "operation": "RunInstance", "component": component, "platoinstancetype": component, "vCpu": "8",
            "gpu": "1", "memory": "32 GiB", "regionCode": "us-east-1", "servicename": "Amazon SageMaker",
        },
    }  # fmt: skip


def ec2_product(sku: str, kind: str, **changes: str) -> dict[str, Any]:
    return {
        "sku": sku,
        "productFamily": "Compute Instance",
        "attributes": {
            "servicecode": "AmazonEC2", "location": "US East (N. Virginia)", "locationType": "AWS Region",
            "instanceType": kind, "currentGeneration": "Yes", "vcpu": "4", "memory": "16 GiB", "gpu": "1",
            "tenancy": "Shared", "operatingSystem": "Linux", "licenseModel": "No License required",
            "usagetype": f"BoxUsage:{kind}", "operation": "RunInstances", "capacitystatus": "Used",
            "preInstalledSw": "NA", "marketoption": "OnDemand", "regionCode": "us-east-1", **changes,
        },
    }  # fmt: skip


def term(sku: str, usd: str, unit: str = "Hrs") -> dict[str, Any]:
    return {
        f"{sku}.JRTCKXETXF": {
            "offerTermCode": "JRTCKXETXF", "sku": sku, "effectiveDate": "2026-09-01T00:00:00Z",
            "priceDimensions": {
                f"{sku}.JRTCKXETXF.6YS6EN2CT7": {
                    "rateCode": f"{sku}.JRTCKXETXF.6YS6EN2CT7", "description": f"${usd} per hour",
                    "beginRange": "0", "endRange": "Inf", "unit": unit, "pricePerUnit": {"USD": usd},
                    "appliesTo": [],
                }
            },
            "termAttributes": {},
        }
    }  # fmt: skip


def price_list(products: Sequence[Mapping[str, Any]], prices: Mapping[str, str]) -> dict[str, Any]:
    """A regional index.json: products, then terms, on demand before reserved."""
    return {
        "formatVersion": "v1.0",
        "disclaimer": "This pricing list is for informational purposes only.",
        "offerCode": "AmazonEC2",
        "version": "20260925000313",
        "publicationDate": "2026-09-25T00:03:13Z",
        "products": {one["sku"]: one for one in products},
        "terms": {
            "OnDemand": {sku: term(sku, usd) for sku, usd in prices.items()},
            "Reserved": {sku: term(sku, "0.1") for sku in prices},
        },
        "attributesList": {},
    }


SAGEMAKER = price_list(
    [
        sagemaker_product("A1", "ml.g5.2xlarge"),
        sagemaker_product("A2", "ml.g5.2xlarge", "Hosting", "Host"),
        sagemaker_product("A3", "ml.g5.2xlarge", "SpotTraining", "SpotTrain"),
        sagemaker_product("A4", "ml.m5.large"),
        sagemaker_product("A5", "ml.p5.48xlarge"),
        {"sku": "A6", "productFamily": "ML Storage", "attributes": {"usagetype": "USE1-Train:VolumeUsage.gp2"}},
    ],
    {"A1": "1.5150000000", "A2": "9", "A3": "8", "A4": "0.115", "A5": "63.2960000000", "A6": "0.14"},
)
EC2 = price_list(
    [
        ec2_product("B1", "g5.xlarge"),
        ec2_product("B2", "g5.xlarge", operatingSystem="Windows"),
        ec2_product("B3", "g5.xlarge", tenancy="Dedicated"),
        ec2_product("B4", "g5.xlarge", capacitystatus="UnusedCapacityReservation"),
        ec2_product("B5", "g5.xlarge", preInstalledSw="SQL Web"),
        ec2_product("B6", "g5.xlarge", marketoption="CapacityBlock"),
        ec2_product("B7", "g5.xlarge", locationType="AWS Local Zone"),
        ec2_product("B8", "m5.large"),
        ec2_product("B9", "p4d.24xlarge"),
        ec2_product("C1", "g6.12xlarge"),
    ],
    {f"B{n}": str(n) for n in range(2, 9)} | {"B1": "1.0060000000", "B9": "21.9576420000", "C1": "0.0000000000"},
)


def azure_item(size: str, price: float, **changes: Any) -> dict[str, Any]:
    return {
        "currencyCode": "USD", "tierMinimumUnits": 0.0, "retailPrice": price, "unitPrice": price,
        "armRegionName": "eastus", "location": "US East", "effectiveStartDate": "2026-06-01T00:00:00Z",
        "meterId": "000a794b-bdb0-58be-a0cd-0c3a0f222923", "meterName": size.removeprefix("Standard_"),
        "productId": "DZH318Z0BQPS", "skuId": "DZH318Z0BQPS/00TG",
        "productName": "Virtual Machines NCads A100 v4 Series", "skuName": size.removeprefix("Standard_"),
        "serviceName": "Virtual Machines", "serviceId": "DZH313Z7MMC8", "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour", "type": "Consumption", "isPrimaryMeterRegion": True, "armSkuName": size,
        **changes,
    }  # fmt: skip


def azure_page(items: Sequence[Any], following: str | None) -> Answer:
    return Answer(
        {
            "BillingCurrency": "USD", "CustomerEntityId": "Default", "CustomerEntityType": "Retail",
            "Items": list(items), "NextPageLink": following, "Count": len(items),
        }
    )  # fmt: skip


A100 = "Standard_NC24ads_A100_v4"


def sku(description: str, usd: str, unit: str = "h", **changes: Any) -> dict[str, Any]:
    whole, _, part = usd.partition(".")
    spot = "Spot Preemptible" in description
    return {
        "skuId": "88B8-C3ED-03F0", "name": "services/6F81-5844-456A/skus/88B8-C3ED-03F0",
        "description": description,
        "category": {
            "serviceDisplayName": "Compute Engine", "resourceFamily": "Compute", "resourceGroup": "GPU",
            "usageType": changes.pop("usageType", "Preemptible" if spot else "OnDemand"),
        },
        "serviceRegions": changes.pop("regions", ["us-central1"]),
        "pricingInfo": [
            {
                "summary": "",
                "pricingExpression": {
                    "usageUnit": unit, "usageUnitDescription": "hour", "baseUnit": "s", "displayQuantity": 1,
                    "tieredRates": [
                        {"startUsageAmount": 0,
                         "unitPrice": {"currencyCode": "USD", "units": whole, "nanos": int(f"{part:0<9}"[:9])}}
                    ] * changes.pop("tiers", 1),
                },
                "currencyConversionRate": 1,
                "effectiveTime": changes.pop("effectiveTime", "2026-11-01T00:00:00Z"),
            }
        ],
        "serviceProviderName": "Google",
        **changes,
    }  # fmt: skip


def skus_page(skus: Sequence[Any], token: str = "") -> Answer:
    return Answer({"skus": list(skus), "nextPageToken": token})


def reader(url: str, pauses: list[float]) -> Read:
    """A Read of what a server at `url` plays; its pauses are noted, not waited."""

    def read(source: str, *regions: str, key: str | None = None) -> dict[tuple[str, str], Row]:
        settings = Settings(today=TODAY, regions=regions, base_url=url, google_key=key, pause=pauses.append)
        return {(row.instance_type, row.region): row for row in read_source(source, settings).rows}

    return read


def dollars(row: Row) -> tuple[str | None, str | None]:
    return (
        f"{row.on_demand.hourly:f}" if row.on_demand else None,
        f"{row.spot.hourly:f}" if row.spot else None,
    )
