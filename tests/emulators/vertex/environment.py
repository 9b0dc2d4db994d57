"""What Vertex puts into a replica's environment, and how it reads $(NAME) in what it is given.

https://cloud.google.com/vertex-ai/docs/training/code-requirements#environment-variables
https://cloud.google.com/vertex-ai/docs/training/distributed-training#cluster-variables (2026-11-23)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tests.emulators.vertex.job import Job

PORT = 2222
VARIABLE = re.compile(r"\$\$\(|\$\((\w+)\)")


def host_names(job: Job) -> list[str]:
    """Of every replica, in the order of `job.replicas`."""
    mark = job.proto.name.rpartition("/")[2][-6:]
    return [f"cmle-training-workerpool{pool}-{mark}-{index}" for pool, index in job.replicas]


def environment(job: Job, pool: int, index: int, spec: Mapping[str, Any], port: int) -> dict[str, str]:
    """`port`: the emulator's, which plays the metadata server and Google's other services inside."""
    _, project, _, region, _, number = job.proto.name.split("/")
    here = f"http://127.0.0.1:{port}"
    env = {
        "CLOUD_ML_PROJECT_ID": project, "CLOUD_ML_REGION": region, "CLOUD_ML_JOB_ID": number,
        "CLUSTER_SPEC": json.dumps(cluster(job, pool, index, spec)),
        # What a machine of Google's has by its name and its place in the network.
        "GCE_METADATA_HOST": f"127.0.0.1:{port}", "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"{here}/",
        "STORAGE_EMULATOR_HOST": here, "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    if base := job.spec.base_output_directory.output_uri_prefix.rstrip("/"):
        env |= {
            "AIP_MODEL_DIR": f"{base}/model/", "AIP_CHECKPOINT_DIR": f"{base}/checkpoints/",
            "AIP_TENSORBOARD_LOG_DIR": f"{base}/logs/",
        }  # fmt: skip
    for variable in job.spec.worker_pool_specs[pool].container_spec.env:
        env[variable.name] = expanded(variable.value, env)
    return env


def expanded(text: str, env: Mapping[str, str]) -> str:
    """$(NAME) replaced where NAME is known; $$( is a plain $(."""
    return VARIABLE.sub(lambda m: "$(" if m[1] is None else env.get(m[1], m[0]), text)


def cluster(job: Job, pool: int, index: int, spec: Mapping[str, Any]) -> dict[str, Any]:
    pools: dict[str, list[str]] = {}
    for (number, _), name in zip(job.replicas, host_names(job), strict=True):
        pools.setdefault(f"workerpool{number}", []).append(f"{name}:{PORT}")
    return {
        "cluster": pools, "environment": "cloud", "task": {"type": f"workerpool{pool}", "index": index},
        "job": json.dumps(spec),
    }  # fmt: skip
