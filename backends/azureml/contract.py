"""Azure ML's container around the job's process, for a rehearsal on this machine.

https://learn.microsoft.com/azure/machine-learning/how-to-train-distributed-gpu (read 2026-11-25)
"""

from __future__ import annotations

import re
from pathlib import Path

from backends.azureml.places import BUNDLE, CHECKPOINTS, EXPRESSION, OUTPUT
from backends.base import ContainerContract, Plan

MOUNTS = "mnt/azureml/cap"
EXPORT = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
MASTER_PORT = "6105"


def contract(plan: Plan, root: Path, node: int) -> ContainerContract:
    """Node `node`'s container: its mounts laid under `root`, the command's exports as variables."""
    properties = plan.request["job"]["properties"]
    folders = {
        f"{kind}.{name}": root / MOUNTS / kind / name
        for kind in ("inputs", "outputs")
        for name in properties.get(kind) or {}
    }
    exports, _, command = properties["command"].removeprefix("export ").rpartition(" && exec ")
    own = {name: re.sub(r"\\(.)", r"\1", value) for name, value in EXPORT.findall(exports)}
    env = {
        name: EXPRESSION.sub(lambda match: str(folders[f"{match[1]}.{match[2]}"]), value)
        for name, value in {**properties["environmentVariables"], **own}.items()
    }
    return ContainerContract(
        command=tuple(command.split()),
        env={**env, **_told(plan.token, plan.job.resources.nodes, node)},
        files={},
        bundle=folders[f"inputs.{BUNDLE}"],
        folders=tuple(folders.values()),
        kept=folders[f"outputs.{CHECKPOINTS}"],
        output=folders[f"outputs.{OUTPUT}"],
    )


def _told(token: str, nodes: int, node: int) -> dict[str, str]:
    """What Azure ML says of the job and, where it has several machines, of this one."""
    found = {"AZUREML_RUN_ID": token, "MLFLOW_RUN_ID": token, "AZUREML_NODE_COUNT": str(nodes)}
    if nodes == 1:
        return found
    return found | {
        "NODE_RANK": str(node), "RANK": str(node), "LOCAL_RANK": "0", "WORLD_SIZE": str(nodes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": MASTER_PORT,
    }  # fmt: skip
