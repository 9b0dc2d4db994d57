"""A Vertex request in words, for a person."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from backends.base import PLACEHOLDER, Plan
from backends.container import DIGEST, max_hours, remote_uris
from backends.vertex.places import DEFAULT_DISK_GIB, MOUNTS, home


def explain(plan: Plan) -> Sequence[tuple[str, str]]:
    """(what, value) in order: image, place, time limits, uploads, assumptions."""
    body = plan.request["customJob"]
    spec = body["jobSpec"]
    pool = spec["workerPoolSpecs"][0]
    machine, schedule = pool["machineSpec"], spec.get("scheduling", {})
    count = f"{plan.bundle.size / 2**20:.1f} MiB in {len(plan.bundle.files)} files"
    place = home(plan.site, "gs:/")
    rows = [
        ("image", _image_in_words(pool["containerSpec"]["imageUri"])),
        ("hardware", _hardware_in_words(machine, plan)),
        ("disk", f"{pool.get('diskSpec', {}).get('bootDiskSizeGb', DEFAULT_DISK_GIB)} GB a machine"),
        ("project, region", plan.request["parent"]),
        ("runs as", spec.get("serviceAccount", "Vertex's Custom Code Service Agent")),
        ("network", _network_in_words(spec)),
        ("uploaded to", f"{place}/bundles/{plan.bundle.sha256}/ ({count})"),
        ("output", f"{place}/jobs/{plan.token}/output/"),
        ("checkpoints", f"{place}/jobs/{plan.lineage}/checkpoints/"),
        (
            "stops after",
            f"{max_hours(plan.job):g} h by itself; Vertex ends it after {_hours(schedule.get('timeout'))}",
        ),
        ("strategy", _strategy_in_words(schedule)),
    ]
    if plan.job.secrets:
        names = ", ".join(plan.job.secrets)
        rows.append(("secrets", f"{names}: newest version in Secret Manager, read inside the container"))
    if key := body.get("encryptionSpec", {}).get("kmsKeyName"):
        rows.append(("encrypted with", key))
    return [*rows, ("assumed", "; ".join(_assumptions(plan)))]


def _image_in_words(image: str) -> str:
    if PLACEHOLDER.fullmatch(image):
        return f"{image} (build one from docker/Dockerfile)"
    notes = []
    if not DIGEST.fullmatch(image):
        notes.append("no digest: what it holds may change between two jobs")
    host = image.partition("/")[0]
    known = host.endswith((".pkg.dev", "gcr.io", "docker.io")) or "." not in host
    if not known:
        notes.append(f"Google documents Artifact Registry and Docker Hub only, not {host}")
    return f"{image} ({'; '.join(notes)})" if notes else image


def _hardware_in_words(machine: Mapping[str, Any], plan: Plan) -> str:
    nodes = f"{plan.job.resources.nodes} x " if plan.job.resources.nodes > 1 else ""
    gpus = f"{machine['acceleratorCount']} x {machine['acceleratorType']}"
    return f"{nodes}{machine['machineType']} with {gpus}"


def _network_in_words(spec: Mapping[str, Any]) -> str:
    if peered := spec.get("network"):
        return f"peered with {peered}"
    if "pscInterfaceConfig" in spec:
        return "Private Service Connect interface"
    return "Google's own, with a way to the internet"


def _strategy_in_words(schedule: Mapping[str, Any]) -> str:
    strategy = schedule.get("strategy")
    if strategy == "SPOT":
        return "SPOT: may be interrupted, restarted up to six times from its checkpoints; the wait has no limit"
    if strategy == "FLEX_START":
        return f"FLEX_START: waits {_hours(schedule.get('maxWaitDuration'))} at most, then is not interrupted"
    return "STANDARD: on demand; fails when there is no capacity, waits without limit for quota"


def _hours(duration: str | None) -> str:
    """`15300s` -> `4.25 h`; what is no number of seconds stays as it is."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)s", duration or "")
    return f"{float(found.group(1)) / 3600:g} h" if found else str(duration)


def _assumptions(plan: Plan) -> list[str]:
    found = [
        "the service account may read and write the bucket, and the image is in a registry that Vertex may read",
        "a machine that fails, and a job that ends with an error, is started again by Vertex a few times: "
        "it goes on from its checkpoints",
    ]
    if plan.offer.note:
        found.append(plan.offer.note)
    machine = plan.request["customJob"]["jobSpec"]["workerPoolSpecs"][0]["machineSpec"]["machineType"]
    if machine != plan.offer.instance_type:
        found.append(f"prices are those of {plan.offer.instance_type}: backend_options asks for {machine} instead")
    here, home = plan.job.resources.region, plan.site.get("region")
    if here and home and here != home:
        found.append(f"the bucket is in {home}: what a job in {here} reads and writes is billed as traffic")
    for uri in remote_uris(plan.job).values():
        if not uri.startswith((*MOUNTS, "hf://")):
            found.append(f"the job itself has the right to read {uri}, by env or secrets")
    if plan.job.resources.disk_gib is None:
        found.append(f"{DEFAULT_DISK_GIB} GB hold image and model; resources.disk_gib asks for more")
    if plan.job.resources.offline:
        found.append("the job needs no internet; that it has none is up to your network and VPC Service Controls")
    return found
