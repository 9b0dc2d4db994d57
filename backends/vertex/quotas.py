"""Vertex AI's own quotas, beside Compute Engine's: which of them a job counts on, and what Google says of one.

https://cloud.google.com/vertex-ai/docs/quotas#training (2026-11-23). The page has no names of metrics; these are
the ones that users met in refusals and in `gcloud services quota list` (public texts of 2025 and 2026).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cost.refresh.machines import GOOGLE

API = "aiplatform.googleapis.com"
PAGE = "https://console.cloud.google.com/iam-admin/quotas?service=aiplatform.googleapis.com&project={project}"
CHEAP = ("SPOT", "FLEX_START")
"""Strategies that count on the `preemptible` quotas."""
GPUS = {
    "NVIDIA_TESLA_T4": "nvidia_t4", "NVIDIA_TESLA_A100": "nvidia_a100", "NVIDIA_TESLA_V100": "nvidia_v100",
    "NVIDIA_TESLA_P100": "nvidia_p100", "NVIDIA_TESLA_P4": "nvidia_p4", "NVIDIA_H100_80GB": "nvidia_h100",
    "NVIDIA_H100_MEGA_80GB": "nvidia_h100_mega", "NVIDIA_H200_141GB": "nvidia_h200",
}  # fmt: skip
"""Accelerator -> its part of the metric's name; the others' is the accelerator's name."""
CPUS = {"n1": "cpus", "g2": "g2_cpus", "a2": "a2_cpus", "a3": "a3_cpus"}
"""Family of machines -> the end of its metric's name, on demand."""
SEEN_ON_PREEMPTIBLE_CPUS = ("n1", "a2")
"""Families of which spot jobs, with GPUs enough, were refused for `preemptible_cpus`; others likely are."""


def needs(job_spec: Mapping[str, Any]) -> Iterator[tuple[str, int, bool]]:
    """(metric, how many, is that certain?) of all that a job with this jobSpec counts on, as far as known."""
    cheap = job_spec.get("scheduling", {}).get("strategy") in CHEAP
    pools = job_spec["workerPoolSpecs"]
    machine, nodes = pools[0]["machineSpec"], sum(int(pool["replicaCount"]) for pool in pools)
    kind = machine["machineType"]
    family = kind.partition("-")[0]
    if "acceleratorType" in machine:
        yield gpu_metric(machine["acceleratorType"], cheap), int(machine["acceleratorCount"]) * nodes, True
    name = "preemptible_cpus" if cheap else CPUS.get(family)
    if name and (vcpus := vcpus_of(kind)):
        certain = not cheap or family in SEEN_ON_PREEMPTIBLE_CPUS
        yield f"{API}/custom_model_training_{name}", vcpus * nodes, certain


def gpu_metric(accelerator: str, cheap: bool) -> str:
    """The quota on GPUs of custom jobs."""
    name = GPUS.get(accelerator, accelerator.lower())
    return f"{API}/custom_model_training_{'preemptible_' if cheap else ''}{name}_gpus"


def vcpus_of(machine_type: str) -> int | None:
    """None where this program does not know it."""
    if shape := GOOGLE.get(machine_type):
        return shape.vcpus
    found = re.fullmatch(r"(?:n1|g2|g4)-(?:standard|highmem|highcpu)-(\d+)", machine_type)
    return int(found[1]) if found else None


def limit(answer: Mapping[str, Any], region: str) -> int | None:
    """Of a consumerQuotaMetric: its limit in the region, else the one without a region; -1: there is no limit.

    None where Google tells none: so it says that a project has no such quota there, or that there is no limit.
    https://cloud.google.com/service-usage/docs/reference/rest/v1beta1/services.consumerQuotaMetrics
    """
    found: dict[str, int | None] = {}
    for one in answer.get("consumerQuotaLimits") or ():
        for bucket in one.get("quotaBuckets") or ():
            told = bucket.get("effectiveLimit")
            found[bucket.get("dimensions", {}).get("region", "")] = None if told is None else int(told)
    return found.get(region, found.get(""))
