"""SageMaker's container around the job's process, for a rehearsal on this machine.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.base import ContainerContract, Plan
from backends.sagemaker.places import BASE, BUNDLE, SCRATCH

INTERFACE = "eth0"
ACCOUNT = "123456789012"
"""In the ARN that the container is told: a rehearsal asks no account for its number."""


def contract(plan: Plan, root: Path, node: int) -> ContainerContract:
    """Node `node`'s container, /opt/ml and the scratch folder laid under `root`."""
    request = plan.request
    base = root / BASE.lstrip("/")
    region = request["AlgorithmSpecification"]["TrainingImage"].partition(".ecr.")[2].partition(".")[0]
    env = {name: _under(root, value) for name, value in request["Environment"].items()}
    env |= {
        "TRAINING_JOB_NAME": request["TrainingJobName"],
        "TRAINING_JOB_ARN": f"arn:aws:sagemaker:{region}:{ACCOUNT}:training-job/{request['TrainingJobName']}",
        "AWS_REGION": region,
        # The vendor's own name for another root, as its training toolkit reads it.
        "SAGEMAKER_BASE_DIR": str(base),
    }
    return ContainerContract(
        command=tuple(request["AlgorithmSpecification"]["ContainerEntrypoint"]),
        env=env,
        files={base / "input/config" / name: json.dumps(body) for name, body in config(request, node).items()},
        bundle=base / "input/data" / BUNDLE,
        folders=tuple(base / name for name in ("input/data", "model", "output/data", "checkpoints")),
        kept=base / "checkpoints",
        output=base / "model",
    )


def config(request: Mapping[str, Any], node: int) -> dict[str, Any]:
    """The files of /opt/ml/input/config."""
    resources = request["ResourceConfig"]
    kind = resources.get("InstanceType") or resources["InstancePreferences"][0]["InstanceType"]
    hosts = [f"algo-{number + 1}" for number in range(resources["InstanceCount"])]
    return {
        "hyperparameters.json": dict(request.get("HyperParameters") or {}),
        "inputdataconfig.json": {c["ChannelName"]: _channel(c) for c in request["InputDataConfig"]},
        "resourceconfig.json": {
            "current_host": hosts[node],
            "current_instance_type": kind,
            "current_group_name": "homogeneousCluster",
            "hosts": hosts,
            "instance_groups": [
                {"instance_group_name": "homogeneousCluster", "instance_type": kind, "hosts": hosts}
            ],
            "network_interface_name": INTERFACE,
        },
    }


def _channel(channel: Mapping[str, Any]) -> dict[str, str]:
    return {
        "TrainingInputMode": channel.get("InputMode", "File"),
        "S3DistributionType": channel["DataSource"]["S3DataSource"]["S3DataDistributionType"],
        "RecordWrapperType": "None",
    }


def _under(root: Path, value: str) -> str:
    """A value of the environment with the container's folders laid under `root`."""
    for folder in (BASE, SCRATCH):
        if value == folder or value.startswith((f"{folder}/", "{")):
            value = value.replace(f"{folder}/", f"{root}{folder}/")
    return value
