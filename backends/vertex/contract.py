"""Vertex's container around the job's process, for a rehearsal on this machine.

https://cloud.google.com/vertex-ai/docs/training/code-requirements#environment-variables
https://cloud.google.com/vertex-ai/docs/training/distributed-training#cluster-variables
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.base import ContainerContract, Plan
from backends.vertex.checks import PARENT
from backends.vertex.places import MOUNTS

PORT = 2222
"""The one that Vertex keeps free on every replica."""
PROJECT_NUMBER, JOB_NUMBER = "123456789012", "1234567890123456789"
"""In what the container is told: a rehearsal has no job of Vertex's, and does not ask for the project's number."""


def contract(plan: Plan, root: Path, node: int) -> ContainerContract:
    """Node `node`'s container, its mounted buckets laid under `root`."""
    spec = plan.request["customJob"]["jobSpec"]
    mount = MOUNTS["gs://"].rstrip("/")
    gcs = root / mount.lstrip("/")
    pool = spec["workerPoolSpecs"][min(node, 1)]
    parent = PARENT.fullmatch(plan.request["parent"])
    own = {v["name"]: v["value"].replace("$$(", "$(") for v in pool["containerSpec"]["env"]}
    env = {name: value.replace(f"{mount}/", f"{gcs}/") for name, value in own.items()}
    env |= {
        **aip(spec["baseOutputDirectory"]["outputUriPrefix"]),
        "CLOUD_ML_PROJECT_ID": PROJECT_NUMBER,
        "CLOUD_ML_REGION": parent.group(2) if parent else "",
        "CLOUD_ML_JOB_ID": JOB_NUMBER,
        "CLUSTER_SPEC": json.dumps(cluster_spec(spec, node)),
    }
    place = {name: Path(env[f"LAUNCH_{name}_DIR"]) for name in ("INPUT", "OUTPUT", "CHECKPOINT")}
    return ContainerContract(
        command=tuple(pool["containerSpec"]["command"]),
        env=env,
        files={},
        bundle=place["INPUT"],
        folders=(place["OUTPUT"], place["CHECKPOINT"]),
        kept=place["CHECKPOINT"],
        output=place["OUTPUT"],
    )


def aip(output: str) -> dict[str, str]:
    """What Vertex says of the job's base output directory."""
    base = output.rstrip("/")
    folders = {"MODEL_DIR": "model", "CHECKPOINT_DIR": "checkpoints", "TENSORBOARD_LOG_DIR": "logs"}
    return {f"AIP_{name}": f"{base}/{folder}/" for name, folder in folders.items()}


def cluster_spec(spec: Mapping[str, Any], node: int) -> dict[str, Any]:
    """CLUSTER_SPEC of one node: pool 0 is the first, pool 1 the others."""
    counts = [int(pool["replicaCount"]) for pool in spec["workerPoolSpecs"]]
    return {
        "cluster": {
            f"workerpool{pool}": [f"cmle-training-workerpool{pool}-0a1b2c-{n}:{PORT}" for n in range(count)]
            for pool, count in enumerate(counts)
        },
        "environment": "cloud",
        "task": {"type": f"workerpool{min(node, 1)}", "index": max(0, node - 1)},
        "job": json.dumps(spec),
    }
