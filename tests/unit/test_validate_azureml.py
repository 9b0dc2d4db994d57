"""Azure ML's requests against azure-ai-ml's own entities, and what those let through."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from backends.azureml import AzureMLBackend
from backends.container import with_examples
from launcher.errors import ConfigError
from tests.unit.azureml_jobs import (
    CLIENT,
    CLUSTERS,
    FACTS,
    IMAGE,
    SHA,
    STORE,
    WORKSPACE,
    job,
    options,
    properties,
    rendered,
)

pytestmark = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="azure-ai-ml")),
    reason="azure-ai-ml comes with the extra azureml",
)
NAMED = f"{WORKSPACE}/computes/c"


@pytest.fixture
def backend(tmp_path: Path) -> AzureMLBackend:
    return AzureMLBackend(tmp_path)


KINDS: list[dict[str, Any]] = [
    {},
    {"resources": {"gpu": "H100", "gpus": 8, "nodes": 2, "max_hours": 100}},
    {"resources": {"spot": True, "image": IMAGE}, "env": {"COLOUR": "blue"}, "tags": {"team": "support"}},
    {"secrets": ["HF_TOKEN"], "model": {"id": "org/model", "cache": True}},
    {"data": {"train": 'wasbs://c@acc.blob.core.windows.net/a "b".jsonl'}},
    {"backend_options": options(resources={"shmSize": "16g", "dockerArgs": "--ipc=host"}, description="ours")},
    {"backend_options": options(queueSettings={"priority": 3}, resources={"properties": {"kEy": {"a": 1}}})},
    {"backend_options": {"azureml": {
        "environment": None,
        "job": {"properties": {"environmentId": "azureml://registries/a/environments/b/versions/1"}},
    }}},
]  # fmt: skip


@pytest.mark.parametrize("facts", [FACTS, {**FACTS, "identity": CLIENT}, CLUSTERS, {}])
@pytest.mark.parametrize("changes", KINDS)
def test_azures_own_entities_take_every_kind_of_request_and_give_it_back(
    changes: dict[str, Any], facts: dict[str, str], backend: AzureMLBackend
) -> None:
    backend.validate(rendered(backend, job(**copy.deepcopy(changes)), facts))


def test_the_body_is_the_one_that_the_sdks_command_makes(backend: AzureMLBackend) -> None:
    spec = job(resources={"gpu": "H100", "gpus": 8, "nodes": 2, "spot": True, "max_hours": 4})
    body = properties(backend, spec, {**FACTS, "identity": CLIENT})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from azure.ai.ml import Input, Output, PyTorchDistribution, command
        from azure.ai.ml.entities import ManagedIdentityConfiguration

        made: Any = command(
            name="triage-2", display_name="triage-2", experiment_name="triage", command=body["command"],
            environment=body["environmentId"], environment_variables=body["environmentVariables"],
            inputs={"bundle": Input(type="uri_folder", path=f"{STORE}/bundles/{SHA}/", mode="download")},
            outputs={
                "output": Output(type="uri_folder", path=f"{STORE}/jobs/triage-2/output/", mode="rw_mount"),
                "checkpoints": Output(
                    type="uri_folder", path=f"{STORE}/jobs/triage-1/checkpoints/", mode="rw_mount"
                ),
            },
            instance_count=2, instance_type="Standard_ND96isr_H100_v5", timeout=15300, job_tier="Spot",
            distribution=PyTorchDistribution(process_count_per_instance=1),
            identity=ManagedIdentityConfiguration(client_id=CLIENT), tags=body["tags"], properties={},
        )  # fmt: skip
        assert made._to_job()._to_rest_object().as_dict() == {"name": "triage-2", "properties": body}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"resources": {"shmSizee": "8g"}}, r"job\.properties\.resources\.shm_sizee: Unknown"),
        ({"noSuchField": 1}, r"job\.properties\.noSuchField: Unknown"),
        ({"queueSettings": {"jobTier": "Cheap"}}, r"job\.properties\.queueSettings\.job_tier: .*Cheap"),
        ({"inputs": {"more": {"jobInputType": "uri_fold", "uri": "x"}}}, r"job\.properties\.inputs"),
        ({"identity": {"identityType": "Nobody"}}, r"job\.properties\.identity"),
        ({"isArchived": True}, r"job\.properties\.isArchived: azure-ai-ml reads False"),
    ],
)
def test_what_the_sdk_refuses_is_named(changed: dict[str, Any], said: str, backend: AzureMLBackend) -> None:
    with pytest.raises(ConfigError) as refusal:
        backend.validate(rendered(backend, job(backend_options=options(**changed))))
    assert any(re.match(said, problem) for problem in refusal.value.problems), refusal.value.problems


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"computeId": NAMED}, "instanceType: a named compute"),
        ({"computeId": NAMED, "queueSettings": {"jobTier": "Spot"}}, "jobTier: a named compute"),
        ({"resources": {"instanceType": None}}, "instanceType: is missing"),
        ({"computeId": "c", "resources": {"instanceType": None}}, "computeId: 'c' is no id"),
        ({"limits": None}, "limits.timeout: None"),
        ({"limits": {"timeout": "P30D"}}, "21 days"),
        ({"environmentId": "azureml:other:1"}, "environmentId"),
        ({"environmentVariables": {"A": 1}}, "environmentVariables.A"),
        (
            {"outputs": {"more": {"jobOutputType": "uri_folder", "uri": "wasbs://c@a.blob.core.windows.net/x"}}},
            "outputs.more.uri",
        ),
    ],
)
def test_what_the_sdk_lets_through_and_the_service_refuses_is_named(
    changed: dict[str, Any], said: str, backend: AzureMLBackend
) -> None:
    with pytest.raises(ConfigError) as refusal:
        backend.validate(rendered(backend, job(backend_options=options(**changed))))
    assert any(said in problem for problem in refusal.value.problems), refusal.value.problems


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"condaFile": "a: [b"}, "environment.properties: while parsing"),
        ({"image": None, "condaFile": None}, "environment.properties: Docker image or Dockerfile is required"),
        ({"noSuchField": 1}, "environment.properties.noSuchField: Unknown"),
    ],
)
def test_what_the_sdk_refuses_of_an_environment_is_named(
    changed: dict[str, Any], said: str, backend: AzureMLBackend
) -> None:
    with pytest.raises(ConfigError) as refusal:
        backend.validate(
            rendered(backend, job(backend_options={"azureml": {"environment": {"properties": changed}}}))
        )
    assert refusal.value.problems[0].startswith(said), refusal.value.problems


@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_path_that_nobody_makes_is_refused(kind: str, backend: AzureMLBackend) -> None:
    request = copy.deepcopy(rendered(backend, job()))
    request["job"]["properties"]["command"] += f" ${{{{{kind}.typo}}}}"
    with pytest.raises(ConfigError) as refusal:
        backend.validate(request)
    assert f"job.properties.command: there is no {kind}.typo" in refusal.value.problems


def test_validation_leaves_the_request_alone_and_takes_placeholders_for_their_examples(
    backend: AzureMLBackend,
) -> None:
    request = rendered(backend, job(), {})
    before = copy.deepcopy(request)
    backend.validate(request)
    assert request == before
    assert "my-workspace" in json.dumps(with_examples(request, backend.facts))


def test_the_sdk_says_nothing_of_its_own_and_starts_nothing() -> None:
    script = (
        "import threading, warnings; from pathlib import Path; from backends.azureml import AzureMLBackend\n"
        "from tests.unit.azureml_jobs import job, rendered\n"
        "warnings.simplefilter('error'); backend = AzureMLBackend(Path('unused'))\n"
        "backend.validate(rendered(backend, job(resources={'spot': True})))\n"
        "assert threading.active_count() == 1\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
