"""The SageMaker backend: what the job file becomes, what is refused, and what botocore's model says of it."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.base import Bundle, BundleFile, Plan, Site, placeholders
from backends.sagemaker import SageMakerBackend, checks, images, machines, places
from backends.sagemaker.backend import LEAST_PENDING_S, MOST_TYPES
from cost.estimate import estimate
from launcher.errors import BackendNotInstalledError, CapacityError, ConfigError, LaunchError, UnsupportedError
from launcher.site import check_facts
from launcher.spec import JobSpec, Resources
from train_entry.folders import mounted

SHA = "ab" * 32
TOKEN, LINEAGE = "triage-2", "triage-1"
DIGEST = "sha256:" + "0123456789abcdef" * 4
FACTS = {"role": "arn:aws:iam::123456789012:role/training", "bucket": "team-bucket", "region": "eu-west-1"}
VPC = {"subnets": "subnet-0a1b,subnet-0c2d", "security_groups": "sg-0a1b"}
ECR_IMAGE = f"123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/train@{DIGEST}"
OTHER_IMAGE = f"registry.example.com/team/train@{DIGEST}"


@pytest.fixture
def backend(tmp_path: Path) -> SageMakerBackend:
    return SageMakerBackend(tmp_path / "home")


@pytest.fixture(scope="module")
def model() -> Any:
    """botocore's own model of the service."""
    loaders, models = pytest.importorskip("botocore.loaders"), pytest.importorskip("botocore.model")
    return models.ServiceModel(loaders.Loader().load_service_model("sagemaker", "service-2"), "sagemaker")


@pytest.fixture
def real(backend: SageMakerBackend, model: Any) -> SageMakerBackend:
    """The backend with botocore behind it."""
    return backend


def job(**changes: Any) -> JobSpec:
    resources = {"gpu": "L4", **changes.pop("resources", {})}
    return JobSpec.model_validate(
        {
            "name": "triage", "model": "org/model", "task": "classification", "data": {"train": "train.jsonl"},
            "resources": resources, **changes,
        }
    )  # fmt: skip


def bundle(*paths: str) -> Bundle:
    files = (BundleFile(path=path, size=2**20, sha256=SHA, source=Path(path)) for path in ("job.json", *paths))
    return Bundle(sha256=SHA, files=tuple(files))


def rendered(
    backend: SageMakerBackend, spec: JobSpec, facts: Mapping[str, str] = FACTS, taken: Bundle | None = None,
    owner: str | None = None,
) -> Any:  # fmt: skip
    offer = next(iter(backend.offers(spec.resources)))
    site = Site(backend="sagemaker", facts=facts, owner=owner)
    return backend.render(spec, offer, taken or bundle(), site, TOKEN, LINEAGE)


def explained(backend: SageMakerBackend, spec: JobSpec, facts: Mapping[str, str] = FACTS) -> dict[str, str]:
    offer = next(iter(backend.offers(spec.resources)))
    plan = Plan(
        job=spec, offer=offer, bundle=bundle(), site=Site(backend="sagemaker", facts=facts),
        token=TOKEN, lineage=LINEAGE, request=rendered(backend, spec, facts), estimate=estimate(offer, 24.0),
    )  # fmt: skip
    return dict(backend.explain(plan))


def test_the_token_is_the_name_and_python_gets_the_signals(backend: SageMakerBackend) -> None:
    request = rendered(backend, job())
    assert request["TrainingJobName"] == "triage-2"
    assert request["AlgorithmSpecification"]["ContainerEntrypoint"][0] == "python3"
    assert "HyperParameters" not in request
    assert request["Environment"]["PYTHONPATH"] == "/opt/ml/input/data/bundle/code"


def test_checkpoints_belong_to_the_lineage_and_the_output_to_the_job(backend: SageMakerBackend) -> None:
    request, rows = rendered(backend, job()), explained(backend, job())
    assert request["CheckpointConfig"]["S3Uri"] == "s3://team-bucket/finelaunch/jobs/triage-1/checkpoints"
    assert request["OutputDataConfig"]["S3OutputPath"] == "s3://team-bucket/finelaunch/jobs"
    assert rows["output"] == "s3://team-bucket/finelaunch/jobs/triage-2/output/model/"


def test_nothing_but_checkpoints_and_the_model_is_written_where_it_is_uploaded(backend: SageMakerBackend) -> None:
    env = rendered(backend, job(model={"id": "org/model", "cache": True}))["Environment"]
    assert {env[name].split("/")[1] for name in ("HF_HOME", "LAUNCH_WORK_DIR", "LAUNCH_CACHE_DIR")} == {"tmp"}
    assert env["LAUNCH_MODEL_CACHE"].startswith(f"{env['LAUNCH_CHECKPOINT_DIR']}/")
    chosen = rendered(backend, job(env={"HF_HOME": "/mine"}))
    assert chosen["Environment"]["HF_HOME"] == "/mine"


def test_data_and_model_in_s3_are_channels_where_the_job_looks(
    backend: SageMakerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"train": "s3://data/a/train.jsonl", "eval": "gs://data/eval.jsonl"}
    request = rendered(backend, job(data=data, model="s3://models/llama"))
    found = {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in request["InputDataConfig"]}
    assert found == {
        "bundle": f"s3://team-bucket/finelaunch/bundles/{SHA}/",
        "train": "s3://data/a/train.jsonl",
        "model": "s3://models/llama/",  # and nothing of s3://models/llama-2
    }
    monkeypatch.setenv("LAUNCH_MOUNTS", request["Environment"]["LAUNCH_MOUNTS"])
    assert mounted("s3://models/llama") == Path(places.CHANNELS) / "model"
    assert mounted("s3://data/a/train.jsonl") == Path(places.CHANNELS) / "train"
    assert mounted("gs://data/eval.jsonl") is None


def test_one_object_used_twice_is_one_channel(backend: SageMakerBackend) -> None:
    data = {"train": "s3://data/rows.jsonl", "eval": "s3://data/rows.jsonl"}
    names = [c["ChannelName"] for c in rendered(backend, job(data=data))["InputDataConfig"]]
    assert names == ["bundle", "train"]


@pytest.mark.parametrize(
    ("resources", "times"),
    [
        ({"max_hours": 4}, {"MaxRuntimeInSeconds": 15300}),
        ({"max_hours": 4, "max_wait_hours": 2}, {"MaxRuntimeInSeconds": 15300, "MaxPendingTimeInSeconds": 7200}),
        ({"max_hours": 4, "spot": True}, {"MaxRuntimeInSeconds": 15300, "MaxWaitTimeInSeconds": 15300 + 86400}),
        (
            {"max_hours": 4, "spot": True, "max_wait_hours": 0.1},
            {"MaxRuntimeInSeconds": 15300, "MaxWaitTimeInSeconds": 15660},
        ),
    ],
)
def test_time_limits(resources: dict[str, Any], times: dict[str, int], backend: SageMakerBackend) -> None:
    request = rendered(backend, job(resources=resources))
    assert request["StoppingCondition"] == times
    assert request.get("EnableManagedSpotTraining", False) == resources.get("spot", False)


def test_fallback_is_a_list_in_order_in_place_of_the_type(backend: SageMakerBackend) -> None:
    spec = job(resources={"nodes": 2, "fallback": ["ml.g5.2xlarge", "ml.g6.2xlarge", "ml.g6e.2xlarge"]})
    request = rendered(backend, spec)
    found = request["ResourceConfig"]
    types = [one["InstanceType"] for one in found["InstancePreferences"]]
    assert types == ["ml.g6.2xlarge", "ml.g5.2xlarge", "ml.g6e.2xlarge"]
    assert "InstanceType" not in found
    assert found["InstanceCount"] == 2
    assert request["Environment"]["LAUNCH_GPUS"] == "1"


def test_training_is_told_the_gpus_of_the_smallest_machine_that_it_may_get(backend: SageMakerBackend) -> None:
    for fallback, gpus in (((), "8"), (["ml.g5.12xlarge"], "4"), (["ml.g5.12xlarge", "ml.new.2xlarge"], "0")):
        spec = job(resources={"gpus": 8, "fallback": fallback})
        assert rendered(backend, spec)["Environment"]["LAUNCH_GPUS"] == gpus
    raw = {"sagemaker": {"ResourceConfig": {"InstanceType": "ml.m5.xlarge"}}}
    assert rendered(backend, job(backend_options=raw))["Environment"]["LAUNCH_GPUS"] == "0", "of a raw field's"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"resources": {"region": "mars"}}, "resources.region"),
        ({"resources": {"region": "us-mars-9"}}, "resources.region"),
        ({"resources": {"max_hours": 672}}, "resources.max_hours"),
        ({"resources": {"max_wait_hours": 0.25}}, "resources.max_wait_hours"),
        ({"resources": {"fallback": ["ml.g5.2xlarge"], "spot": True}}, "resources.fallback"),
        ({"resources": {"fallback": ["a", "b", "c", "d", "e"]}}, "resources.fallback"),
        ({"resources": {"offline": True}, "secrets": ["HF_TOKEN"]}, "secrets"),
        ({"resources": {"offline": True}}, "model.id"),
        ({"tags": {"team": "a|b"}}, "tags.team"),
        ({"tags": {"AWS:team": "a"}}, "tags.AWS:team"),
        ({"tags": {"team": "x" * 257}}, "tags.team"),
    ],
)
def test_what_sagemaker_cannot_say_is_refused_by_name(
    changes: dict[str, Any], field: str, backend: SageMakerBackend
) -> None:
    with pytest.raises(UnsupportedError, match=f"^{re.escape(field)}:") as refusal:
        rendered(backend, job(**changes))
    assert refusal.value.hint


def test_an_offline_job_is_isolated_and_reads_what_is_mounted(backend: SageMakerBackend) -> None:
    request = rendered(backend, job(model="s3://models/llama", resources={"offline": True}))
    assert request["EnableNetworkIsolation"] is True
    assert request["Environment"]["LAUNCH_OFFLINE"] == "1"
    in_bundle = rendered(backend, job(model="m", resources={"offline": True}), taken=bundle("model/config.json"))
    assert in_bundle["EnableNetworkIsolation"] is True


def test_secrets_are_references(backend: SageMakerBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "hf_" + "x" * 34
    monkeypatch.setenv("HF_TOKEN", value)
    request = rendered(backend, job(secrets=["HF_TOKEN"]))
    assert json.loads(request["Environment"]["LAUNCH_SECRETS"]) == {"HF_TOKEN": "aws-sm://eu-west-1/HF_TOKEN"}
    assert value not in json.dumps(request)


def test_tags_say_whose_job_it_is_and_nobody_elses_are_changed(backend: SageMakerBackend) -> None:
    request = rendered(backend, job(tags={"Équipe": "süpport team"}), owner="ada")
    assert {tag["Key"]: tag["Value"] for tag in request["Tags"]} == {
        "finelaunch:job": "triage-2", "finelaunch:lineage": "triage-1", "finelaunch:bundle": SHA,
        "finelaunch:owner": "ada", "Équipe": "süpport team",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="finelaunch:job"):
        rendered(backend, job(tags={"finelaunch:job": "x"}))
    with pytest.raises(ConfigError, match="owner") as refusal:
        rendered(backend, job(), owner="a|b")
    assert "LAUNCH_OWNER" in (refusal.value.hint or "")


@pytest.mark.parametrize(
    ("region", "image"),
    [
        ("us-west-2", "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch:"),
        ("eu-south-1", "692866216735.dkr.ecr.eu-south-1.amazonaws.com/pytorch:"),
        ("cn-north-1", "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/pytorch:"),
    ],
)
def test_the_image_is_aws_own_in_the_jobs_region(region: str, image: str, backend: SageMakerBackend) -> None:
    request = rendered(backend, job(resources={"region": region}))
    assert request["AlgorithmSpecification"]["TrainingImage"].startswith(image)
    assert "TrainingImageConfig" not in request["AlgorithmSpecification"]


def test_an_image_outside_of_ecr_is_pulled_through_the_vpc(backend: SageMakerBackend) -> None:
    own = rendered(backend, job(resources={"image": ECR_IMAGE}))
    assert own["AlgorithmSpecification"]["TrainingImage"] == ECR_IMAGE
    assert "VpcConfig" not in own
    other = rendered(backend, job(), {**FACTS, **VPC, "image": OTHER_IMAGE})
    assert other["AlgorithmSpecification"]["TrainingImageConfig"] == {"TrainingRepositoryAccessMode": "Vpc"}
    assert other["VpcConfig"] == {"Subnets": ["subnet-0a1b", "subnet-0c2d"], "SecurityGroupIds": ["sg-0a1b"]}
    unset = rendered(backend, job(resources={"image": OTHER_IMAGE}))
    assert placeholders(unset) == [("sagemaker", "subnets"), ("sagemaker", "security_groups")]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"TrainingJobName": "x"}, "TrainingJobName"),
        ({"Tags": []}, "Tags"),
        ({"InputDataConfig": []}, "InputDataConfig"),
        ({"Environment": {"LAUNCH_JOB_ID": "x"}}, r"Environment\.LAUNCH_JOB_ID"),
        ({"Environment": None}, "Environment"),
        ({"OutputDataConfig": {"CompressionType": "GZIP"}}, r"OutputDataConfig\.CompressionType"),
        ({"AlgorithmSpecification": None}, "AlgorithmSpecification"),
        ({"EnableNetworkIsolation": False}, "EnableNetworkIsolation"),
    ],
)
def test_raw_options_cannot_replace_what_launch_sets(
    options: dict[str, Any], path: str, backend: SageMakerBackend
) -> None:
    with pytest.raises(ConfigError, match=path):
        rendered(backend, job(backend_options={"sagemaker": options}))


def test_unset_facts_are_placeholders_and_the_examples_have_their_own_form(backend: SageMakerBackend) -> None:
    request = rendered(backend, job(), {})
    assert {fact for _, fact in placeholders(request)} == {f.name for f in backend.facts if f.required}
    check_facts("sagemaker", backend.facts, {f.name: f.example for f in backend.facts}, dict.fromkeys(FACTS, ""))


def test_offers_are_the_wanted_number_of_gpus_then_the_fewest_above() -> None:
    found = list(machines.offers("sagemaker", Resources(gpu="nvidia l4", nodes=2, spot=True, region="r")))
    assert (found[0].instance_type, found[0].gpus, found[0].note) == ("ml.g6.2xlarge", 1, None)
    assert (found[0].nodes, found[0].spot, found[0].region, found[0].hourly) == (2, True, "r", None)
    assert [o.gpus for o in found] == sorted(o.gpus for o in found)
    tight = next(o for o in found if o.instance_type == "ml.g6.xlarge")
    assert "16 GiB of host memory" in (tight.note or "")
    single = next(iter(machines.offers("sagemaker", Resources(gpu="A100"))))
    assert (single.instance_type, single.gpus) == ("ml.p4d.24xlarge", 8)
    assert "all 8 are used and paid" in (single.note or "")


def test_a_disk_is_a_machine_that_has_it(backend: SageMakerBackend) -> None:
    spec = job(resources={"disk_gib": 500})
    assert rendered(backend, spec)["ResourceConfig"]["InstanceType"] == "ml.g6.4xlarge"
    assert "VolumeSizeInGB" not in rendered(backend, spec)["ResourceConfig"], "it brings its own disk"
    assert explained(backend, spec)["disk"].startswith("600 GB")


@pytest.mark.parametrize(
    ("resources", "error", "said"),
    [
        ({"gpu": "H1000"}, CapacityError, "did you mean H100"),
        ({"gpu": "V100"}, CapacityError, "there are:"),
        ({"gpu": "H100", "gpus": 16}, CapacityError, "resources.gpus=8"),
        ({"gpu": "A100", "disk_gib": 9000}, UnsupportedError, "resources.disk_gib=7450"),
    ],
)
def test_impossible_hardware_is_refused_with_a_way_out(
    resources: dict[str, Any], error: type[LaunchError], said: str
) -> None:
    with pytest.raises(error) as refusal:
        list(machines.offers("sagemaker", Resources(**resources)))
    assert said in (refusal.value.hint or "")


def test_explain_says_where_how_long_and_what_is_assumed(backend: SageMakerBackend) -> None:
    rows = explained(backend, job(resources={"gpu": "H100", "nodes": 2, "max_hours": 2}, secrets=["HF_TOKEN"]))
    assert rows["hardware"] == "2 x ml.p5.4xlarge (1 x H100 80 GiB)"
    assert "2.25 h in all" in rows["stops after"]
    assert "no digest" in rows["image"]
    assert "HF_TOKEN" in rows["secrets"]
    assert "the bucket is in eu-west-1" in rows["assumed"]
    groups = [{"InstanceType": "ml.g6.2xlarge", "InstanceCount": 1, "InstanceGroupName": "a"}]
    options = {"ResourceConfig": {"InstanceType": None, "InstanceCount": None, "InstanceGroups": groups}}
    assert "ml.g6.2xlarge (1 x L4" in explained(backend, job(backend_options={"sagemaker": options}))["hardware"]


@pytest.mark.parametrize("facts", [FACTS, {**FACTS, **VPC, "kms_key": "alias/jobs", "image": OTHER_IMAGE}, {}])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resources": {"gpu": "H100", "gpus": 8, "nodes": 2, "max_wait_hours": 1}},
        {"resources": {"spot": True}, "env": {"COLOUR": "blue\nred"}, "tags": {"Équipe": "süpport team"}},
        {"resources": {"fallback": ["ml.g5.2xlarge"]}, "secrets": ["HF_TOKEN"]},
        {"resources": {"offline": True}, "model": "s3://models/llama", "data": {"train": "s3://data/rows.jsonl"}},
    ],
)
def test_botocore_takes_every_kind_of_request(
    changes: dict[str, Any], facts: dict[str, str], real: SageMakerBackend
) -> None:
    request = rendered(real, job(**copy.deepcopy(changes)), facts, owner="ada")
    before = copy.deepcopy(request)
    real.validate(request)
    assert request == before


PREFERRED = {"InstanceType": None, "InstancePreferences": [{"InstanceType": "ml.g6.xlarge"}] * 2}


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({}, {"ResourceConfig": {"InstanceTpe": "x"}}, "ResourceConfig.*InstanceTpe"),
        ({}, {"RoleArn": None}, "RoleArn"),
        ({}, {"ResourceConfig": {"InstanceCount": "2"}}, r"ResourceConfig\.InstanceCount"),
        ({}, {"ResourceConfig": {"InstanceType": "ml.g6.2xlrge"}}, "did you mean ml.g6.2xlarge"),
        ({}, {"ResourceConfig": {"KeepAlivePeriodInSeconds": 21601}}, "Seconds: 21601, 21600 at most"),
        ({}, {"ResourceConfig": PREFERRED}, r"InstancePreferences: ml\.g6\.xlarge stands there twice"),
        ({"resources": {"spot": True}}, {"ResourceConfig": PREFERRED}, "not go with EnableManagedSpotTraining"),
        ({}, {"VpcConfig": {"Subnets": ["s"] * 17, "SecurityGroupIds": ["g"]}}, "Subnets: 17 entries, 16 at"),
        ({}, {"ResourceConfig": {"InstanceType": None}}, "here is nothing"),
        ({}, {"ResourceConfig": {"VolumeKmsKeyId": "alias/x"}}, r"VolumeKmsKeyId.*ml\.g6\.2xlarge"),
        ({"resources": {"fallback": ["ml.g5.huge"]}}, {}, r"InstancePreferences\[1\]\.InstanceType"),
        ({"env": {"LONG": "x" * 513}}, {}, r"Environment\.LONG: 513 characters, 512 at most"),
        ({"env": {f"V{n}": "" for n in range(100)}}, {}, r"Environment: 1\d\d entries, 100 at most"),
        ({"secrets": [f"SECRET_NAME_{n}" for n in range(20)]}, {}, "LAUNCH_SECRETS.*names under secrets"),
        ({"tags": {f"t{n}": "" for n in range(48)}}, {}, "Tags: 51 entries, 50 at most"),
        ({}, {"RoleArn": "arn:aws:iam::1:role/x-and-more"}, "RoleArn.*does not match"),
        ({}, {"VpcConfig": {"Subnets": ["a_b"], "SecurityGroupIds": ["sg-1"]}}, r"VpcConfig\.Subnets\[0\]"),
        ({"resources": {"image": OTHER_IMAGE}}, {"VpcConfig": None}, "VpcConfig: is missing"),
        (
            {"resources": {"image": OTHER_IMAGE}}, {"AlgorithmSpecification": {"TrainingImageConfig": None}},
            "must be Vpc",
        ),
        ({"resources": {"spot": True}}, {"StoppingCondition": {"MaxWaitTimeInSeconds": None}}, "is missing; a"),
        ({"resources": {"spot": True}}, {"StoppingCondition": {"MaxWaitTimeInSeconds": 60}}, "counts the run"),
        ({}, {"StoppingCondition": {"MaxRuntimeInSeconds": 28 * 86400 + 1}}, "28 days"),
    ],
)  # fmt: skip
def test_what_the_service_would_refuse_is_named(
    changes: dict[str, Any], options: dict[str, Any], said: str, real: SageMakerBackend
) -> None:
    request = rendered(real, job(**copy.deepcopy(changes), backend_options={"sagemaker": options}))
    with pytest.raises(ConfigError) as refusal:
        real.validate(request)
    assert re.search(said, "\n".join(refusal.value.problems)), refusal.value.problems
    assert refusal.value.hint


def test_validation_reads_nothing_of_the_users_aws_configuration(
    real: SageMakerBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("not a configuration")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "gone")
    real.validate(rendered(real, job()))


def test_without_botocore_validate_names_the_extra(
    backend: SageMakerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks._shape.cache_clear()
    monkeypatch.setitem(sys.modules, "botocore.loaders", None)
    with pytest.raises(BackendNotInstalledError) as refusal:
        backend.validate(rendered(backend, job()))
    assert refusal.value.hint == "pip install 'finelaunch[sagemaker]'"


def patterns(shape: Any) -> Iterator[str]:
    """Every pattern under a shape of the model."""
    inner = {
        "structure": lambda: shape.members.values(), "list": lambda: [shape.member],
        "map": lambda: [shape.key, shape.value],
    }.get(shape.type_name, list)()  # fmt: skip
    for one in inner:
        yield from patterns(one)
    if "pattern" in shape.metadata:
        yield shape.metadata["pattern"]


def test_python_can_read_every_pattern_of_the_request(model: Any) -> None:
    found = set(patterns(model.operation_model("CreateTrainingJob").input_shape))
    assert len(found) > 20
    # A pattern that can't be read fits every text; none of these does.
    assert [p for p in found if checks._fits("\0\n", p)] == [r"[\S\s]*"]


def test_what_is_written_down_here_is_what_the_model_says(model: Any) -> None:
    assert set(machines.BY_NAME) <= set(model.shape_for("TrainingInstanceType").enum)
    assert model.shape_for("InstancePreferenceList").metadata["max"] == MOST_TYPES
    assert model.shape_for("MaxPendingTimeInSeconds").metadata["min"] == LEAST_PENDING_S
    assert {model.shape_for(f"Tag{part}").metadata["pattern"] for part in ("Key", "Value")} == {checks.TAG}


def test_every_region_of_the_image_is_one_of_aws_with_its_domain(model: Any) -> None:
    from botocore.loaders import Loader

    partitions = Loader().load_data("partitions")["partitions"]
    for region in images.ACCOUNTS:
        own = [p for p in partitions if re.match(p["regionRegex"], region)]
        assert [p["outputs"]["dnsSuffix"] for p in own] == [images.domain(region)], region
