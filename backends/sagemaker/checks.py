"""A request against SageMaker's own model of CreateTrainingJob, then against what it only says in words. Offline.

botocore itself checks names and types, and leaves lengths, patterns and enumerations to the service.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from backends.base import Fact
from backends.container import with_examples
from backends.sagemaker.images import ECR
from backends.sagemaker.machines import BY_NAME
from launcher.errors import BackendNotInstalledError, ConfigError

HINT = "launch plan --backend sagemaker --json shows the request; backend_options.sagemaker is laid over it"
LONGEST_S = 28 * 24 * 3600
"""MaxRuntimeInSeconds, in the words of botocore 1.44.8."""
BEHIND = {
    "Environment.LAUNCH_SECRETS": "the names under secrets",
    "Environment.LAUNCH_MOUNTS": "the s3:// URIs of data and model",
}
"""Field of the request -> what of the job file it is made of."""
JAVA_CLASSES = {
    r"\p{L}": r"\w",
    r"\p{N}": r"\w",
    r"\p{Z}": r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
    r"\p{Alnum}": "A-Za-z0-9",
}
"""The model's patterns are Java's: its classes in Python's words, never narrower."""
TAG = r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)"
"""TagKey and TagValue of the model."""


def check_request(request: Mapping[str, Any], facts: tuple[Fact, ...]) -> None:
    """Raise ConfigError listing every field at fault, or BackendNotInstalledError without botocore."""
    filled = with_examples(request, facts)
    shape = _shape()
    problems = list(_misfits(filled, shape)) or [*_beyond_limits(filled, shape, ""), *_beyond_model(filled)]
    if problems:
        raise ConfigError("the request for backend sagemaker would be refused", HINT, problems=problems)


def is_tag(key: str, value: str) -> bool:
    """Does AWS take it? https://docs.aws.amazon.com/tag-editor/latest/userguide/tagging.html"""
    short = 1 <= len(key) <= 128 and len(value) <= 256
    return short and not key.casefold().startswith("aws:") and _fits(key, TAG) and _fits(value, TAG)


@cache
def _shape() -> Any:
    """The request in botocore's own model of the service."""
    try:
        from botocore.loaders import Loader
        from botocore.model import ServiceModel
    except ModuleNotFoundError as exc:
        raise BackendNotInstalledError(
            f"backend sagemaker needs the package boto3 to check the request ({exc.name})",
            "pip install 'finelaunch[sagemaker]'",
        ) from exc
    # Not through a session: that reads the user's profile, and fails where it names one that is gone.
    model = ServiceModel(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")
    return model.operation_model("CreateTrainingJob").input_shape


def _misfits(request: Mapping[str, Any], shape: Any) -> Iterator[str]:
    """What is missing, unknown or of another type."""
    from botocore.validate import ParamValidator

    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        yield from report.generate_report().splitlines()


def _beyond_limits(value: Any, shape: Any, path: str) -> Iterator[str]:
    """Every length, range, pattern and enumeration that `value` breaks, by the field's path."""
    kind, limits = shape.type_name, shape.metadata
    if kind == "structure":
        for name, inner in value.items():
            yield from _beyond_limits(inner, shape.members[name], f"{path}.{name}" if path else name)
    elif kind == "list":
        yield from _outside(len(value), limits, path, "entries")
        for index, inner in enumerate(value):
            yield from _beyond_limits(inner, shape.member, f"{path}[{index}]")
    elif kind == "map":
        yield from _outside(len(value), limits, path, "entries")
        for name, inner in value.items():
            yield from _beyond_limits(name, shape.key, f"{path}.{name}")
            yield from _beyond_limits(inner, shape.value, f"{path}.{name}")
    elif kind == "string":
        yield from _wrong_text(value, shape, path)
    elif kind in ("integer", "long", "float", "double"):
        yield from _outside(value, limits, path, "")


def _outside(found: float, limits: Mapping[str, Any], path: str, unit: str) -> Iterator[str]:
    least, most = limits.get("min"), limits.get("max")
    made_of = f" (it holds {BEHIND[path]})" if path in BEHIND else ""
    if least is not None and found < least:
        yield f"{path}: {found} {unit}".rstrip() + f", {least} at least{made_of}"
    if most is not None and found > most:
        yield f"{path}: {found} {unit}".rstrip() + f", {most} at most{made_of}"


def _wrong_text(text: str, shape: Any, path: str) -> Iterator[str]:
    if shape.enum:
        if text not in shape.enum:
            close = difflib.get_close_matches(text, shape.enum, n=1)
            guess = f"did you mean {close[0]}?" if close else f"there are {', '.join(shape.enum[:8])} ..."
            yield f"{path}: SageMaker knows no {text!r}; {guess}"
        return
    problems = list(_outside(len(text), shape.metadata, path, "characters"))
    yield from problems
    pattern = shape.metadata.get("pattern")
    if pattern and not problems and not _fits(text, pattern):
        yield f"{path}: {text!r} does not match {pattern}"


def _fits(text: str, pattern: str) -> bool:
    """True also for a pattern that Python can't read: the service will."""
    for java, ours in JAVA_CLASSES.items():
        pattern = pattern.replace(java, ours)
    try:
        return re.fullmatch(pattern, text) is not None
    except re.error:
        return True


def _beyond_model(request: Mapping[str, Any]) -> Iterator[str]:
    """What the API's documentation says in words (botocore 1.44.8, read 2026-11-25)."""
    yield from _of_times(request)
    yield from _of_machines(request)
    yield from _of_image(request)
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig", ())]
    yield from (f"InputDataConfig: {name} stands there twice" for name in _twice(names))
    yield from (f"Tags: {key} stands there twice" for key in _twice([t["Key"] for t in request.get("Tags", ())]))


def _of_times(request: Mapping[str, Any]) -> Iterator[str]:
    times, at = request.get("StoppingCondition", {}), "StoppingCondition"
    run, wait = times.get("MaxRuntimeInSeconds", 24 * 3600), times.get("MaxWaitTimeInSeconds")
    if run > LONGEST_S:
        yield f"{at}.MaxRuntimeInSeconds: {run} s; a job runs {LONGEST_S} s (28 days) at most"
    if wait is None and request.get("EnableManagedSpotTraining"):
        yield f"{at}.MaxWaitTimeInSeconds: is missing; a spot job needs it"
    if wait is not None and wait < run:
        yield f"{at}.MaxWaitTimeInSeconds: {wait} s; it counts the run too, and that may take {run} s"


def _of_machines(request: Mapping[str, Any]) -> Iterator[str]:
    machines, at = request.get("ResourceConfig", {}), "ResourceConfig"
    ways = [way for way in ("InstanceType", "InstanceGroups", "InstancePreferences") if machines.get(way)]
    if len(ways) != 1 and "ServerlessJobConfig" not in request:
        here = " and ".join(ways) or "nothing"
        yield f"{at}: one of InstanceType, InstanceGroups and InstancePreferences, and here is {here}"
    preferred = machines.get("InstancePreferences", ())
    if preferred and request.get("EnableManagedSpotTraining"):
        yield f"{at}.InstancePreferences: does not go with EnableManagedSpotTraining"
    types = [p["InstanceType"] for p in preferred]
    yield from (f"{at}.InstancePreferences: {name} stands there twice" for name in _twice(types))
    own_disk = [t for t in (machines.get("InstanceType"), *types) if t in BY_NAME]
    if machines.get("VolumeKmsKeyId") and own_disk:
        yield f"{at}.VolumeKmsKeyId: {own_disk[0]} has a disk of its own, which its hardware encrypts"


def _of_image(request: Mapping[str, Any]) -> Iterator[str]:
    algorithm, at = request.get("AlgorithmSpecification", {}), "AlgorithmSpecification"
    image = algorithm.get("TrainingImage", "")
    through_vpc = algorithm.get("TrainingImageConfig", {}).get("TrainingRepositoryAccessMode") == "Vpc"
    if through_vpc and "VpcConfig" not in request:
        yield f"VpcConfig: is missing; {at}.TrainingImageConfig says that the registry is reached through it"
    if image and not ECR.fullmatch(image) and not through_vpc:
        yield f"{at}.TrainingImageConfig: {image} is in no ECR registry: TrainingRepositoryAccessMode must be Vpc"


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
