"""JobService and ModelService, in Google's own messages: the same functions over REST and gRPC."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from google.cloud import aiplatform_v1 as v1
from google.longrunning import operations_pb2
from google.protobuf import empty_pb2
from google.rpc import status_pb2

from backends.vertex.machines import BUILT_IN
from tests.emulators.vertex.job import Job, State
from tests.emulators.vertex.life import Life
from tests.emulators.vertex.world import DEVELOPER, Refused, World, invalid, not_found, numbered

LABEL = re.compile(r"[a-z0-9_-]{0,63}")
CONDITION = re.compile(r'(labels\.[\w-]+|state|display_name)\s*(=|:)\s*"?([\w*-]+)"?')
INTERNAL = 13
LOCATION = r"(projects/[^/]+/locations/[^/]+)"
JOB, MODEL = f"({LOCATION}/customJobs/[^/:]+)", f"({LOCATION}/models/[^/:]+)"


@dataclass(frozen=True)
class Method:
    """One method: where it is in REST, its request's message, which field has the path and which the body."""

    verb: str
    path: str
    service: str
    name: str
    request: Any
    field: str
    body: str | None
    call: Callable[[World, Any], Any]

    def answer(self, world: World, asked: Any) -> Any:
        """Vertex takes a project's id and its number, and answers with the number."""
        setattr(asked, self.field, numbered(getattr(asked, self.field)))
        return self.call(world, asked)


def create_job(world: World, asked: Any) -> Any:
    job = v1.CustomJob(asked.custom_job)
    _check(world, job)
    made = Job(job)
    job.name = f"{asked.parent}/customJobs/{next(world.numbers)}"
    job.state, job.create_time = State.JOB_STATE_PENDING, datetime.now(UTC)
    job.update_time = job.create_time
    if over := [f"aiplatform.googleapis.com/{m}" for m, n in made.demand.items() if not world.has(m, n)]:
        told = f"The following quota metrics exceed quota limits: {', '.join(over)}"
        raise Refused(429, "RESOURCE_EXHAUSTED", told)
    with world.lock:
        world.jobs[job.name] = made
    Life(world, made).start()
    return made.told()


def get_job(world: World, asked: Any) -> Any:
    return _job(world, asked.name).told()


def list_jobs(world: World, asked: Any) -> Any:
    with world.lock:
        found = [job.told() for name, job in reversed(world.jobs.items()) if name.startswith(f"{asked.parent}/")]
    visible = datetime.now(UTC) - timedelta(seconds=world.settings.list_delay_s)
    found = [job for job in found if job.create_time <= visible]
    for field, relation, value in CONDITION.findall(asked.filter):
        found = [job for job in found if _matches(job, field, relation, value)]
    start, most = int(asked.page_token or 0), min(asked.page_size or 100, 100)
    following = str(start + most) if start + most < len(found) else ""
    return v1.ListCustomJobsResponse(custom_jobs=found[start : start + most], next_page_token=following)


def cancel_job(world: World, asked: Any) -> Any:
    job = _job(world, asked.name)
    if not job.cancel():
        raise Refused(400, "FAILED_PRECONDITION", f"CustomJob is in a terminal state {job.proto.state.name}")
    return empty_pb2.Empty()


def delete_job(world: World, asked: Any) -> Any:
    if not _job(world, asked.name).over:
        raise Refused(400, "FAILED_PRECONDITION", "The CustomJob is still running; cancel it first")
    with world.lock:
        del world.jobs[asked.name]
    return _operation(world, asked.name, empty_pb2.Empty(), v1.DeleteOperationMetadata())


def upload_model(world: World, asked: Any) -> Any:
    model = v1.Model(asked.model)
    if not model.display_name:
        raise invalid("model.display_name is required")
    if model.artifact_uri and not model.artifact_uri.startswith("gs://"):
        raise invalid("model.artifact_uri must be a gs:// URI")
    name = asked.parent_model.partition("@")[0] or f"{asked.parent}/models/{asked.model_id or next(world.numbers)}"
    versions = world.models.setdefault(name, [])
    aliases = {*model.version_aliases, *(() if versions else ("default",))}
    for other in versions:
        other.version_aliases = [a for a in other.version_aliases if a not in aliases]
    model.name, model.version_id = name, str(len(versions) + 1)
    model.version_aliases, model.create_time = sorted(aliases), datetime.now(UTC)
    versions.append(model)
    answer = v1.UploadModelResponse(model=name, model_version_id=model.version_id)
    return _operation(world, name, answer, v1.UploadModelOperationMetadata())


def get_model(world: World, asked: Any) -> Any:
    name, _, version = asked.name.partition("@")
    for model in world.models.get(name, ()):
        if (version or "default") in (model.version_id, *model.version_aliases):
            return model
    raise not_found(f"Model {asked.name} not found")


def list_versions(world: World, asked: Any) -> Any:
    return v1.ListModelVersionsResponse(models=world.models.get(asked.name, []))


def get_operation(world: World, name: str) -> Any:
    name = numbered(name)
    if name not in world.operations:
        raise not_found(f"Operation {name} not found")
    operation, answer, due = world.operations[name]
    if time.monotonic() > due and not operation.done:
        operation.done = True
        if world.settings.operation_error is not None:
            operation.error.CopyFrom(status_pb2.Status(code=INTERNAL, message=world.settings.operation_error))
        else:
            operation.response.Pack(getattr(answer, "_pb", answer))
    return operation


METHODS = (
    Method("POST", f"{LOCATION}/customJobs", "Job", "CreateCustomJob", v1.CreateCustomJobRequest, "parent",
           "custom_job", create_job),
    Method("GET", f"{LOCATION}/customJobs", "Job", "ListCustomJobs", v1.ListCustomJobsRequest, "parent", None,
           list_jobs),
    Method("GET", JOB, "Job", "GetCustomJob", v1.GetCustomJobRequest, "name", None, get_job),
    Method("POST", f"{JOB}:cancel", "Job", "CancelCustomJob", v1.CancelCustomJobRequest, "name", "*", cancel_job),
    Method("DELETE", JOB, "Job", "DeleteCustomJob", v1.DeleteCustomJobRequest, "name", None, delete_job),
    Method("POST", f"{LOCATION}/models:upload", "Model", "UploadModel", v1.UploadModelRequest, "parent", "*",
           upload_model),
    Method("GET", MODEL, "Model", "GetModel", v1.GetModelRequest, "name", None, get_model),
    Method("GET", f"{MODEL}:listVersions", "Model", "ListModelVersions", v1.ListModelVersionsRequest, "name",
           None, list_versions),
)  # fmt: skip


def _job(world: World, name: str) -> Job:
    with world.lock:
        if name not in world.jobs:
            raise not_found(f"CustomJob {name} is not found.")
        found: Job = world.jobs[name]
        return found


def _matches(job: Any, field: str, relation: str, value: str) -> bool:
    if field.startswith("labels."):
        label = job.labels.get(field.removeprefix("labels."))
        return label is not None and (value == "*" if relation == ":" else label == value)
    return bool((job.state.name if field == "state" else job.display_name) == value)


def _operation(world: World, owner: str, answer: Any, metadata: Any) -> Any:
    operation = operations_pb2.Operation(name=f"{owner}/operations/{next(world.numbers)}")
    operation.metadata.Pack(metadata._pb)
    world.operations[operation.name] = (operation, answer, time.monotonic() + world.settings.operation_s)
    return operation


def _check(world: World, job: Any) -> None:
    """What the service refuses at once."""
    spec = job.job_spec
    if not 1 <= len(job.display_name) <= 128:
        raise invalid("display_name is required, up to 128 characters")
    for key, value in job.labels.items():
        if not key or not LABEL.fullmatch(key) or not LABEL.fullmatch(value):
            raise invalid(f"Invalid label {key}={value}")
    if not spec.worker_pool_specs:
        raise invalid("job_spec.worker_pool_specs: required")
    for index, pool in enumerate(spec.worker_pool_specs):
        _check_pool(index, pool)
    if output := spec.base_output_directory.output_uri_prefix:
        bucket = output.removeprefix("gs://").partition("/")[0]
        if not output.startswith("gs://") or bucket not in world.buckets:
            raise invalid(f"base_output_directory: {output} is in no bucket that exists")
    flexible = spec.scheduling.strategy == v1.Scheduling.Strategy.FLEX_START
    if flexible and spec.scheduling.timeout and spec.scheduling.timeout > timedelta(days=7):
        raise invalid("FLEX_START: timeout must be <= 7 days")
    account = spec.service_account
    if account and account not in world.accounts:
        raise invalid(f"Service account {account} does not exist")
    if account and world.is_denied(DEVELOPER, "iam.serviceAccounts.actAs"):
        raise Refused(403, "PERMISSION_DENIED", f"You do not have permission to act as service account {account}")


def _check_pool(index: int, pool: Any) -> None:
    at = f"worker_pool_specs[{index}]"
    if index and not pool.replica_count:
        return
    if index == 0 and pool.replica_count != 1:
        raise invalid(f"{at}.replica_count must be 1 (primary replica)")
    if "container_spec" not in pool:
        raise invalid(f"{at}: container_spec required (python_package_spec is not emulated)")
    machine = pool.machine_spec
    if not pool.container_spec.image_uri or not machine.machine_type:
        raise invalid(f"{at}: image URI and machine type required")
    wanted = next((gpu for start, gpu in BUILT_IN.items() if machine.machine_type.startswith(start)), None)
    if wanted and (machine.accelerator_type.name != wanted or not machine.accelerator_count):
        raise invalid(f'Machine type "{machine.machine_type}" needs accelerator_type {wanted} and a count')
