"""What CreateTrainingJob refuses and moto does not: the model's own limits, and the rules between fields.

Where a message was seen in public (AWS's and its users' issue threads) it is the real one; those of IAM, of
output buckets and of what this emulator lacks are approximate.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import botocore.session
from moto.core.exceptions import ServiceException
from moto.iam.models import iam_backends

from tests.emulators.sagemaker.job import TrainingJob, preferred
from tests.emulators.sagemaker.storage import Storage
from tests.emulators.sagemaker.world import DEVELOPER, World, quota_name

MAX_RUNTIME_S = 28 * 86400
DEFAULT_RUNTIME_S = 86400
PRINCIPAL = "sagemaker.amazonaws.com"


class Refusal(ServiceException):
    """Of whichever service is asked: moto looks an exception of its own up in the service that it comes from."""


def refuse(code: str, message: str) -> None:
    raise Refusal(code, message)


def invalid(message: str) -> None:
    refuse("ValidationException", message)


@functools.cache
def model() -> Any:
    """AWS's own model of SageMaker's API, which takes a while to read."""
    return botocore.session.get_session().get_service_model("sagemaker")


def check_shape(request: Mapping[str, Any]) -> None:
    """The limits that stand in AWS's own model of the request."""
    found = list(_problems(request, model().operation_model("CreateTrainingJob").input_shape, ""))
    if found:
        some = "error" if len(found) == 1 else "errors"
        invalid(f"{len(found)} validation {some} detected: {'; '.join(found)}")


def _problems(value: Any, shape: Any, at: str) -> Iterator[str]:
    kind, limits = shape.type_name, shape.metadata
    if kind == "structure":
        for name in shape.required_members:
            if value.get(name) is None:
                yield f"Value null at '{_path(at, name)}' failed to satisfy constraint: Member must not be null"
        for name, member in shape.members.items():
            if value.get(name) is not None:
                yield from _problems(value[name], member, _path(at, name))
    elif kind == "list":
        yield from _size(value, limits, at, "length")
        for index, item in enumerate(value, 1):
            yield from _problems(item, shape.member, f"{at}.{index}.member")
    elif kind == "map":
        yield from _size(value, limits, at, "length")
        for key, item in value.items():
            yield from _problems(key, shape.key, f"{at}.key")
            yield from _problems(item, shape.value, f"{at}.{key}.member")
    elif kind == "string":
        yield from _size(value, limits, at, "length")
        enum, pattern = shape.enum, limits.get("pattern")
        if enum and value not in enum:
            yield _said(value, at, f"satisfy enum value set: [{', '.join(enum)}]")
        if pattern and not re.fullmatch(_python(pattern), value, re.DOTALL):
            yield _said(value, at, f"satisfy regular expression pattern: {pattern}")
    elif kind in ("integer", "long"):
        yield from _size(value, limits, at, "value")


def _python(pattern: str) -> str:
    """Java's regular expression, with the classes that Python's has not under its own names."""
    for java, python in ((r"\p{L}", r"\w"), (r"\p{N}", r"\d"), (r"\p{Z}", r"\s"), (r"\p{M}", "")):
        pattern = pattern.replace(java, python)
    return pattern


def _size(value: Any, limits: Mapping[str, Any], at: str, what: str) -> Iterator[str]:
    size = value if what == "value" else len(value)
    if size < limits.get("min", size):
        yield _said(value, at, f"have {what} greater than or equal to {limits['min']}")
    if size > limits.get("max", size):
        yield _said(value, at, f"have {what} less than or equal to {limits['max']}")


def _said(value: Any, at: str, must: str) -> str:
    return f"Value '{value}' at '{at}' failed to satisfy constraint: Member must {must}"


def _path(at: str, name: str) -> str:
    lower = name[0].lower() + name[1:]
    return f"{at}.{lower}" if at else lower


def check_fields(request: Mapping[str, Any]) -> None:
    """Rules between fields."""
    stop = request.get("StoppingCondition", {})
    runtime, wait = stop.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_S), stop.get("MaxWaitTimeInSeconds")
    spot = request.get("EnableManagedSpotTraining")
    if runtime > MAX_RUNTIME_S:
        invalid(f"MaxRuntimeInSeconds must be less than or equal to {MAX_RUNTIME_S}")
    if spot and (wait is None or wait < runtime):
        invalid(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
        )
    if wait is not None and not spot:
        invalid("Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true")
    if spot and request["ResourceConfig"].get("KeepAlivePeriodInSeconds"):
        invalid("KeepAlivePeriodInSeconds is not supported when EnableManagedSpotTraining is set to true")
    image = request.get("AlgorithmSpecification", {})
    if bool(image.get("TrainingImage")) == bool(image.get("AlgorithmName")):
        invalid("You must specify exactly one of TrainingImage and AlgorithmName")
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig", [])]
    if len(set(names)) < len(names):
        invalid("Duplicate channel names in InputDataConfig")
    _check_emulated(request)


def _check_emulated(request: Mapping[str, Any]) -> None:
    """What is real and not emulated is refused, lest a test passes without it."""
    resources = request.get("ResourceConfig", {})
    if not preferred(request) or not resources.get("InstanceCount"):
        invalid("not emulated: a job without an instance type and ResourceConfig.InstanceCount")
    if "InstancePreferences" in resources and (
        "InstanceType" in resources or request.get("EnableManagedSpotTraining")
    ):
        invalid("InstancePreferences can't be specified with InstanceType or EnableManagedSpotTraining")
    if not request["AlgorithmSpecification"].get("TrainingImage"):
        invalid("not emulated: AlgorithmName")
    modes = [request["AlgorithmSpecification"]["TrainingInputMode"]]
    for channel in request.get("InputDataConfig", []):
        modes.append(channel.get("InputMode", modes[0]))
        source = channel["DataSource"].get("S3DataSource")
        if source is None or source["S3DataType"] not in ("S3Prefix", "ManifestFile"):
            invalid(f"not emulated: the data source of channel {channel['ChannelName']}")
    if "Pipe" in modes:
        invalid("not emulated: Pipe mode")
    local = request.get("CheckpointConfig", {}).get("LocalPath", "/opt/ml/checkpoints")
    if not local.startswith("/opt/ml/"):
        invalid("not emulated: CheckpointConfig.LocalPath outside /opt/ml")


def check_role(world: World, role: str) -> None:
    """The caller may pass it, it exists, and it trusts SageMaker."""
    if world.is_denied(DEVELOPER, "iam:PassRole"):
        refuse(
            "AccessDeniedException",
            f"User: {DEVELOPER} is not authorized to perform: iam:PassRole on resource: {role} because no "
            "identity-based policy allows the iam:PassRole action",
        )
    if not role_trusts(role):
        invalid(
            f"Could not assume role {role}. Please ensure that the role exists and allows principal "
            f"'{PRINCIPAL}' to assume the role."
        )


def role_trusts(arn: str) -> bool:
    """Does this role exist and let SageMaker assume it?"""
    account = arn.split(":")[4]
    found = [r for r in list(iam_backends[account]["aws"].roles.values()) if r.arn == arn]
    if not found:
        return False
    policy = json.loads(found[0].assume_role_policy_document)
    statements = policy["Statement"] if isinstance(policy["Statement"], list) else [policy["Statement"]]
    return any(
        statement["Effect"] == "Allow" and PRINCIPAL in _listed(statement.get("Principal", {}).get("Service", []))
        for statement in statements
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_image(world: World, request: Mapping[str, Any]) -> None:
    image = request["AlgorithmSpecification"]["TrainingImage"]
    if world.image_python(image) is None:
        invalid(f"Requested image {image} not found.")


def check_quota(world: World, request: Mapping[str, Any], region: str, jobs: list[TrainingJob]) -> None:
    """Instances that run already count."""
    wanted = request["ResourceConfig"]["InstanceCount"]
    spot = bool(request.get("EnableManagedSpotTraining"))
    for kind in preferred(request):
        _check_one_quota(world, kind, wanted, spot, jobs)


def _check_one_quota(world: World, kind: str, wanted: int, spot: bool, jobs: list[TrainingJob]) -> None:
    used = sum(j.instances for j in jobs if j.instance_type == kind and j.spot == spot and not j.done)
    limit = world.quota(kind, spot)
    if used + wanted > limit:
        refuse(
            "ResourceLimitExceeded",
            f"The account-level service limit '{quota_name(kind, spot)}' is {limit:g} Instances, with current "
            f"utilization of {used} Instances and a request delta of {wanted} Instances. Please use AWS Service "
            "Quotas to request an increase for this quota. If AWS Service Quotas is not available, contact AWS "
            "support to request an increase for this quota.",
        )


def check_storage(storage: Storage, request: Mapping[str, Any]) -> None:
    """Every bucket is there and in the region, every channel has something in it."""
    for channel in request.get("InputDataConfig", []):
        source = channel["DataSource"]["S3DataSource"]
        if not storage.is_here(source["S3Uri"]) or not storage.names(source["S3Uri"]):
            invalid(storage.nothing_there(source["S3Uri"], request["RoleArn"]))
    outputs = [request["OutputDataConfig"]["S3OutputPath"]]
    outputs += [request["CheckpointConfig"]["S3Uri"]] if "CheckpointConfig" in request else []
    for uri in outputs:
        if not storage.is_here(uri):
            invalid(f"The S3 bucket of {uri} does not exist or is not in region {storage.region}.")
