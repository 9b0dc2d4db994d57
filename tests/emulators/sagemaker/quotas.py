"""Service Quotas of SageMaker's training instances, which moto does not know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from moto.core.exceptions import JsonRESTError
from moto.servicequotas.responses import ServiceQuotasResponse

from tests.emulators.sagemaker.rules import model
from tests.emulators.sagemaker.world import World, quota_name

MOST_A_PAGE = 100


def methods(world: World) -> dict[str, Callable[[Any], Any]]:
    """The operations for ServiceCode sagemaker; every other service stays moto's."""
    moto_one, moto_defaults = (
        ServiceQuotasResponse.get_service_quota, ServiceQuotasResponse.list_aws_default_service_quotas
    )  # fmt: skip

    def all_of(region: str, applied: bool) -> list[dict[str, Any]]:
        values = world.settings.quotas if applied else {}
        return [_quota(name, values.get(name, world.settings.default_quota), region) for name in _names()]

    def list_service_quotas(self: Any) -> str:
        asked = json.loads(self.body)
        if asked["ServiceCode"] != "sagemaker":
            raise _missing()
        return _page(all_of(self.region, applied=True), asked)

    def list_aws_default_service_quotas(self: Any) -> Any:
        asked = json.loads(self.body)
        if asked["ServiceCode"] != "sagemaker":
            return moto_defaults(self)
        return _page(all_of(self.region, applied=False), asked)

    def get_service_quota(self: Any) -> Any:
        asked = json.loads(self.body)
        if asked["ServiceCode"] != "sagemaker":
            return moto_one(self)
        for quota in all_of(self.region, applied=True):
            if quota["QuotaCode"] == asked["QuotaCode"]:
                return json.dumps({"Quota": quota})
        raise _missing()

    return {
        method.__name__: method
        for method in (list_service_quotas, list_aws_default_service_quotas, get_service_quota)
    }


def _names() -> list[str]:
    types = model().shape_for("TrainingInstanceType").enum
    return [quota_name(kind, spot) for kind in types for spot in (False, True)]


def _quota(name: str, value: float, region: str) -> dict[str, Any]:
    # The real codes are not public in one place; these are as long, and stay the same.
    code = f"L-{hashlib.sha256(name.encode()).hexdigest()[:8].upper()}"
    return {
        "ServiceCode": "sagemaker", "ServiceName": "Amazon SageMaker", "QuotaName": name, "QuotaCode": code,
        "QuotaArn": f"arn:aws:servicequotas:{region}:123456789012:sagemaker/{code}", "Value": value,
        "Unit": "None", "Adjustable": True, "GlobalQuota": False,
    }  # fmt: skip


def _page(items: list[dict[str, Any]], asked: Mapping[str, Any]) -> str:
    start, size = int(asked.get("NextToken") or 0), min(int(asked.get("MaxResults") or MOST_A_PAGE), MOST_A_PAGE)
    rest = {"NextToken": str(start + size)} if start + size < len(items) else {}
    return json.dumps({"Quotas": items[start : start + size], **rest})


def _missing() -> JsonRESTError:
    return JsonRESTError(
        "NoSuchResourceException", "The request failed because the specified resource does not exist."
    )
