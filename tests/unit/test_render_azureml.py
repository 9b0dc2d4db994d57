"""The Azure ML backend: what the job file becomes, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.azureml import AzureMLBackend, images, machines
from backends.azureml.jobfile import duration, seconds
from backends.base import Plan, Site, placeholders
from cost.estimate import estimate
from launcher.errors import BackendNotInstalledError, CapacityError, ConfigError, UnsupportedError
from launcher.site import check_facts
from launcher.spec import JobSpec, Resources
from tests.unit.azureml_jobs import (
    CLIENT,
    CLUSTERS,
    FACTS,
    IMAGE,
    SHA,
    STORE,
    WORKSPACE,
    bundle,
    job,
    options,
    properties,
    rendered,
)


@pytest.fixture
def backend(tmp_path: Path) -> AzureMLBackend:
    return AzureMLBackend(tmp_path)


def explained(backend: AzureMLBackend, spec: JobSpec, facts: Mapping[str, str] = FACTS) -> dict[str, str]:
    offer = next(iter(backend.offers(spec.resources)))
    plan = Plan(
        job=spec, offer=offer, bundle=bundle(), site=Site(backend="azureml", facts=facts), lineage="triage-1",
        token="triage-2", request=rendered(backend, spec, facts), estimate=estimate(offer, 24.0),  # noqa: S106
    )  # fmt: skip
    return dict(backend.explain(plan))


def test_the_jobs_name_is_the_token_and_its_checkpoints_are_the_lineages(backend: AzureMLBackend) -> None:
    request = rendered(backend, job(tags={"team": "support"}))
    assert request["job"]["id"] == f"{WORKSPACE}/jobs/triage-2"
    found = request["job"]["properties"]
    assert found["tags"] == {"team": "support", "finelaunch_job": "triage-2", "finelaunch_lineage": "triage-1"}
    assert found["outputs"]["output"]["uri"] == f"{STORE}/jobs/triage-2/output/"
    assert found["outputs"]["checkpoints"]["uri"] == f"{STORE}/jobs/triage-1/checkpoints/"
    assert found["inputs"]["bundle"]["uri"] == f"{STORE}/bundles/{SHA}/"
    assert found["limits"]["timeout"] == "P1DT15M"


def test_who_submits_is_a_tag(backend: AzureMLBackend) -> None:
    offer = next(iter(backend.offers(job().resources)))
    site = Site(backend="azureml", facts=FACTS, owner="ada")
    request: Any = backend.render(job(), offer, bundle(), site, "triage-2", "triage-1")
    assert request["job"]["properties"]["tags"]["finelaunch_owner"] == "ada"


@pytest.mark.skipif(sys.platform == "win32", reason="Azure ML's nodes run a POSIX shell")
@pytest.mark.parametrize("by_variable", [False, True])
def test_the_command_tells_the_paths_and_becomes_the_entrypoint(
    by_variable: bool, backend: AzureMLBackend, tmp_path: Path
) -> None:
    uri = 'wasbs://$web@acc.blob.core.windows.net/a "b"/train.jsonl'
    spec = job(
        data={"train": uri}, model={"id": "org/model", "cache": True}, env={"NOT_OURS": "${{inputs.bundle}}"}
    )
    found = properties(backend, spec)
    assert "${{" not in json.dumps({k: v for k, v in found["environmentVariables"].items() if k != "NOT_OURS"})
    line, env = found["command"], {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for kind in ("inputs", "outputs"):
        for name in found[kind]:
            env[f"AZURE_ML_{name}"] = f"/mnt/{name}"
            line = line.replace(f"${{{{{kind}.{name}}}}}", f"$AZURE_ML_{name}" if by_variable else f"/mnt/{name}")
    (tmp_path / "python3").write_text('#!/bin/sh\nenv\necho "ARGS=$*"\nexec sleep 30\n')
    (tmp_path / "python3").chmod(0o755)
    started = subprocess.Popen(["/bin/sh", "-c", line], env=env, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    told = {}
    while "ARGS" not in told:
        key, _, value = started.stdout.readline().rstrip("\n").partition("=")
        told[key] = value
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=20) == -signal.SIGTERM  # the shell would have kept it
    started.stdout.close()
    assert told["ARGS"] == "-m train_entry"
    assert told["LAUNCH_INPUT_DIR"] == "/mnt/bundle" and told["PYTHONPATH"] == "/mnt/bundle/code"
    assert told["LAUNCH_CHECKPOINT_DIR"] == "/mnt/checkpoints" and told["LAUNCH_OUTPUT_DIR"] == "/mnt/output"
    assert told["LAUNCH_MODEL_CACHE"] == "/mnt/model_cache"
    assert json.loads(told["LAUNCH_MOUNTS"]) == {uri: "/mnt/data_train"}


def test_a_bundle_is_copied_unless_a_model_is_in_it(backend: AzureMLBackend) -> None:
    def mode(*paths: str) -> str:
        request = rendered(backend, job(), taken=bundle(*paths))
        return str(request["job"]["properties"]["inputs"]["bundle"]["mode"])

    assert (mode("data/train.jsonl"), mode("model/config.json")) == ("Download", "ReadOnlyMount")


def test_what_is_in_azures_storage_is_mounted_and_the_rest_is_left_to_the_job(backend: AzureMLBackend) -> None:
    data = {"train": "abfss://c@acc.dfs.core.windows.net/t.jsonl", "eval": "s3://bucket/e.jsonl"}
    found = properties(backend, job(data=data, model="azureml://datastores/models/paths/llama/"))
    assert found["inputs"]["data_train"] == {
        "jobInputType": "uri_file", "uri": data["train"], "mode": "ReadOnlyMount",
    }  # fmt: skip
    assert found["inputs"]["model"]["jobInputType"] == "uri_folder"
    assert "data_eval" not in found["inputs"]


def test_a_signed_uri_is_refused_since_it_holds_a_secret(backend: AzureMLBackend) -> None:
    data = {"train": "https://acc.blob.core.windows.net/c/t.jsonl?sv=2026&sig=abc"}
    with pytest.raises(ConfigError, match=r"^data\.train.*SAS") as refusal:
        rendered(backend, job(data=data))
    assert "abc" not in refusal.value.message


def test_several_nodes_are_told_of_each_other_by_one_process_each(backend: AzureMLBackend) -> None:
    found = properties(backend, job(resources={"gpu": "H100", "gpus": 8, "nodes": 3}))
    assert found["distribution"] == {"distributionType": "PyTorch", "processCountPerInstance": 1}
    assert found["resources"]["instanceCount"] == 3
    assert found["environmentVariables"]["LAUNCH_PROCESSES"] == "8"
    assert found["environmentVariables"]["LAUNCH_GPUS"] == "8"
    assert int(found["environmentVariables"]["DATASET_MOUNT_ATTRIBUTE_CACHE_TTL"]) <= 60_000
    assert "distribution" not in properties(backend, job())
    raw = {"azureml": {"job": {"properties": {"resources": {"instanceType": "Standard_D4s_v3"}}}}}
    assert properties(backend, job(backend_options=raw))["environmentVariables"]["LAUNCH_GPUS"] == "0"


def test_spot_is_the_jobs_tier_on_serverless_and_the_clusters_where_one_is_named(backend: AzureMLBackend) -> None:
    spot = job(resources={"spot": True})
    serverless = properties(backend, spot)
    assert serverless["queueSettings"] == {"jobTier": "Spot"}
    assert serverless["resources"]["instanceType"] == "Standard_NC24ads_A100_v4"
    named = properties(backend, spot, CLUSTERS)
    assert named["computeId"] == f"{WORKSPACE}/computes/cheap-gpus"
    assert "queueSettings" not in named and "instanceType" not in named["resources"]
    assert named["properties"] == {"finelaunch_instance_type": "Standard_NC24ads_A100_v4"}
    assert properties(backend, job(), CLUSTERS)["computeId"] == f"{WORKSPACE}/computes/gpus"
    with pytest.raises(UnsupportedError, match=r"^resources\.spot: whether gpus"):
        rendered(backend, spot, {**FACTS, "compute": "gpus"})


def test_secrets_are_references_that_a_managed_identity_reads(
    backend: AzureMLBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", value)
    spec = job(secrets=["HF_TOKEN"])
    request = rendered(backend, spec, {**FACTS, "identity": CLIENT})
    found = request["job"]["properties"]
    assert json.loads(found["environmentVariables"]["LAUNCH_SECRETS"]) == {
        "HF_TOKEN": "azure-kv://team-vault/HF-TOKEN"
    }
    assert found["environmentVariables"]["AZURE_CLIENT_ID"] == found["identity"]["clientId"] == CLIENT
    assert value not in json.dumps(request)
    assert placeholders(rendered(backend, spec)) == [("azureml", "identity")]  # serverless has none of its own
    assert properties(backend, spec, CLUSTERS)["identity"] == {"identityType": "Managed"}
    assert "identity" not in properties(backend, job())


def test_without_an_image_azure_builds_one_from_the_pins(backend: AzureMLBackend) -> None:
    environment = rendered(backend, job())["environment"]["properties"]
    pinned = [line for line in environment["condaFile"].splitlines() if "==" in line]
    assert [line.removeprefix("  - ") for line in pinned] == list(images.pins())
    assert "python=3.12" in environment["condaFile"]
    assert images.built().torch >= (2, 6)


def test_an_environment_is_named_by_its_content(backend: AzureMLBackend) -> None:
    def own(**changes: Any) -> str:
        request = rendered(backend, job(**changes))
        assert request["job"]["properties"]["environmentId"] == request["environment"]["id"]
        return str(request["environment"]["id"])

    assert own() == own(name="other")
    raw = {"azureml": {"environment": {"properties": {"description": "ours"}}}}
    assert len({own(), own(resources={"image": IMAGE}), own(backend_options=raw)}) == 3
    by_fact = rendered(backend, job(), {**FACTS, "image": IMAGE})
    assert by_fact["environment"]["properties"]["image"] == IMAGE


@pytest.mark.parametrize(
    "image",
    [
        "mcr.microsoft.com/azureml/curated/acpt-pytorch-2.8-cuda12.6:12",
        "mcr.microsoft.com/aifx/acpt/stable-ubuntu2204-cu126-py310-torch280:biweekly.202606.1",
        "azureml://registries/azureml/environments/acpt-pytorch-2.8-cuda12.6/versions/12",
    ],
)
def test_images_that_cannot_do_are_refused_by_the_field_that_names_them(
    image: str, backend: AzureMLBackend
) -> None:
    with pytest.raises(UnsupportedError, match=r"^resources\.image") as refusal:
        rendered(backend, job(resources={"image": image}))
    assert refusal.value.hint
    with pytest.raises(UnsupportedError, match=r"^site\.azureml\.image"):
        rendered(backend, job(), {**FACTS, "image": image})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"resources": {"region": "westus3"}}, "resources.region"),
        ({"resources": {"disk_gib": 100}}, "resources.disk_gib"),
        ({"resources": {"max_hours": 21 * 24}}, "resources.max_hours"),
        ({"resources": {"max_hours": 7 * 24, "spot": True}}, "resources.max_hours"),
        ({"resources": {"max_wait_hours": 2}}, "resources.max_wait_hours"),
        ({"resources": {"fallback": ["H100"]}}, "resources.fallback"),
        ({"resources": {"offline": True}}, "model.id"),
        ({"resources": {"offline": True}, "model": "s3://bucket/model"}, "model.id"),
        ({"resources": {"offline": True}, "model": "./model", "secrets": ["TOKEN"]}, "secrets"),
    ],
)
def test_what_azure_ml_cannot_do_is_refused_by_name(
    changes: dict[str, Any], field: str, backend: AzureMLBackend
) -> None:
    with pytest.raises(UnsupportedError, match=f"^{field}") as refusal:
        rendered(backend, job(**changes))
    assert refusal.value.hint


def test_the_workspaces_own_region_and_an_offline_job_with_its_model_there_are_taken(
    backend: AzureMLBackend,
) -> None:
    spec = job(model="azureml://datastores/models/paths/llama/", resources={"offline": True, "region": "eastus"})
    assert properties(backend, spec)["environmentVariables"]["LAUNCH_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"job": {"id": "x"}}, r"job\.id"),
        ({"job": None}, "job"),
        ({"environment": {"id": "x"}}, r"environment\.id"),
        ({"environment": "azureml:x:1"}, "environment"),
        ({"job": {"properties": {"command": "sleep 1"}}}, r"job\.properties\.command"),
        ({"job": {"properties": {"tags": {"finelaunch_job": "x"}}}}, r"tags\.finelaunch_job"),
        ({"job": {"properties": {"outputs": None}}}, r"job\.properties\.outputs"),
        ({"job": {"properties": {"distribution": {"processCountPerInstance": 8}}}}, "distribution"),
    ],
)
def test_raw_options_cannot_replace_what_launch_sets(raw: Any, path: str, backend: AzureMLBackend) -> None:
    with pytest.raises(ConfigError, match=path):
        rendered(backend, job(backend_options={"azureml": raw}))


def test_unset_facts_are_placeholders_and_optional_ones_are_left_out(backend: AzureMLBackend) -> None:
    assert [fact for _, fact in placeholders(rendered(backend, job(), {}))] == [
        "subscription", "resource_group", "workspace",
    ]  # fmt: skip


def test_the_examples_of_the_facts_have_their_own_form(backend: AzureMLBackend) -> None:
    for values in ({f.name: f.example for f in backend.facts}, CLUSTERS):
        check_facts("azureml", backend.facts, values, {name: name for name in values})
    for wrong in ({"subscription": "mine"}, {"key_vault": "a_b"}, {"compute": "-x"}, {"datastore": "a-b"}):
        with pytest.raises(ConfigError):
            check_facts("azureml", backend.facts, wrong, {name: name for name in wrong})


def test_offers_are_cheapest_first_and_say_what_is_reported_of_them() -> None:
    found = list(machines.offers("azureml", Resources(gpu="a100", gpus=8, nodes=2, region="eastus")))
    assert [o.instance_type for o in found] == ["Standard_ND96asr_v4", "Standard_ND96amsr_A100_v4"]
    assert (found[0].gpu_memory_gib, found[0].nodes, found[0].region, found[0].hourly) == (40, 2, "eastus", None)
    assert next(iter(machines.offers("azureml", Resources()))).gpu == "T4"
    spot = next(iter(machines.offers("azureml", Resources(gpu="NVIDIA A100", gpus=2, spot=True))))
    assert spot.spot and "third parties" in (spot.note or "")


@pytest.mark.parametrize(
    ("resources", "said"),
    [({"gpu": "H1000"}, "did you mean H100"), ({"gpu": "V100"}, "there are:"), ({"gpus": 3}, "resources.gpus=4")],
)
def test_impossible_hardware_is_refused_with_a_way_out(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(CapacityError) as refusal:
        list(machines.offers("azureml", Resources(**resources)))
    assert said in (refusal.value.hint or "")


@pytest.mark.parametrize("time", [1, 59, 60, 3600, 15300, 86400, 87300, 21 * 86400, 90061])
def test_a_duration_reads_back(time: int) -> None:
    assert seconds(duration(time)) == time
    assert [seconds(text) for text in ("P", "PT", "4h", "", None, "P1M")] == [None] * 6


def test_explain_says_where_everything_is_and_how_long(backend: AzureMLBackend) -> None:
    data = {"train": "wasbs://c@acc.blob.core.windows.net/t.jsonl"}
    spec = job(resources={"max_hours": 2, "nodes": 2}, secrets=["HF_TOKEN"], data=data)
    rows = explained(backend, spec, {**FACTS, "identity": CLIENT})
    assert "built by Azure ML" in rows["image"] and "Python 3.12" in rows["image"]
    assert rows["hardware"] == "2 x Standard_NC24ads_A100_v4 with 1 x A100-80GB, serverless"
    assert (rows["workspace"], rows["runs as"]) == ("team", f"managed identity {CLIENT}")
    assert rows["uploaded to"] == f"{STORE}/bundles/{SHA}/ (1.0 MiB in 1 files)"
    assert rows["checkpoints"] == f"{STORE}/jobs/triage-1/checkpoints/"
    assert "2.25 h" in rows["stops after"] and rows["read in place"] == data["train"]
    assert "HF_TOKEN" in rows["secrets"] and "580" in rows["assumed"] and "quota" in rows["assumed"]
    named = explained(backend, job(resources={"image": "team/train:latest", "spot": True}), CLUSTERS)
    assert "no digest" in named["image"] and "cheap-gpus, which must have 1 x A100" in named["hardware"]
    assert "checkpoints" in named["spot"]


def test_a_damaged_request_is_refused_before_the_sdk_is_asked(
    backend: AzureMLBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "azure.ai.ml", None)
    request = rendered(backend, job())
    with pytest.raises(BackendNotInstalledError) as missing:
        backend.validate(request)
    assert missing.value.hint == "pip install 'finelaunch[azureml]'"
    parts: list[dict[str, Any]] = [
        {"zzz": 1}, {"job": {"id": "/x", "properties": {}}}, {"api-version": "2020"}, {"environment": {"id": "x"}},
    ]  # fmt: skip
    parts.append(rendered(backend, job(backend_options=options(limits={"timeout": "P30D"}))))
    for damaged in ({}, *({**request, **part} for part in parts)):
        with pytest.raises(ConfigError):
            backend.validate(damaged)
