"""Jobs for the tests of the Azure ML backend, and their requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.azureml import AzureMLBackend
from backends.base import Bundle, BundleFile, Site
from launcher.spec import JobSpec

SHA = "ab" * 32
IMAGE = f"registry.example.com/team/train@sha256:{'0123456789abcdef' * 4}"
CLIENT = "11111111-1111-1111-1111-111111111111"
FACTS = {
    "subscription": "00000000-0000-0000-0000-000000000001", "resource_group": "rg", "workspace": "team",
    "region": "eastus", "key_vault": "team-vault",
}  # fmt: skip
CLUSTERS = {**FACTS, "compute": "gpus", "spot_compute": "cheap-gpus"}
WORKSPACE = (
    "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/rg/providers"
    "/Microsoft.MachineLearningServices/workspaces/team"
)
STORE = "azureml://datastores/workspaceblobstore/paths/finelaunch"


def job(**changes: Any) -> JobSpec:
    resources = {"gpu": "A100", **changes.pop("resources", {})}
    return JobSpec.model_validate(
        {
            "name": "triage", "model": "org/model", "task": "classification", "data": {"train": "train.jsonl"},
            "resources": resources, **changes,
        }
    )  # fmt: skip


def bundle(*paths: str) -> Bundle:
    files = (BundleFile(path=path, size=2**20, sha256=SHA, source=Path(path)) for path in ("job.json", *paths))
    return Bundle(sha256=SHA, files=tuple(files))


def rendered(
    backend: AzureMLBackend, spec: JobSpec, facts: Mapping[str, str] = FACTS, taken: Bundle | None = None
) -> Any:
    offer = next(iter(backend.offers(spec.resources)))
    site = Site(backend="azureml", facts=facts)
    return backend.render(spec, offer, taken or bundle(), site, "triage-2", "triage-1")


def properties(backend: AzureMLBackend, spec: JobSpec, facts: Mapping[str, str] = FACTS) -> Any:
    return rendered(backend, spec, facts)["job"]["properties"]


def options(**changed: Any) -> dict[str, Any]:
    return {"azureml": {"job": {"properties": changed}}}
