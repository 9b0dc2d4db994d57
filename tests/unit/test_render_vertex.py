"""The Vertex backend's requests: what the job file becomes, what is refused, what a person is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from backends.base import placeholders
from backends.vertex import VertexBackend
from launcher.errors import ConfigError, UnsupportedError
from launcher.site import check_facts
from tests.unit.rendering import DIGEST, IMAGE, SHA, bundle, explained, job, rendered

SITE = {
    "project": "team-ml",
    "region": "europe-west4",
    "bucket": "team-bucket",
    "service_account": "trainer@team-ml.iam.gserviceaccount.com",
    "image": f"europe-west4-docker.pkg.dev/team-ml/finelaunch/train@{DIGEST}",
}
HOME = "/gcs/team-bucket/finelaunch"


@pytest.fixture
def backend(tmp_path: Path) -> VertexBackend:
    return VertexBackend(tmp_path / "home")


def spec_of(request: Any) -> Any:
    return request["customJob"]["jobSpec"]


def env_of(request: Any, pool: int = 0) -> dict[str, str]:
    variables = spec_of(request)["workerPoolSpecs"][pool]["containerSpec"]["env"]
    return {v["name"]: v["value"] for v in variables}


def options(**raw: Any) -> dict[str, Any]:
    return {"backend_options": {"vertex": raw}}


def test_everything_of_the_job_is_in_one_bucket_mounted_in_the_container(backend: VertexBackend) -> None:
    request = rendered(backend, job(), SITE)
    env = env_of(request)
    assert env["LAUNCH_INPUT_DIR"] == f"{HOME}/bundles/{SHA}"
    assert env["PYTHONPATH"] == f"{HOME}/bundles/{SHA}/code"
    assert env["LAUNCH_OUTPUT_DIR"] == f"{HOME}/jobs/triage-2/output"
    assert env["LAUNCH_CHECKPOINT_DIR"] == f"{HOME}/jobs/triage-1/checkpoints"  # what a resume shares
    assert json.loads(env["LAUNCH_MOUNTS"]) == {"gs://": "/gcs/"}
    output = spec_of(request)["baseOutputDirectory"]["outputUriPrefix"]
    assert output == "gs://team-bucket/finelaunch/jobs/triage-2/output"
    assert request["parent"] == "projects/team-ml/locations/europe-west4"
    assert spec_of(request)["serviceAccount"] == SITE["service_account"]
    assert "LAUNCH_MODEL_CACHE" not in env
    cached = env_of(rendered(backend, job(model={"id": "org/model", "cache": True}), SITE))
    assert cached["LAUNCH_MODEL_CACHE"] == f"{HOME}/models"


def test_the_entrypoint_is_the_containers_own_process_with_a_rank_for_every_gpu(backend: VertexBackend) -> None:
    request = rendered(backend, job(resources={"gpus": 8}), SITE)
    container = spec_of(request)["workerPoolSpecs"][0]["containerSpec"]
    assert container["command"] == ["python3", "-m", "train_entry"]
    assert env_of(request)["LAUNCH_PROCESSES"] == env_of(request)["LAUNCH_GPUS"] == "8"
    fewer = {"LAUNCH_PROCESSES": "4", "LAUNCH_GPUS": "4"}
    chosen = rendered(backend, job(resources={"gpus": 8}, env=fewer), SITE)
    assert env_of(chosen).items() >= fewer.items()


def test_the_first_node_has_a_pool_of_its_own_and_the_others_restart_together(backend: VertexBackend) -> None:
    one = spec_of(rendered(backend, job(), SITE))
    assert [pool["replicaCount"] for pool in one["workerPoolSpecs"]] == [1]
    assert "restartJobOnWorkerRestart" not in one["scheduling"]
    request = rendered(backend, job(resources={"nodes": 4}), SITE)
    first, others = spec_of(request)["workerPoolSpecs"]
    assert (first["replicaCount"], others["replicaCount"]) == (1, 3)
    assert {**first, "replicaCount": 3} == others
    assert spec_of(request)["scheduling"]["restartJobOnWorkerRestart"] is True


@pytest.mark.parametrize(
    ("resources", "scheduling"),
    [
        ({}, {"strategy": "STANDARD", "timeout": "87300s"}),
        ({"max_hours": 2}, {"strategy": "STANDARD", "timeout": "8100s"}),
        ({"max_hours": 2, "spot": True}, {"strategy": "SPOT", "timeout": "8100s"}),
        (
            {"max_hours": 2, "max_wait_hours": 1.5},
            {"strategy": "FLEX_START", "timeout": "8100s", "maxWaitDuration": "5400s"},
        ),
        (  # 0 would be: without limit
            {"max_hours": 2, "max_wait_hours": 1e-9},
            {"strategy": "FLEX_START", "timeout": "8100s", "maxWaitDuration": "1s"},
        ),
    ],
)
def test_every_job_has_a_hard_stop_after_its_own_and_a_strategy(
    resources: dict[str, Any], scheduling: dict[str, str], backend: VertexBackend
) -> None:
    assert spec_of(rendered(backend, job(resources=resources), SITE))["scheduling"] == scheduling


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"resources": {"spot": True, "max_wait_hours": 6}}, r"resources\.max_wait_hours"),
        ({"resources": {"max_hours": 168, "max_wait_hours": 6}}, r"resources\.max_hours"),
        ({"resources": {"gpu": "T4", "max_wait_hours": 6}}, r"resources\.max_wait_hours.*T4"),
        ({"resources": {"region": "mars"}}, r"resources\.region"),
        ({"resources": {"region": "us-central1-a"}}, r"resources\.region"),
        ({"resources": {"fallback": ["H100"]}}, r"resources\.fallback"),
        ({"resources": {"offline": True}}, r"model\.id"),
        ({"resources": {"offline": True}, "model": "s3://other/model"}, r"model\.id"),
        ({"resources": {"offline": True}, "model": "gs://b/m", "secrets": ["HF_TOKEN"]}, "secrets"),
        ({"env": {"PRICE": "5$$"}}, r"env\.PRICE"),
        (
            {"resources": {"image": "us-docker.pkg.dev/vertex-ai/training/pytorch-gpu.2-4.py310"}},
            r"resources\.image",
        ),
        ({"resources": {"image": "gcr.io/cloud-aiplatform/training/pytorch-gpu.1-13"}}, r"resources\.image"),
    ],
)
def test_what_vertex_cannot_do_is_refused_by_name(
    changes: dict[str, Any], field: str, backend: VertexBackend
) -> None:
    with pytest.raises(UnsupportedError, match=f"^{field}") as refusal:
        rendered(backend, job(**changes), SITE)
    assert refusal.value.hint


def test_a_prebuilt_image_among_the_account_facts_is_refused_too(backend: VertexBackend) -> None:
    facts = {**SITE, "image": "europe-docker.pkg.dev/vertex-ai/training/pytorch-gpu.2-4.py310:latest"}
    with pytest.raises(UnsupportedError, match=r"^site\.vertex\.image"):
        rendered(backend, job(), facts)
    request = rendered(backend, job(resources={"image": IMAGE}), facts)
    assert spec_of(request)["workerPoolSpecs"][0]["containerSpec"]["imageUri"] == IMAGE


def test_an_offline_job_reads_its_model_from_a_bucket_or_its_bundle(backend: VertexBackend) -> None:
    mounted = env_of(rendered(backend, job(model="gs://b/m", resources={"offline": True}), SITE))
    assert (mounted["LAUNCH_OFFLINE"], mounted["HF_HUB_OFFLINE"]) == ("1", "1")
    spec = job(model="org/model", resources={"offline": True})
    assert env_of(rendered(backend, spec, SITE, bundle("model/config.json")))["LAUNCH_OFFLINE"] == "1"


@pytest.mark.parametrize("changes", [{"env": {"LAUNCH_JOB_ID": "x"}}, {"secrets": ["PYTHONPATH"]}])
def test_a_variable_of_launchs_own_is_refused_not_overwritten(
    changes: dict[str, Any], backend: VertexBackend
) -> None:
    with pytest.raises(ConfigError, match=r"^(env\.LAUNCH_JOB_ID|secrets\.PYTHONPATH)"):
        rendered(backend, job(**changes), SITE)


def test_a_value_reaches_the_process_as_it_is_written(backend: VertexBackend) -> None:
    env = env_of(rendered(backend, job(env={"A": "$(HOME) $HOME", "B": ""}), SITE))
    assert (env["A"], env["B"]) == ("$$(HOME) $HOME", "")


def test_secrets_are_references(backend: VertexBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", value)
    request = rendered(backend, job(secrets=["HF_TOKEN"]), SITE)
    assert json.loads(env_of(request)["LAUNCH_SECRETS"]) == {"HF_TOKEN": "gcp-sm://team-ml/HF_TOKEN"}
    assert value not in json.dumps(request)


def test_the_disk_is_never_below_vertexs_own(backend: VertexBackend) -> None:
    def disk(**resources: Any) -> Any:
        return spec_of(rendered(backend, job(resources=resources), SITE))["workerPoolSpecs"][0].get("diskSpec")

    assert (disk(), disk(disk_gib=20)) == (None, {"bootDiskSizeGb": 100})
    assert disk(disk_gib=500) == {"bootDiskSizeGb": 500}


def test_tags_the_token_and_the_owner_are_labels(backend: VertexBackend) -> None:
    tags = {"team": "nlp", "kosten-stelle": "", "größe": "groß"}
    request = rendered(backend, job(tags=tags), SITE, owner="Ann.Smith@example.com")
    assert request["customJob"]["displayName"] == "triage-2"
    assert request["customJob"]["labels"] == {
        "finelaunch_job": "triage-2",
        "finelaunch_lineage": "triage-1",
        "finelaunch_owner": "ann-smith-example-com",
        **tags,
    }
    long = rendered(backend, job(), SITE, owner="a" * 99)["customJob"]["labels"]
    assert (len(long["finelaunch_owner"]), len(long)) == (63, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Team", "nlp"), ("team", "NLP"), ("1st", "x"), ("_team", "x"), ("", "x"), ("a.b", "x"), ("a/b", "x"),
        ("team", "a b"), ("team", "a.b"), ("k" * 64, "x"), ("team", "v" * 64),
    ],
)  # fmt: skip
def test_a_tag_that_can_be_no_label_is_refused_and_not_rewritten(
    key: str, value: str, backend: VertexBackend
) -> None:
    with pytest.raises(UnsupportedError, match=r"^tags\."):
        rendered(backend, job(tags={key: value}), SITE)


@pytest.mark.parametrize("name", ["finelaunch_job", "finelaunch_lineage", "finelaunch_owner"])
def test_a_tag_cannot_take_a_label_of_launchs_own(name: str, backend: VertexBackend) -> None:
    with pytest.raises(ConfigError, match=rf"^tags\.{name}"):
        rendered(backend, job(tags={name: "x"}), SITE)


def test_optional_facts_and_a_region_of_the_jobs_own(backend: VertexBackend) -> None:
    plain = rendered(backend, job(), SITE)
    assert "network" not in spec_of(plain)
    assert "encryptionSpec" not in plain["customJob"]
    network, key = "projects/1/global/networks/n", "projects/p/locations/us-east4/keyRings/r/cryptoKeys/k"
    facts = {**SITE, "network": network, "kms_key": key}
    request = rendered(backend, job(resources={"region": "us-east4"}), facts)
    assert request["parent"] == "projects/team-ml/locations/us-east4"
    assert spec_of(request)["network"] == network
    assert request["customJob"]["encryptionSpec"] == {"kmsKeyName": key}


def test_unset_facts_are_placeholders_in_plain_sight(backend: VertexBackend) -> None:
    found = placeholders(rendered(backend, job(secrets=["HF_TOKEN"]), {}))
    assert {name for _, name in found} == {fact.name for fact in backend.facts if fact.required}
    own = placeholders(rendered(backend, job(resources={"image": IMAGE}), {}))
    assert ("vertex", "image") not in own


def test_the_examples_of_the_facts_have_their_own_form(backend: VertexBackend) -> None:
    def check(values: dict[str, str]) -> None:
        check_facts("vertex", backend.facts, values, {name: name for name in values})

    check({fact.name: fact.example for fact in backend.facts})
    check(SITE)
    check({"project": "example.com:team-ml"})
    for name, value in [
        ("project", "123456"), ("region", "europe"), ("bucket", "gs://team-bucket"), ("image", "train"),
        ("service_account", "trainer@example.com"), ("network", "projects/team-ml/global/networks/n"),
        ("kms_key", "cryptoKeys/k"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError):
            check({name: value})


def test_raw_options_are_laid_over_the_request_and_over_every_pool(backend: VertexBackend) -> None:
    raw = options(
        customJob={
            "labels": {"more": "x"},
            "jobSpec": {
                "enableWebAccess": True,
                "network": None,
                "scheduling": {"disableRetries": True},
                "workerPoolSpecs": {
                    "machineSpec": {"machineType": "a2-highgpu-2g"},
                    "diskSpec": {"bootDiskType": "pd-standard"},
                },
            },
        }
    )
    facts = {**SITE, "network": "projects/1/global/networks/n"}
    request = rendered(backend, job(resources={"nodes": 2}, tags={"team": "nlp"}, **raw), facts)
    assert request["customJob"]["labels"]["team"] == "nlp"
    assert request["customJob"]["labels"]["more"] == "x"
    assert spec_of(request)["enableWebAccess"] is True
    assert "network" not in spec_of(request)  # the account's, taken away for this job
    assert spec_of(request)["scheduling"]["disableRetries"] is True
    for pool in spec_of(request)["workerPoolSpecs"]:
        assert pool["machineSpec"]["machineType"] == "a2-highgpu-2g"
        assert pool["machineSpec"]["acceleratorCount"] == 1
        assert pool["diskSpec"] == {"bootDiskType": "pd-standard"}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"parent": "projects/other/locations/us-east4"}, "parent"),
        ({"customJob": None}, "customJob"),
        ({"customJob": {"jobSpec": []}}, "jobSpec"),
        ({"customJob": {"displayName": "x"}}, r"customJob\.displayName"),
        ({"customJob": {"display_name": "x"}}, "write displayName"),
        ({"custom_job": {}}, "write customJob"),
        ({"customJob": {"job_spec": {"scheduling": {}}}}, "write jobSpec"),
        ({"customJob": {"jobSpec": {"workerPoolSpecs": {"replica_count": 9}}}}, "write replicaCount"),
        ({"customJob": {"labels": None}}, r"customJob\.labels"),
        ({"customJob": {"labels": {"finelaunch_job": "x"}}}, "finelaunch_job"),
        ({"customJob": {"labels": {"team": "other"}}}, r"labels\.team"),
        ({"customJob": {"jobSpec": {"scheduling": {"timeout": "9999999s"}}}}, "timeout"),
        ({"customJob": {"jobSpec": {"scheduling": {"strategy": "SPOT"}}}}, "strategy"),
        ({"customJob": {"jobSpec": {"scheduling": {"maxWaitDuration": "0s"}}}}, "maxWaitDuration"),
        ({"customJob": {"jobSpec": {"scheduling": {"restartJobOnWorkerRestart": False}}}}, "restartJob"),
        ({"customJob": {"jobSpec": {"scheduling": None}}}, "scheduling"),
        ({"customJob": {"jobSpec": {"baseOutputDirectory": {"outputUriPrefix": "gs://x"}}}}, "baseOutput"),
        ({"customJob": {"jobSpec": {"workerPoolSpecs": [{}]}}}, "list of pools"),
        ({"customJob": {"jobSpec": {"workerPoolSpecs": None}}}, "list of pools"),
        ({"customJob": {"jobSpec": {"workerPoolSpecs": {"replicaCount": 9}}}}, "replicaCount"),
        ({"customJob": {"jobSpec": {"workerPoolSpecs": {"machineSpec": None}}}}, "machineSpec"),
        ({"customJob": {"jobSpec": {"workerPoolSpecs": {"containerSpec": {"env": []}}}}}, "env"),
        ({"customJob": {"jobSpec": {"workerPoolSpecs": {"containerSpec": {"imageUri": "x"}}}}}, "imageUri"),
        ({"customJob": {"jobSpec": {"workerPoolSpecs": {"diskSpec": {"bootDiskSizeGb": 9}}}}}, "bootDiskSizeGb"),
    ],
)
def test_raw_options_cannot_replace_what_launch_sets(
    raw: dict[str, Any], said: str, backend: VertexBackend
) -> None:
    with pytest.raises(ConfigError, match=r"^backend_options") as refusal:
        rendered(backend, job(tags={"team": "nlp"}, **options(**raw)), SITE)
    assert re.search(said, f"{refusal.value.message} {refusal.value.hint}")


def test_render_is_pure(backend: VertexBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = options(customJob={"jobSpec": {"workerPoolSpecs": {"diskSpec": {"bootDiskType": "pd-ssd"}}}})
    spec = job(resources={"nodes": 2}, secrets=["HF_TOKEN"], tags={"team": "nlp"}, **raw)
    before = spec.model_copy(deep=True)
    first = json.dumps(rendered(backend, spec, SITE))
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "elsewhere")
    monkeypatch.chdir("/")
    assert json.dumps(rendered(VertexBackend(Path("other")), spec, SITE)) == first
    assert spec == before


def test_explain_says_where_everything_is_and_how_long(backend: VertexBackend) -> None:
    rows = explained(backend, job(resources={"max_hours": 2, "nodes": 2}, secrets=["HF_TOKEN"]), SITE)
    assert rows["image"] == SITE["image"]
    assert rows["hardware"] == "2 x a2-highgpu-1g with 1 x NVIDIA_TESLA_A100"
    assert rows["disk"] == "100 GB a machine"
    assert rows["uploaded to"] == f"gs://team-bucket/finelaunch/bundles/{SHA}/ (1.0 MiB in 1 files)"
    assert rows["output"] == "gs://team-bucket/finelaunch/jobs/triage-2/output/"
    assert rows["checkpoints"] == "gs://team-bucket/finelaunch/jobs/triage-1/checkpoints/"
    assert rows["stops after"] == "2 h by itself; Vertex ends it after 2.25 h"
    assert "on demand" in rows["strategy"]
    assert "HF_TOKEN: newest version in Secret Manager" in rows["secrets"]
    assert "way to the internet" in rows["network"]
    assert "started again by Vertex" in rows["assumed"]
    assert "encrypted with" not in rows


def test_explain_says_what_is_unusual(backend: VertexBackend) -> None:
    def rows(facts: dict[str, str] = SITE, **changes: Any) -> dict[str, str]:
        return explained(backend, job(**changes), facts)

    assert "no digest" in rows(resources={"image": "docker.io/team/train:1"})["image"]
    assert "not registry.example.com" in rows(resources={"image": IMAGE})["image"]
    assert "docker/Dockerfile" in rows({})["image"]
    assert "six times" in rows(resources={"spot": True})["strategy"]
    assert "waits 6 h at most" in rows(resources={"max_wait_hours": 6})["strategy"]
    scarce = {"gpu": "H200", "gpus": 8}
    assert "recommends spot" in rows(resources=scarce)["assumed"]
    assert "recommends spot" not in rows(resources={**scarce, "spot": True})["assumed"]
    assert "the bucket is in europe-west4" in rows(resources={"region": "us-east4"})["assumed"]
    assert "the right to read s3://b/t.jsonl" in rows(data={"train": "s3://b/t.jsonl"})["assumed"]
    assert "the right to read" not in rows(data={"train": "gs://b/t.jsonl"})["assumed"]
    assert "VPC Service Controls" in rows(model="gs://b/m", resources={"offline": True})["assumed"]
    pools = {"workerPoolSpecs": {"machineSpec": {"machineType": "a2-highgpu-2g"}}}
    assert "asks for a2-highgpu-2g" in rows(**options(customJob={"jobSpec": pools}))["assumed"]
    network = {**SITE, "network": "projects/1/global/networks/n", "kms_key": "projects/p/locations/r/..."}
    assert (rows(network)["network"], rows(network)["encrypted with"]) == (
        "peered with projects/1/global/networks/n",
        "projects/p/locations/r/...",
    )
    interface = options(customJob={"jobSpec": {"pscInterfaceConfig": {}}})
    assert "Private Service Connect" in rows(**interface)["network"]
