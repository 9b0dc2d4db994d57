"""The SkyPilot backend's requests: what the job file becomes, what is refused, what a person is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.base import Site, placeholders
from backends.skypilot import SkyPilotBackend, machines, places
from launcher.errors import CapacityError, ConfigError, LaunchError, UnsupportedError
from launcher.site import check_facts
from launcher.spec import Resources
from tests.unit.rendering import IMAGE, SHA, bundle, explained, job, rendered

CLOUD = {"store": "s3://team-bucket", "infra": "aws/us-east-1"}
SLURM = {"store": "/shared/finelaunch", "infra": "slurm/hpc/gpu"}
K8S = {"store": "s3://team-bucket", "infra": "k8s"}


@pytest.fixture
def backend(tmp_path: Path) -> SkyPilotBackend:
    return SkyPilotBackend(tmp_path / "home")


def test_a_bucket_is_mounted_whole_and_the_bundle_is_copied(backend: SkyPilotBackend) -> None:
    task = rendered(backend, job(), CLOUD)["task"]
    assert task["file_mounts"] == {
        "/launch/input": f"s3://team-bucket/finelaunch/bundles/{SHA}",
        "/launch/store": {"source": "s3://team-bucket", "mode": "MOUNT"},
    }
    assert task["envs"]["LAUNCH_OUTPUT_DIR"] == "/launch/store/finelaunch/jobs/triage-2/output"
    assert task["envs"]["LAUNCH_CHECKPOINT_DIR"] == "/launch/store/finelaunch/jobs/triage-1/checkpoints"


def test_a_shared_path_needs_no_mounts(backend: SkyPilotBackend) -> None:
    task = rendered(backend, job(), SLURM)["task"]
    assert "file_mounts" not in task
    assert task["envs"]["LAUNCH_INPUT_DIR"] == f"/shared/finelaunch/finelaunch/bundles/{SHA}"
    assert f"PYTHONPATH=/shared/finelaunch/finelaunch/bundles/{SHA}/code" in task["run"]
    assert task["resources"]["infra"] == "slurm/hpc/gpu"


def test_data_in_buckets_is_mounted_where_the_job_is_told(backend: SkyPilotBackend) -> None:
    data = {"train": "gs://data/a/train.jsonl", "eval": "s3://team-bucket/eval.jsonl"}
    task = rendered(backend, job(data=data, model="hf://org/model"), CLOUD)["task"]
    assert json.loads(task["envs"]["LAUNCH_MOUNTS"]) == {
        "gs://data/": "/launch/mounts/gs/data",
        "s3://team-bucket/": "/launch/store",
    }
    mount = task["file_mounts"]["/launch/mounts/gs/data"]
    assert (mount["source"], mount["config"]) == ("gs://data", {"mount": {"read_only": True}})


def test_the_hard_stop_is_a_quarter_of_an_hour_after_the_jobs_own(backend: SkyPilotBackend) -> None:
    script = rendered(backend, job(resources={"image": IMAGE, "max_hours": 2}), K8S)["task"]["run"]
    assert " 8100 " in script


def test_without_an_image_every_node_builds_its_environment_from_the_pins(backend: SkyPilotBackend) -> None:
    task = rendered(backend, job(), CLOUD)["task"]
    assert "-r /launch/input/code/train_entry/requirements.txt" in task["setup"]
    assert "image_id" not in task["resources"]
    own = rendered(backend, job(resources={"image": IMAGE}), CLOUD)["task"]
    assert "setup" not in own
    assert own["resources"]["image_id"] == f"docker:{IMAGE}"


@pytest.mark.parametrize(
    ("region", "facts", "infra"),
    [
        (None, CLOUD, "aws/us-east-1"),
        ("us-west-2", CLOUD, "aws/us-west-2"),
        ("gcp/europe-west4", CLOUD, "gcp/europe-west4"),
        ("us-west-2", {"store": "s3://team-bucket"}, "*/us-west-2"),
        (None, {"store": "s3://team-bucket"}, None),
    ],
)
def test_a_region_refines_or_replaces_the_infra(
    region: str | None, facts: dict[str, str], infra: str | None, backend: SkyPilotBackend
) -> None:
    resources = rendered(backend, job(resources={"region": region}), facts)["task"]["resources"]
    assert resources.get("infra") == infra


def test_a_spot_job_is_managed_and_any_other_takes_its_machine_down(backend: SkyPilotBackend) -> None:
    spot = rendered(backend, job(resources={"spot": True}), CLOUD)
    assert (spot["managed"], spot["task"]["resources"]["use_spot"]) == (True, True)
    assert "autostop" not in spot["task"]["resources"]
    plain = rendered(backend, job(), CLOUD)
    assert plain["managed"] is False
    assert plain["task"]["resources"]["autostop"]["down"] is True
    chosen = rendered(backend, job(backend_options={"skypilot": {"managed": True}}), CLOUD)
    assert chosen["managed"] is True
    with pytest.raises(ConfigError, match=r"skypilot\.managed"):
        rendered(backend, job(resources={"spot": True}, backend_options={"skypilot": {"managed": False}}), CLOUD)


def test_fallback_is_tried_in_order(backend: SkyPilotBackend) -> None:
    spec = job(resources={"gpus": 8, "fallback": ["a100-80gb", "H100:4", "A100:8"]})
    task = rendered(backend, spec, CLOUD)["task"]
    resources = task["resources"]
    assert task["envs"]["LAUNCH_GPUS"] == "4", "those of the smallest"
    assert [r["accelerators"] for r in resources["ordered"]] == ["A100:8", "A100-80GB:8", "H100:4"]
    assert "accelerators" not in resources


def test_secrets_are_names_without_values(backend: SkyPilotBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", value)
    request = rendered(backend, job(secrets=["HF_TOKEN"]), CLOUD)
    assert request["task"]["secrets"] == {"HF_TOKEN": None}
    assert value not in json.dumps(request)


def test_secrets_of_skypilots_server_are_references(backend: SkyPilotBackend) -> None:
    facts = {**CLOUD, "secrets": "server"}
    task = rendered(backend, job(secrets=["HF_TOKEN"]), facts)["task"]
    assert task["managed_secrets"] == ["HF_TOKEN"]
    assert "secrets" not in task
    assert "managed_secrets" not in rendered(backend, job(), facts)["task"]
    assert "API server" in explained(backend, job(secrets=["HF_TOKEN"]), facts)["secrets"]


@pytest.mark.parametrize(
    ("resources", "facts", "field"),
    [
        ({"spot": True}, SLURM, "resources.spot"),
        ({"disk_gib": 100}, SLURM, "resources.disk_gib"),
        ({"disk_gib": 100}, {**CLOUD, "infra": "lambda"}, "resources.disk_gib"),
        ({}, {**CLOUD, "infra": "hyperbolic"}, r"backend_options\.skypilot\.managed"),
        ({"max_wait_hours": 2}, CLOUD, "resources.max_wait_hours"),
        ({"offline": True, "image": IMAGE}, CLOUD, "resources.offline"),
        ({"offline": True}, K8S, "resources.offline"),
        ({"offline": True, "image": IMAGE}, K8S, "model.id"),
    ],
)
def test_what_the_place_cannot_do_is_refused_by_name(
    resources: dict[str, Any], facts: dict[str, str], field: str, backend: SkyPilotBackend
) -> None:
    with pytest.raises(UnsupportedError, match=f"^{field}") as refusal:
        rendered(backend, job(resources=resources), facts)
    assert refusal.value.hint


def test_tags_are_refused_where_skypilot_would_drop_them(backend: SkyPilotBackend) -> None:
    for infra in ("slurm/hpc", "runpod", "lambda/us-east-1"):
        with pytest.raises(UnsupportedError, match=r"^tags"):
            rendered(backend, job(tags={"team": "nlp"}), {**CLOUD, "infra": infra})
    for facts in (CLOUD, K8S, {**CLOUD, "infra": "ssh/pool"}, {"store": "s3://team-bucket"}):
        resources = rendered(backend, job(tags={"team": "nlp"}), facts)["task"]["resources"]
        assert resources["labels"] == {"team": "nlp"}


@pytest.mark.parametrize("name", ["3d", "a---b"])
def test_a_name_that_no_cluster_can_have_is_refused(name: str, backend: SkyPilotBackend) -> None:
    with pytest.raises(UnsupportedError, match=r"^name"):
        rendered(backend, job(name=name), CLOUD)


@pytest.mark.parametrize("changes", [{"env": {"PYTHONPATH": "/x"}}, {"secrets": ["LAUNCH_JOB_ID"]}])
def test_a_variable_of_launchs_own_is_refused_not_overwritten(
    changes: dict[str, Any], backend: SkyPilotBackend
) -> None:
    with pytest.raises(ConfigError, match=r"^(env\.PYTHONPATH|secrets\.LAUNCH_JOB_ID)"):
        rendered(backend, job(**changes), CLOUD)


def test_an_offline_job_runs_on_an_own_cluster_with_an_image_and_its_model_along(backend: SkyPilotBackend) -> None:
    spec = job(model="model", resources={"offline": True, "image": IMAGE})
    task = rendered(backend, spec, SLURM, bundle("model/config.json"))["task"]
    assert task["envs"]["LAUNCH_OFFLINE"] == "1"
    data = {"train": "hf://datasets/org/rows"}
    with pytest.raises(UnsupportedError, match=r"^data\.train"):
        rendered(backend, job(model="gs://b/m", data=data, resources={"offline": True, "image": IMAGE}), SLURM)


def test_kubernetes_limits_the_wait(backend: SkyPilotBackend) -> None:
    task = rendered(backend, job(resources={"max_wait_hours": 1.5}), K8S)["task"]
    assert task["config"] == {"kubernetes": {"provision_timeout": 5400}}
    at_once = rendered(backend, job(resources={"max_wait_hours": 1e-9}), K8S)["task"]
    assert at_once["config"]["kubernetes"]["provision_timeout"] == 1  # 0 would be something else to SkyPilot


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"name": "x"}, "name"),
        ({"envs": {"LAUNCH_JOB_ID": "x"}}, r"envs\.LAUNCH_JOB_ID"),
        ({"envs": None}, "envs"),
        ({"secrets": {"TOKEN": "value"}}, "secrets"),
        ({"file_mounts": {places.STORE: "s3://other"}}, "file_mounts"),
        ({"resources": None}, "resources"),
        ({"resources": {"accelerators": "H100:1"}}, r"resources\.accelerators"),
        ({"resources": {"use_spot": True}}, r"resources\.use_spot"),
        ({"resources": {"infra": "slurm"}}, r"resources\.infra"),
        ({"resources": {"cloud": "gcp"}}, r"resources\.cloud"),
        ({"resources": {"disk_size": 9}}, r"resources\.disk_size"),
        ({"resources": {"labels": {"team": "other"}}}, r"resources\.labels\.team"),
        ({"resources": {"labels": None}}, r"resources\.labels"),
        ({"resources": {"autostop": False}}, r"resources\.autostop"),
        ({"resources": {"autostop": {"down": False}}}, r"resources\.autostop\.down"),
        ({"envs": {"COLOUR": "red"}}, r"envs\.COLOUR"),
        ({"envs": {"PYTHONPATH": "/x"}}, r"envs\.PYTHONPATH"),
        ({"file_mounts": {"/launch/mounts/gs/data": "gs://other"}}, "/launch/mounts/gs/data"),
        ({"setup": "true"}, "setup"),
        ({"config": {"kubernetes": {"provision_timeout": 1}}}, "provision_timeout"),
    ],
)
def test_raw_options_cannot_replace_what_launch_sets(
    options: dict[str, Any], path: str, backend: SkyPilotBackend
) -> None:
    said = {"env": {"COLOUR": "blue"}, "tags": {"team": "nlp"}, "data": {"train": "gs://data/train.jsonl"}}
    with pytest.raises(ConfigError, match=path):
        rendered(backend, job(**said, backend_options={"skypilot": options}), CLOUD)


def test_raw_options_are_laid_over_the_task(backend: SkyPilotBackend) -> None:
    options = {
        "resources": {"disk_tier": "high", "autostop": {"idle_minutes": 30}, "labels": {"more": "x"}},
        "config": {"gcp": {"vpc_name": "v"}},
        "setup": "apt-get install -y git",
    }
    spec = job(backend_options={"skypilot": options}, tags={"team": "nlp"}, resources={"image": IMAGE})
    task = rendered(backend, spec, CLOUD)["task"]
    assert (task["resources"]["disk_tier"], task["resources"]["accelerators"]) == ("high", "A100:1")
    assert task["resources"]["autostop"] == {"idle_minutes": 30, "down": True}
    assert task["resources"]["labels"] == {"team": "nlp", "more": "x"}
    assert task["setup"] == "apt-get install -y git"
    assert "30 idle minutes" in explained(backend, spec, CLOUD)["stops after"]
    assert task["config"] == {"gcp": {"vpc_name": "v"}}


def test_an_unset_store_is_a_placeholder_and_an_unset_infra_is_left_out(backend: SkyPilotBackend) -> None:
    request = rendered(backend, job(), {})
    assert placeholders(request) == [("skypilot", "store")]
    assert "infra" not in request["task"]["resources"]


def test_the_examples_of_the_facts_have_their_own_form(backend: SkyPilotBackend) -> None:
    for values in ({f.name: f.example for f in backend.facts}, CLOUD, SLURM, K8S, {"infra": "k8s/a:b/cluster"}):
        check_facts("skypilot", backend.facts, values, {name: name for name in values})
    for wrong in ({"store": "az://x"}, {"store": "s3://bucket/folder"}, {"infra": "mars"}, {"infra": "aws/a/b/c"}):
        with pytest.raises(ConfigError):
            check_facts("skypilot", backend.facts, wrong, {name: name for name in wrong})


def test_offers_are_what_was_asked_for_then_the_same_with_more_memory() -> None:
    found = list(machines.offers(Resources(gpu="a100", gpus=4, nodes=2, spot=True, region="r")))
    assert [offer.instance_type for offer in found] == ["A100:4", "A100-80GB:4"]
    assert (found[0].gpu_memory_gib, found[0].nodes, found[0].spot, found[0].region) == (40, 2, True, "r")
    assert found[0].hourly is None
    assert next(iter(machines.offers(Resources()))).gpu == machines.DEFAULT


@pytest.mark.parametrize("name", ["NVIDIA A100", "a100-40GB", "A100"])
def test_a_gpus_other_names_are_known(name: str) -> None:
    assert next(iter(machines.offers(Resources(gpu=name)))).gpu == "A100"


@pytest.mark.parametrize(
    ("resources", "error", "said"),
    [
        ({"gpu": "H1000"}, UnsupportedError, "did you mean H100"),
        ({"gpu": "V100"}, UnsupportedError, "there are:"),
        ({"gpu": "A100:8"}, UnsupportedError, "resources.gpus=8"),
        ({"gpu": "H100", "gpus": 32}, CapacityError, "resources.gpus=8"),
        ({"gpu": "H100", "fallback": ["A100:x"]}, UnsupportedError, "A100-80GB:8"),
    ],
)
def test_impossible_hardware_is_refused_with_a_way_out(
    resources: dict[str, Any], error: type[LaunchError], said: str
) -> None:
    with pytest.raises(error) as refusal:
        list(machines.offers(Resources(**resources)))
    assert said in (refusal.value.hint or "")


def test_an_odd_number_of_gpus_is_noted() -> None:
    assert "of your own" in (next(iter(machines.offers(Resources(gpu="H100", gpus=3)))).note or "")


def test_explain_says_where_everything_is_and_how_long(backend: SkyPilotBackend) -> None:
    rows = explained(backend, job(resources={"max_hours": 2, "nodes": 2}, secrets=["HF_TOKEN"]), CLOUD)
    assert rows["bundle"] == f"s3://team-bucket/finelaunch/bundles/{SHA} (1.0 MiB)"
    assert rows["output"] == "s3://team-bucket/finelaunch/jobs/triage-2/output"
    assert rows["checkpoints"] == "s3://team-bucket/finelaunch/jobs/triage-1/checkpoints"
    assert rows["hardware"] == "2 x A100:1 on aws/us-east-1"
    assert "2.25 hours" in rows["stops after"]
    assert "no hard stop" in rows["stops after"]
    assert "HF_TOKEN" in rows["secrets"]
    assert "580" in rows["assumed"]
    assert "16 GB" not in rows["assumed"]
    assert "5 idle minutes" in rows["stops after"]


def test_explain_says_what_it_counts_on(backend: SkyPilotBackend) -> None:
    slurm = explained(backend, job(), SLURM)
    assert "/shared/finelaunch is at the same path" in slurm["assumed"]
    assert "16 GB a GPU" in slurm["assumed"]
    assert "FUSE" not in slurm["assumed"]
    assert "FUSE and sudo" in explained(backend, job(data={"train": "gs://data/t.jsonl"}), SLURM)["assumed"]
    anywhere = explained(backend, job(tags={"a": "b"}), {"store": "s3://team-bucket"})
    assert "resources.region" in anywhere["assumed"]
    spot = explained(backend, job(resources={"spot": True}), CLOUD)
    assert "counted anew" in spot["stops after"]
    assert "controller" in spot["spot"]
    waits = [
        explained(backend, spec, facts)["waits at most"]
        for spec, facts in (
            (job(), CLOUD),
            (job(), SLURM),
            (job(resources={"max_wait_hours": 2}), K8S),
            (job(resources={"spot": True}), CLOUD),
        )
    ]
    assert [text.split()[0] for text in waits] == ["not", "2", "2", "without"]


def test_a_path_is_no_store_for_the_machines_of_a_cloud(backend: SkyPilotBackend) -> None:
    path, bucket = Site(backend="skypilot", facts=SLURM), Site(backend="skypilot", facts=CLOUD)
    assert backend.obstacle(None, path) is None
    assert "/shared/finelaunch" in (backend.obstacle("aws/us-east-1", path) or "")
    anywhere = Site(backend="skypilot", facts={"store": "/shared/finelaunch"})
    assert "whichever cloud" in (backend.obstacle(None, anywhere) or "")
    assert backend.obstacle(None, bucket) is None
    assert backend.obstacle("slurm/hpc", bucket) is None


def test_render_is_pure(backend: SkyPilotBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = job(secrets=["HF_TOKEN"], tags={"team": "nlp"}, backend_options={"skypilot": {"managed": True}})
    before = spec.model_copy(deep=True)
    first = rendered(backend, spec, CLOUD)
    monkeypatch.setenv("HF_TOKEN", "value")
    monkeypatch.chdir("/")
    assert json.dumps(rendered(backend, spec, CLOUD)) == json.dumps(first)
    assert spec == before


def test_explain_warns_of_an_image_that_can_change(backend: SkyPilotBackend) -> None:
    assert "no digest" in explained(backend, job(resources={"image": "team/train:latest"}), CLOUD)["image"]
    assert explained(backend, job(resources={"image": IMAGE}), CLOUD)["image"] == IMAGE
