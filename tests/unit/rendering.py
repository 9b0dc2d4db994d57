"""What the tests of a backend's requests share: a job, its bundle, the request and its explanation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.base import Backend, Bundle, BundleFile, Plan, Site
from cost.estimate import estimate
from launcher.spec import JobSpec

SHA = "ab" * 32
DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = f"registry.example.com/team/train@{DIGEST}"
TOKEN, LINEAGE = "triage-2", "triage-1"


def job(**changes: Any) -> JobSpec:
    """A job for one A100, with `changes` to it; those of resources are laid over."""
    resources = {"gpu": "A100", **changes.pop("resources", {})}
    return JobSpec.model_validate(
        {
            "name": "triage", "model": "org/model", "task": "classification", "data": {"train": "train.jsonl"},
            "resources": resources, **changes,
        }
    )  # fmt: skip


def bundle(*paths: str) -> Bundle:
    """job.json and `paths`, 1 MiB each."""
    files = (BundleFile(path=path, size=2**20, sha256=SHA, source=Path(path)) for path in ("job.json", *paths))
    return Bundle(sha256=SHA, files=tuple(files))


def rendered(
    backend: Backend,
    spec: JobSpec,
    facts: Mapping[str, str],
    taken: Bundle | None = None,
    owner: str | None = None,
) -> Any:
    """The request for the backend's first offer."""
    offer = next(iter(backend.offers(spec.resources)))
    site = Site(backend=backend.name, facts=facts, owner=owner)
    return backend.render(spec, offer, taken or bundle(), site, TOKEN, LINEAGE)


def plan_of(backend: Backend, spec: JobSpec, facts: Mapping[str, str]) -> Plan:
    """The plan on the backend's first offer."""
    offer = next(iter(backend.offers(spec.resources)))
    return Plan(
        job=spec, offer=offer, bundle=bundle(), site=Site(backend=backend.name, facts=facts), token=TOKEN,
        lineage=LINEAGE, request=rendered(backend, spec, facts), estimate=estimate(offer, 24.0),
    )  # fmt: skip


def explained(backend: Backend, spec: JobSpec, facts: Mapping[str, str]) -> dict[str, str]:
    """What the backend tells a person of that request."""
    return dict(backend.explain(plan_of(backend, spec, facts)))
