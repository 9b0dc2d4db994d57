"""A rehearsal's container against the one that AWS's own training toolkit sees."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from backends.sagemaker import SageMakerBackend
from backends.sagemaker.contract import contract
from tests.emulators.sagemaker import clients
from tests.golden.cases import FACTS
from tests.unit.rendering import job, plan_of
from train_entry.cluster import Cluster

SHOW = """
import json
from sagemaker_training import environment
seen = environment.Environment()
print(json.dumps({**seen.to_env_vars(), "SM_CURRENT_HOST": seen.current_host}))
"""


@pytest.mark.parametrize("node", [0, 1])
def test_the_toolkit_reads_a_rehearsed_container_as_the_entrypoint_does(node: int, tmp_path: Path) -> None:
    if not clients.ready():
        pytest.skip(f"make test builds the environment of AWS's own clients ({clients.SIZE})")
    spec = job(resources={"gpu": "L4", "nodes": 2})
    plan = plan_of(SageMakerBackend(tmp_path), spec, FACTS["sagemaker"])
    box = contract(plan, tmp_path / "root", node)
    for folder in (*box.folders, box.bundle):
        folder.mkdir(parents=True, exist_ok=True)
    for path, text in box.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    ran = subprocess.run(
        [clients.python(), "-c", SHOW], env={**box.env, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    told = json.loads(ran.stdout.strip().splitlines()[-1])
    config = {path.name: json.loads(text) for path, text in box.files.items()}
    resources = config["resourceconfig.json"]
    assert json.loads(str(told["SM_HOSTS"]).replace("'", '"')) == resources["hosts"] == ["algo-1", "algo-2"]
    assert told["SM_CURRENT_HOST"] == resources["current_host"] == f"algo-{node + 1}"
    assert told["SM_CURRENT_INSTANCE_TYPE"] == resources["current_instance_type"]
    assert told["SM_CHANNEL_BUNDLE"] == str(box.bundle)
    assert told["SM_MODEL_DIR"] == str(box.output) == box.env["LAUNCH_OUTPUT_DIR"]
    seen = Cluster.from_environment({**box.env, "LAUNCH_PROCESSES": "1"})
    toolkit = {name: value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}
    toolkit["SM_HOSTS"] = json.dumps(resources["hosts"])
    no_files = {**toolkit, "SAGEMAKER_BASE_DIR": "/nowhere", "LAUNCH_PROCESSES": "1"}
    assert seen == Cluster.from_environment(no_files)
