"""A request against Vertex's own CustomJob message, then against what the service checks beyond it. Offline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backends.base import Fact
from backends.container import with_examples
from backends.vertex.machines import BUILT_IN, FLEX_START, GPUS_OF, NEVER_ON_DEMAND, ON_N1
from launcher.errors import BackendNotInstalledError, ConfigError

MOST_LABEL = 63
LABEL_KEY = re.compile(rf"[^\W\d_][\w-]{{0,{MOST_LABEL - 1}}}")
LABEL_VALUE = re.compile(rf"[\w-]{{0,{MOST_LABEL}}}")
MOST_LABELS = 64
MOST_VARIABLES = 100
"""ContainerSpec.env, google-cloud-aiplatform 2.7.0."""
FLEX_LIMIT_S = 7 * 24 * 3600
"""https://cloud.google.com/vertex-ai/docs/training/schedule-jobs-dws"""
MOST_DISPLAY_NAME = 128
PARENT = re.compile(r"projects/([^/]+)/locations/([a-z0-9-]+)")
NETWORK = re.compile(r"projects/\d+/global/networks/[^/]+")
KEY = re.compile(r"projects/[^/]+/locations/([^/]+)/keyRings/[^/]+/cryptoKeys/[^/]+")
RESERVATION_KEY = "compute.googleapis.com/reservation-name"
RESERVATION = re.compile(r"projects/[^/]+/zones/[^/]+/reservations/[^/]+")
RESERVED = ("ANY_RESERVATION", "SPECIFIC_RESERVATION")
OUTPUT_ONLY = ("name", "state", "createTime", "startTime", "endTime", "updateTime", "error", "webAccessUris")
HINT = "launch plan --backend vertex --json shows the request; backend_options.vertex is laid over it"


def check_request(request: Mapping[str, Any], facts: tuple[Fact, ...]) -> None:
    """Raise ConfigError listing every field at fault, or BackendNotInstalledError without the SDK."""
    filled = with_examples(request, facts)
    problems = list(_outside(filled))
    if problems:
        raise _refusal(problems)
    job = parsed(filled["customJob"])
    parent = PARENT.fullmatch(request["parent"])  # as it is: an example's region says nothing of the job's
    problems = [
        *(f"customJob.{field}: is set by Vertex" for field in OUTPUT_ONLY if field in filled["customJob"]),
        *_of_job(job),
        *_of_key(job, parent.group(2) if parent else None),
        *_of_spec(job),
        *_of_scheduling(job),
    ]
    for index, pool in enumerate(job.job_spec.worker_pool_specs):
        problems += [f"customJob.jobSpec.workerPoolSpecs[{index}].{text}" for text in _of_pool(pool, index)]
    if problems:
        raise _refusal(problems)


def is_label(key: str, value: str) -> bool:
    """Does Google Cloud take it? https://cloud.google.com/resource-manager/docs/labels-overview#requirements"""
    lower = key == key.lower() and value == value.lower()
    return lower and bool(LABEL_KEY.fullmatch(key)) and bool(LABEL_VALUE.fullmatch(value))


def _refusal(problems: Sequence[str]) -> ConfigError:
    return ConfigError("the request for backend vertex would be refused", HINT, problems=problems)


def _outside(request: Mapping[str, Any]) -> Iterator[str]:
    """The envelope: the URL's parent and the body."""
    yield from (f"{name}: unknown field" for name in request if name not in ("parent", "customJob"))
    parent = request.get("parent")
    if not isinstance(parent, str) or not PARENT.fullmatch(parent):
        yield f"parent: {parent!r} is not projects/PROJECT/locations/REGION"
    if not isinstance(request.get("customJob"), Mapping):
        yield "customJob: is missing"


def parsed(body: Mapping[str, Any]) -> Any:
    """The body as the vendor's CustomJob: an unknown field or a wrong type is an error."""
    try:
        from google.cloud.aiplatform_v1.types import CustomJob
        from google.protobuf import json_format
    except ModuleNotFoundError as exc:
        raise BackendNotInstalledError(
            f"backend vertex needs the package google-cloud-aiplatform to check the request ({exc.name})",
            "pip install 'finelaunch[vertex]'",
        ) from exc
    job = CustomJob()
    try:
        json_format.ParseDict(body, CustomJob.pb(job))
    except json_format.ParseError as exc:
        raise _refusal([f"customJob: {str(exc).splitlines()[0]}"]) from exc
    return job


def _of_job(job: Any) -> Iterator[str]:
    if not 1 <= len(job.display_name) <= MOST_DISPLAY_NAME:
        yield f"customJob.displayName: 1 to {MOST_DISPLAY_NAME} characters, not {len(job.display_name)}"
    if len(job.labels) > MOST_LABELS:
        yield f"customJob.labels: {len(job.labels)} labels, {MOST_LABELS} at most"
    for key, value in job.labels.items():
        if not is_label(key, value):
            yield (
                f"customJob.labels.{key}: {value!r}: lower-case letters, digits, - and _, at most 63; "
                "a name begins with a letter"
            )


def _of_key(job: Any, region: str | None) -> Iterator[str]:
    """`region`: the job's, None where it is not set yet."""
    key = job.encryption_spec.kms_key_name
    if not key:
        return
    found = KEY.fullmatch(key)
    field = "customJob.encryptionSpec.kmsKeyName"
    if found is None:
        yield f"{field}: {key!r} is not projects/P/locations/R/keyRings/K/cryptoKeys/N"
    elif region is not None and found.group(1) != region:
        yield f"{field}: the key is in {found.group(1)}, the job in {region}; they must be in one region"


def _of_spec(job: Any) -> Iterator[str]:
    spec, at = job.job_spec, "customJob.jobSpec"
    if not spec.worker_pool_specs:
        yield f"{at}.workerPoolSpecs: is missing"
    if spec.network and not NETWORK.fullmatch(spec.network):
        yield f"{at}.network: {spec.network!r} is not projects/NUMBER/global/networks/NAME (the project's number)"
    output = spec.base_output_directory.output_uri_prefix
    if output and not output.startswith("gs://"):
        yield f"{at}.baseOutputDirectory.outputUriPrefix: {output!r} is not a gs:// URI"
    if spec.service_account and "@" not in spec.service_account:
        yield f"{at}.serviceAccount: {spec.service_account!r} is not an e-mail address"
    if spec.tensorboard and not spec.service_account:
        yield f"{at}.serviceAccount: is needed with tensorboard"
    if spec.tensorboard and not output:
        yield f"{at}.baseOutputDirectory: is needed with tensorboard"


def _of_scheduling(job: Any) -> Iterator[str]:
    spec, at = job.job_spec, "customJob.jobSpec.scheduling"
    scheduling = spec.scheduling
    timeout = _seconds(scheduling.timeout)
    if timeout <= 0:
        yield f"{at}.timeout: is missing; Vertex would stop the job after 7 days only"
    strategy = scheduling.strategy.name
    if strategy in ("ON_DEMAND", "LOW_COST"):
        yield f"{at}.strategy: {strategy} is deprecated; use STANDARD, SPOT or FLEX_START"
    if scheduling.disable_retries and scheduling.restart_job_on_worker_restart:
        yield f"{at}.disableRetries: overrides restartJobOnWorkerRestart, which several nodes need"
    pools = [pool for pool in spec.worker_pool_specs if pool.replica_count]
    if strategy not in ("SPOT", "FLEX_START"):
        for kind in sorted({pool.machine_spec.machine_type for pool in pools} & NEVER_ON_DEMAND):
            yield f"{at}.strategy: {strategy}; Google has {kind} as SPOT or FLEX_START only"
    if strategy != "FLEX_START":
        if "max_wait_duration" in scheduling:
            yield f"{at}.maxWaitDuration: only FLEX_START has it, the strategy is {strategy}"
        return
    if timeout > FLEX_LIMIT_S:
        yield f"{at}.timeout: {timeout:g} s; FLEX_START runs {FLEX_LIMIT_S} s (7 days) at most"
    for accelerator in sorted({pool.machine_spec.accelerator_type.name for pool in pools}):
        if accelerator not in FLEX_START:
            yield f"{at}.strategy: FLEX_START has no {accelerator}"
    if any(p.machine_spec.reservation_affinity.reservation_affinity_type.name in RESERVED for p in pools):
        yield f"{at}.strategy: FLEX_START waits for free machines; one of a reservation is had with STANDARD"
    if any(pool.machine_spec != pools[0].machine_spec for pool in pools):
        yield f"{at}.strategy: FLEX_START wants the same machineSpec in every pool"


def _seconds(duration: Any) -> float:
    return float(duration.total_seconds()) if duration is not None else 0.0


def _of_pool(pool: Any, index: int) -> Iterator[str]:
    """Texts that begin with the field's path in the pool."""
    if index and not pool.replica_count and "machine_spec" not in pool:
        return  # an empty pool is skipped
    if index == 0 and pool.replica_count != 1:
        yield f"replicaCount: the first pool has exactly one replica, not {pool.replica_count}"
    if index and pool.replica_count < 1:
        yield "replicaCount: is missing"
    if not pool.container_spec.image_uri and not pool.python_package_spec.executor_image_uri:
        yield "containerSpec.imageUri: is missing"
    yield from _of_environment(pool.container_spec.env)
    yield from _of_machine(pool.machine_spec)
    if pool.disk_spec.boot_disk_size_gb < 0:
        yield f"diskSpec.bootDiskSizeGb: {pool.disk_spec.boot_disk_size_gb} is no size"


def _of_environment(variables: Any) -> Iterator[str]:
    names = [variable.name for variable in variables]
    if len(names) > MOST_VARIABLES:
        yield f"containerSpec.env: {len(names)} variables, {MOST_VARIABLES} at most (the job's env counts)"
    for name in sorted(set(names)):
        if not name.isidentifier() or not name.isascii():
            yield f"containerSpec.env: {name!r} is not a C identifier"
        if names.count(name) > 1:
            yield f"containerSpec.env: {name} stands there twice"


def _of_machine(machine: Any) -> Iterator[str]:
    kind, accelerator = machine.machine_type, machine.accelerator_type.name
    if not kind:
        yield "machineSpec.machineType: is missing"
        return
    built_in = next((gpu for start, gpu in BUILT_IN.items() if kind.startswith(start)), None)
    if built_in and accelerator != built_in:
        yield f"machineSpec.acceleratorType: {kind} has {built_in}, not {accelerator}"
    elif built_in and GPUS_OF.get(kind, machine.accelerator_count) != machine.accelerator_count:
        yield f"machineSpec.acceleratorCount: {kind} has {GPUS_OF[kind]}, not {machine.accelerator_count}"
    elif not built_in and machine.accelerator_type and (accelerator not in ON_N1 or not kind.startswith("n1-")):
        yield f"machineSpec.machineType: {kind} can't take {accelerator}"
    if machine.accelerator_type and machine.accelerator_count < 1:
        yield "machineSpec.acceleratorCount: is missing"
    elif not built_in and accelerator in ON_N1 and machine.accelerator_count not in ON_N1[accelerator]:
        yield f"machineSpec.acceleratorCount: of {accelerator} a machine has one of {ON_N1[accelerator]}"
    yield from _of_reservation(machine.reservation_affinity)


def _of_reservation(affinity: Any) -> Iterator[str]:
    """ReservationAffinity, google-cloud-aiplatform 2.7.0."""
    if affinity.reservation_affinity_type.name != "SPECIFIC_RESERVATION":
        return
    if not (affinity.key and affinity.values):
        yield "machineSpec.reservationAffinity: SPECIFIC_RESERVATION needs key and values"
    elif affinity.key != RESERVATION_KEY:
        yield f"machineSpec.reservationAffinity.key: {affinity.key!r} is not {RESERVATION_KEY}"
    for value in affinity.values:
        if not RESERVATION.fullmatch(value):
            yield (
                f"machineSpec.reservationAffinity.values: {value!r} is no reservation's full name, "
                "projects/P/zones/Z/reservations/NAME"
            )
