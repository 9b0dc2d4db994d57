"""Vertex's machines, and what its own CustomJob message and the rules beyond it say of a request: offline."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.vertex import VertexBackend, machines
from launcher.errors import BackendNotInstalledError, CapacityError, ConfigError, LaunchError, UnsupportedError
from launcher.spec import Resources
from tests.unit.rendering import DIGEST, IMAGE, job, rendered

SITE = {
    "project": "team-ml",
    "region": "europe-west4",
    "bucket": "team-bucket",
    "service_account": "trainer@team-ml.iam.gserviceaccount.com",
    "image": f"europe-west4-docker.pkg.dev/team-ml/finelaunch/train@{DIGEST}",
}
KEY = "projects/p/locations/{}/keyRings/r/cryptoKeys/k"
SPEC, POOL = "customJob.jobSpec", "customJob.jobSpec.workerPoolSpecs[0]"


@pytest.fixture
def backend(tmp_path: Path) -> VertexBackend:
    return VertexBackend(tmp_path / "home")


def offered(**resources: Any) -> list[str]:
    return [offer.instance_type for offer in machines.offers("vertex", Resources(**resources))]


@pytest.mark.parametrize(
    ("resources", "first"),
    [
        ({}, "g2-standard-12"),
        ({"gpu": "T4"}, "n1-standard-8"),
        ({"gpu": "L4", "gpus": 8}, "g2-standard-96"),
        ({"gpu": "A100"}, "a2-highgpu-1g"),
        ({"gpu": "A100", "gpus": 16}, "a2-megagpu-16g"),
        ({"gpu": "A100-80GB", "gpus": 4}, "a2-ultragpu-4g"),
        ({"gpu": "RTXPRO6000"}, "g4-standard-48"),
        ({"gpu": "H100", "gpus": 2, "spot": True}, "a3-highgpu-2g"),
        ({"gpu": "H100", "gpus": 1, "max_wait_hours": 24}, "a3-highgpu-1g"),
        ({"gpu": "H100", "gpus": 8}, "a3-highgpu-8g"),
        ({"gpu": "H100-MEGA", "gpus": 8}, "a3-megagpu-8g"),
        ({"gpu": "H200", "gpus": 8}, "a3-ultragpu-8g"),
        ({"gpu": "B200", "gpus": 8}, "a4-highgpu-8g"),
    ],
)
def test_a_gpu_and_a_count_are_a_machine(resources: dict[str, Any], first: str) -> None:
    assert offered(**resources)[0] == first


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a100", ["a2-highgpu-1g", "a2-ultragpu-1g"]),
        ("nvidia a100", ["a2-highgpu-1g", "a2-ultragpu-1g"]),
        ("NVIDIA_TESLA_A100", ["a2-highgpu-1g", "a2-ultragpu-1g"]),
        ("A100-40GB", ["a2-highgpu-1g"]),
        ("NVIDIA_A100_80GB", ["a2-ultragpu-1g"]),
        ("nvidia-l4", ["g2-standard-12"]),
    ],
)
def test_a_gpus_other_names_are_known(name: str, found: list[str]) -> None:
    assert offered(gpu=name) == found


def test_an_offer_says_what_was_asked_for_and_what_is_risky() -> None:
    wanted = Resources(gpu="H100", gpus=8, nodes=2, spot=True, region="us-east4")
    spot = next(iter(machines.offers("vertex", wanted)))
    assert (spot.gpu, spot.gpus, spot.nodes, spot.spot, spot.region) == ("H100", 8, 2, True, "us-east4")
    assert (spot.gpu_memory_gib, spot.hourly, spot.note) == (80, None, None)
    scarce = next(iter(machines.offers("vertex", Resources(gpu="B200", gpus=8))))
    assert "reservation" in (scarce.note or "")


@pytest.mark.parametrize(
    ("resources", "error", "said"),
    [
        ({"gpu": "H1000"}, CapacityError, "did you mean H100"),
        ({"gpu": "abacus"}, CapacityError, "there are: T4"),
        ({"gpu": "H100", "gpus": 3}, CapacityError, "resources.gpus=4"),
        ({"gpu": "H200"}, CapacityError, "resources.gpus=8"),
        ({"gpu": "A100", "gpus": 32}, CapacityError, "resources.gpus=16"),
        ({"gpu": "T4", "max_wait_hours": 1}, UnsupportedError, "L4"),
        ({"gpu": "RTXPRO6000", "max_wait_hours": 1}, UnsupportedError, "L4"),
        ({"gpu": "H100"}, UnsupportedError, "resources.spot=true, or --set resources.max_wait_hours"),
        ({"gpu": "NVIDIA_H100_80GB", "gpus": 4}, UnsupportedError, "resources.gpus=8"),
    ],
)
def test_impossible_hardware_is_refused_with_a_way_out(
    resources: dict[str, Any], error: type[LaunchError], said: str
) -> None:
    with pytest.raises(error) as refusal:
        offered(**resources)
    assert said in (refusal.value.hint or "")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_of_a_job_that_names_no_gpu_nothing_is_offered_that_is_not_had_on_demand(count: int) -> None:
    small = f"a3-highgpu-{count}g"
    assert small not in offered(gpus=count)
    assert small in offered(gpus=count, spot=True)


def test_every_gpu_is_one_that_vertexs_own_enum_has() -> None:
    from google.cloud.aiplatform_v1.types import AcceleratorType

    known = set(AcceleratorType.__members__)
    assert {family.accelerator for family in machines.FAMILIES} <= known
    assert {*machines.BUILT_IN.values(), *machines.ON_N1} <= known


@pytest.mark.parametrize("facts", [SITE, {}, {**SITE, "kms_key": KEY.format("europe-west4")}])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resources": {"gpu": "H100", "gpus": 8, "nodes": 4}},
        {"resources": {"spot": True, "disk_gib": 500}, "tags": {"team": "nlp"}, "env": {"A": "$(B)"}},
        {"resources": {"max_hours": 100, "max_wait_hours": 12, "nodes": 2}},
        {"resources": {"image": IMAGE}, "secrets": ["HF_TOKEN"], "model": {"id": "gs://b/m", "cache": True}},
    ],
)
def test_vertexs_model_takes_every_kind_of_request(
    changes: dict[str, Any], facts: dict[str, str], backend: VertexBackend
) -> None:
    request = rendered(backend, job(**copy.deepcopy(changes)), facts)
    before = copy.deepcopy(request)
    backend.validate(request)
    assert request == before


def test_every_machine_that_is_offered_goes_with_its_gpu(backend: VertexBackend) -> None:
    for family in machines.FAMILIES:
        for count in family.machines:
            hardware = {"gpu": family.accelerator, "gpus": count, "spot": True}
            backend.validate(rendered(backend, job(resources=hardware), SITE))


SPECIFIC = {
    "reservationAffinityType": "SPECIFIC_RESERVATION", "key": "compute.googleapis.com/reservation-name",
    "values": ["projects/p/zones/us-east4-a/reservations/mine"],
}  # fmt: skip
RAW: list[tuple[dict[str, Any], str]] = [
    ({"other": 1}, "other: unknown field"),
    ({"customJob": {"nosuch": 1}}, "customJob: .*nosuch"),
    ({"customJob": {"state": "JOB_STATE_RUNNING"}}, "customJob.state: is set by Vertex"),
    ({"customJob": {"name": "projects/1/locations/r/customJobs/1"}}, "customJob.name: is set by Vertex"),
    ({"customJob": {"labels": {"A": "b"}}}, "customJob.labels.A: "),
    ({"customJob": {"labels": {f"k{n}": "" for n in range(63)}}}, "customJob.labels: 65 labels, 64 at most"),
    ({"customJob": {"encryptionSpec": {"kmsKeyName": "k"}}}, r"customJob.encryptionSpec.kmsKeyName: 'k' is not"),
    (
        {"customJob": {"encryptionSpec": {"kmsKeyName": KEY.format("us-east4")}}},
        "customJob.encryptionSpec.kmsKeyName: the key is in us-east4, the job in europe-west4",
    ),
    ({"customJob": {"jobSpec": {"nosuch": 1}}}, "customJob: .*nosuch"),
    ({"customJob": {"jobSpec": {"network": "projects/team-ml/global/networks/n"}}}, f"{SPEC}.network: .*NUMBER"),
    ({"customJob": {"jobSpec": {"serviceAccount": "trainer"}}}, f"{SPEC}.serviceAccount: 'trainer' is not"),
    (
        {"customJob": {"jobSpec": {"serviceAccount": None, "tensorboard": "t"}}},
        f"{SPEC}.serviceAccount: is needed with tensorboard",
    ),
    (
        {"customJob": {"jobSpec": {"scheduling": {"disableRetries": True}}}},
        f"{SPEC}.scheduling.disableRetries: overrides restartJobOnWorkerRestart",
    ),
    ({"machineSpec": {"machineType": None}}, f"{POOL}.machineSpec.machineType: is missing"),
    ({"machineSpec": {"machineType": "a3-highgpu-1g"}}, f"{POOL}.machineSpec.acceleratorType: .*NVIDIA_H100_80GB"),
    ({"machineSpec": {"machineType": "a2-highgpu-2g"}}, f"{POOL}.machineSpec.acceleratorCount: .* has 2, not 1"),
    ({"machineSpec": {"machineType": "n1-standard-8"}}, f"{POOL}.machineSpec.machineType: .*NVIDIA_TESLA_A100"),
    (
        {"machineSpec": {"reservationAffinity": {"reservationAffinityType": "SPECIFIC_RESERVATION"}}},
        f"{POOL}.machineSpec.reservationAffinity: .* needs key and values",
    ),
    ({"machineSpec": {"reservationAffinity": {"reservationAffinityType": "MINE"}}}, "customJob: .*MINE"),
    (
        {"machineSpec": {"reservationAffinity": {**SPECIFIC, "key": "mine"}}},
        f"{POOL}.machineSpec.reservationAffinity.key: 'mine' is not compute.googleapis.com",
    ),
    (
        {"machineSpec": {"reservationAffinity": {**SPECIFIC, "values": ["mine"]}}},
        f"{POOL}.machineSpec.reservationAffinity.values: 'mine' is no reservation's full name",
    ),
]
"""Raw options -> the problem; those of a pool stand without the way to it."""


@pytest.mark.parametrize(("raw", "said"), RAW)
def test_a_raw_option_that_vertex_would_refuse_is_named(
    raw: dict[str, Any], said: str, backend: VertexBackend
) -> None:
    if "machineSpec" in raw:
        raw = {"customJob": {"jobSpec": {"workerPoolSpecs": raw}}}
    spec = job(resources={"nodes": 2}, backend_options={"vertex": raw})
    assert_problem(backend, rendered(backend, spec, SITE), said)


def assert_problem(backend: VertexBackend, request: Any, said: str) -> None:
    with pytest.raises(ConfigError, match="backend vertex would be refused") as refusal:
        backend.validate(request)
    assert refusal.value.hint
    pattern = said.replace("[", r"\[").replace("]", r"\]")  # the brackets of a list's index
    assert any(re.match(pattern, problem) for problem in refusal.value.problems), refusal.value.problems


CHANGES: list[tuple[str, Any, str]] = [
    ("parent", "projects/team-ml", "parent: .* is not projects/PROJECT/locations/REGION"),
    ("customJob", [], "customJob: is missing"),
    ("customJob.displayName", "", "customJob.displayName: 1 to 128 characters, not 0"),
    ("customJob.displayName", "x" * 129, "customJob.displayName: 1 to 128 characters, not 129"),
    ("customJob.displayName", 3, "customJob: .*displayName"),
    ("customJob.jobSpec.workerPoolSpecs", [], f"{SPEC}.workerPoolSpecs: is missing"),
    ("customJob.jobSpec.scheduling.timeout", "0s", f"{SPEC}.scheduling.timeout: is missing"),
    ("customJob.jobSpec.scheduling.timeout", "1 hour", "customJob: .*"),
    ("customJob.jobSpec.scheduling.timeout", "604801s", f"{SPEC}.scheduling.timeout: 604801 s; FLEX_START"),
    ("customJob.jobSpec.scheduling.strategy", "SPOT", f"{SPEC}.scheduling.maxWaitDuration: only FLEX_START"),
    ("customJob.jobSpec.scheduling.strategy", "LOW_COST", f"{SPEC}.scheduling.strategy: LOW_COST is deprecated"),
    ("customJob.jobSpec.scheduling.strategy", "CHEAP", "customJob: .*CHEAP"),
    (
        "customJob.jobSpec.baseOutputDirectory.outputUriPrefix",
        "s3://bucket",
        f"{SPEC}.baseOutputDirectory.outputUriPrefix: 's3://bucket' is not a gs:// URI",
    ),
    (f"{POOL}.replicaCount", 2, f"{POOL}.replicaCount: the first pool has exactly one"),
    (f"{POOL}.replicaCount", "one", "customJob: .*"),
    (f"{POOL}.containerSpec.imageUri", "", f"{POOL}.containerSpec.imageUri: is missing"),
    (f"{POOL}.containerSpec.env", [{"name": "A B"}], f"{POOL}.containerSpec.env: 'A B' is not a C identifier"),
    (f"{POOL}.containerSpec.env", [{"name": "A"}] * 2, f"{POOL}.containerSpec.env: A stands there twice"),
    (f"{POOL}.containerSpec.env", [{"name": f"A{n}"} for n in range(101)], f"{POOL}.containerSpec.env: 101 var"),
    (f"{POOL}.diskSpec", {"bootDiskSizeGb": -1}, f"{POOL}.diskSpec.bootDiskSizeGb: -1 is no size"),
    (f"{POOL}.machineSpec.acceleratorCount", 0, f"{POOL}.machineSpec.acceleratorCount: "),
    (f"{POOL}.machineSpec.diskSize", 1, "customJob: .*diskSize"),
    (f"{POOL[:-3]}[1].replicaCount", 0, f"{POOL[:-3]}[1].replicaCount: is missing"),
    (
        f"{POOL}.machineSpec",
        {"machineType": "n1-standard-8", "acceleratorType": "NVIDIA_TESLA_T4", "acceleratorCount": 3},
        f"{POOL}.machineSpec.acceleratorCount: of NVIDIA_TESLA_T4",
    ),
    (f"{POOL}.machineSpec.reservationAffinity", SPECIFIC, f"{SPEC}.scheduling.strategy: FLEX_START waits"),
    (
        f"{POOL[:-3]}[1].machineSpec.machineType",
        "a2-ultragpu-1g",
        f"{SPEC}.scheduling.strategy: .*same machineSpec",
    ),
]
"""Field -> a value, in a flex-start request of two nodes -> the problem."""


@pytest.mark.parametrize(("field", "value", "said"), CHANGES)
def test_a_request_that_vertex_would_refuse_is_named_by_field(
    field: str, value: Any, said: str, backend: VertexBackend
) -> None:
    request = json.loads(json.dumps(rendered(backend, job(resources={"nodes": 2, "max_wait_hours": 1}), SITE)))
    *way, last = field.replace("[", ".").replace("]", "").split(".")
    place: Any = request
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[last] = value
    assert_problem(backend, request, said)


def test_flex_start_with_a_gpu_that_it_lacks_is_named(backend: VertexBackend) -> None:
    request = copy.deepcopy(rendered(backend, job(resources={"gpu": "T4"}), SITE))
    request["customJob"]["jobSpec"]["scheduling"]["strategy"] = "FLEX_START"
    assert_problem(backend, request, f"{SPEC}.scheduling.strategy: FLEX_START has no NVIDIA_TESLA_T4")


def test_a_small_h100_machine_on_demand_is_named_though_raw_options_ask_for_it(backend: VertexBackend) -> None:
    hardware = {"machineType": "a3-highgpu-2g", "acceleratorType": "NVIDIA_H100_80GB", "acceleratorCount": 2}
    request = json.loads(json.dumps(rendered(backend, job(resources={"gpu": "T4"}), SITE)))
    spec = request["customJob"]["jobSpec"]
    spec["workerPoolSpecs"][0]["machineSpec"] = hardware
    assert_problem(backend, request, f"{SPEC}.scheduling.strategy: STANDARD; Google has a3-highgpu-2g as SPOT or")
    for strategy in ("SPOT", "FLEX_START"):
        spec["scheduling"]["strategy"] = strategy
        backend.validate(request)


def test_what_a_tensorboard_and_a_gpu_need_is_named(backend: VertexBackend) -> None:
    request = json.loads(json.dumps(rendered(backend, job(resources={"gpu": "T4"}), SITE)))
    spec = request["customJob"]["jobSpec"]
    spec["tensorboard"] = "projects/p/locations/r/tensorboards/1"
    backend.validate(request)
    del spec["baseOutputDirectory"]
    assert_problem(backend, request, f"{SPEC}.baseOutputDirectory: is needed with tensorboard")
    spec["workerPoolSpecs"][0]["machineSpec"]["acceleratorCount"] = 0
    assert_problem(backend, request, f"{POOL}.machineSpec.acceleratorCount: is missing")


def test_every_problem_is_told_at_once(backend: VertexBackend) -> None:
    pool = {"machineSpec": {"machineType": "a3-highgpu-1g"}}
    raw = {"customJob": {"labels": {"A": "b"}, "jobSpec": {"network": "n", "workerPoolSpecs": pool}}}
    with pytest.raises(ConfigError) as refusal:
        backend.validate(rendered(backend, job(backend_options={"vertex": raw}), SITE))
    assert len(refusal.value.problems) == 4


def test_a_key_is_not_compared_with_the_region_of_an_example(backend: VertexBackend) -> None:
    facts = {**SITE, "kms_key": KEY.format("europe-west4")}
    del facts["region"]
    backend.validate(rendered(backend, job(), facts))


def test_raw_options_that_vertex_takes_pass_its_model(backend: VertexBackend) -> None:
    affinity = {
        "reservationAffinityType": "SPECIFIC_RESERVATION",
        "key": "compute.googleapis.com/reservation-name",
        "values": ["projects/p/zones/z/reservations/r"],
    }
    pool = {
        "machineSpec": {"machineType": "g2-standard-32", "reservationAffinity": affinity},
        "nfsMounts": [{"server": "10.0.0.2", "path": "/models", "mountPoint": "/mnt/nfs/models"}],
    }
    spec = {
        "persistentResourceId": "cluster",
        "pscInterfaceConfig": {"networkAttachment": "a"},
        "workerPoolSpecs": pool,
    }
    raw = {"customJob": {"jobSpec": spec}}
    request = rendered(backend, job(resources={"gpu": "L4"}, backend_options={"vertex": raw}), SITE)
    backend.validate(request)
    two = rendered(backend, job(resources={"gpu": "L4", "gpus": 2}, backend_options={"vertex": raw}), SITE)
    assert_problem(backend, two, r".*acceleratorCount: g2-standard-32 has 1, not 2")


def test_without_the_sdk_validate_names_the_extra(backend: VertexBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.aiplatform_v1.types", None)
    with pytest.raises(BackendNotInstalledError, match="google-cloud-aiplatform") as refusal:
        backend.validate(rendered(backend, job(), SITE))
    assert "finelaunch[vertex]" in (refusal.value.hint or "")
