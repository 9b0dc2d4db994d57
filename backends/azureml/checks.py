"""A request against azure-ai-ml's own entities, and against what they let through and the service refuses."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from backends.azureml import images, places
from backends.azureml.jobfile import REFERENCES, environment_form, job_form, seconds, snake
from backends.base import Fact
from backends.container import with_examples
from launcher.errors import BackendNotInstalledError, ConfigError

API_VERSION = "2025-01-01-preview"
"""What azure-ai-ml 1.35.2 sends jobs with."""
DAY_S = 24 * 3600
LONGEST_S, LONGEST_SPOT_S = 21 * DAY_S, 7 * DAY_S
"""How long a job lives, at most. https://learn.microsoft.com/azure/machine-learning/how-to-manage-quotas
(read 2026-11-25)
"""
WORKSPACE = (
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.MachineLearningServices/workspaces/[^/]+"
)
JOB_ID = re.compile(rf"({WORKSPACE})/jobs/([A-Za-z0-9][A-Za-z0-9_-]{{0,254}})")
ENVIRONMENT_ID = re.compile(rf"({WORKSPACE})/environments/([A-Za-z0-9_.-]+)/versions/([A-Za-z0-9_.-]+)")
COMPUTE_ID = re.compile(rf"{WORKSPACE}/computes/[^/]+")
PARTS = ("api-version", "environment", "job")
HINT = "launch plan --backend azureml --json shows the request; backend_options.azureml is laid over it"


def check_request(request: Mapping[str, Any], facts: tuple[Fact, ...]) -> None:
    """Raise ConfigError listing every field at fault, or BackendNotInstalledError without the SDK. Offline."""
    filled = with_examples(request, facts)
    problems = list(_outside(filled))
    if not problems:
        problems = [*_of_environment(filled), *_of_job(filled["job"]["properties"])]
        try:
            problems += _by_the_sdk(filled)
        except BackendNotInstalledError:
            if not problems:
                raise
    if problems:
        raise ConfigError("the request for backend azureml would be refused", HINT, problems=problems)


def _outside(request: Mapping[str, Any]) -> Iterator[str]:
    """The envelope: what is PUT where."""
    yield from (f"{name}: unknown field" for name in request if name not in PARTS)
    if request.get("api-version") != API_VERSION:
        yield f"api-version: {request.get('api-version')!r} is not {API_VERSION}"
    for name, form in (("job", JOB_ID), ("environment", ENVIRONMENT_ID)):
        part = request.get(name)
        if part is None and name == "environment":  # the job names one that is there
            continue
        if not isinstance(part, Mapping) or not isinstance(part.get("properties"), Mapping):
            yield f"{name}: is missing, or has no properties"
            continue
        yield from (f"{name}.{key}: unknown field" for key in part if key not in ("id", "properties"))
        if not form.fullmatch(str(part.get("id"))):
            yield f"{name}.id: {part.get('id')!r} is no id of a workspace's {name}"


def _of_environment(request: Mapping[str, Any]) -> Iterator[str]:
    environment, job = request.get("environment"), request["job"]
    used = job["properties"].get("environmentId")
    if environment is None:
        if not used:
            yield "job.properties.environmentId: is missing, and so is environment"
        return
    if used != environment["id"]:
        yield f"job.properties.environmentId: {used!r} is not the request's environment; set environment: null"
    if not environment["id"].startswith(job["id"].rpartition("/jobs/")[0]):
        yield "environment.id: is in another workspace than the job"
    if environment["id"].rpartition("/")[2] != images.version(environment["properties"]):
        yield "environment.id: its version is not that of its content"


def _of_job(job: Mapping[str, Any]) -> Iterator[str]:
    """What azure-ai-ml 1.35.2 lets through."""
    at = "job.properties"
    resources, limits, queue = (_mapping(job.get(name)) for name in ("resources", "limits", "queueSettings"))
    count = resources.get("instanceCount")
    if not isinstance(count, int) or count < 1:
        yield f"{at}.resources.instanceCount: {count!r} is no number of machines"
    elif count > 1 and not job.get("distribution"):
        yield f"{at}.distribution: is missing: the machines would not know of each other"
    if compute := job.get("computeId"):
        if not COMPUTE_ID.fullmatch(str(compute)):
            yield f"{at}.computeId: {compute!r} is no id of a workspace's compute (/subscriptions/...)"
        if resources.get("instanceType"):
            yield f"{at}.resources.instanceType: a named compute has its own size; take it or computeId out"
        if queue.get("jobTier"):
            yield f"{at}.queueSettings.jobTier: a named compute has its own tier; take it or computeId out"
    elif not resources.get("instanceType"):
        yield f"{at}.resources.instanceType: is missing: serverless compute would choose a machine without a GPU"
    time = seconds(limits.get("timeout"))
    longest = LONGEST_SPOT_S if queue.get("jobTier") == "Spot" else LONGEST_S
    if not time:
        yield f"{at}.limits.timeout: {limits.get('timeout')!r} is no duration; the job would run for 21 days"
    elif time > longest:
        yield f"{at}.limits.timeout: a job lives {longest // DAY_S} days at most"
    for name, value in _mapping(job.get("environmentVariables")).items():
        if not name.isidentifier() or not isinstance(value, str):
            yield f"{at}.environmentVariables.{name}: a variable has a name and a text"
    yield from _of_data(job, at)


def _of_data(job: Mapping[str, Any], at: str) -> Iterator[str]:
    known = {kind: _mapping(job.get(kind)) for kind in ("inputs", "outputs")}
    for kind, name in places.EXPRESSION.findall(str(job.get("command"))):
        if name not in known[kind]:
            yield f"{at}.command: there is no {kind}.{name}"
    for name, output in known["outputs"].items():
        uri = _mapping(output).get("uri")
        if uri is not None and not str(uri).startswith("azureml://"):
            yield f"{at}.outputs.{name}.uri: {uri!r} is in no datastore (azureml://datastores/NAME/paths/...)"


def _by_the_sdk(request: Mapping[str, Any]) -> list[str]:
    """What azure-ai-ml refuses, and where it reads another job than the request holds."""
    job, environment = request["job"], request.get("environment")
    problems = []
    with _quiet_sdk() as sdk:
        name = job["id"].rpartition("/")[2]
        problems += _compared(
            "job.properties", job["properties"], lambda body: sdk.load_job(_yaml(job_form(name, body)))._to_job()
        )
        if environment is not None:
            _, kind, _, version = environment["id"].rsplit("/", 3)
            problems += _compared(
                "environment.properties",
                environment["properties"],
                lambda body: sdk.load_environment(_yaml(environment_form(kind, version, body))),
            )
    return problems


def _yaml(form: Mapping[str, Any]) -> io.StringIO:
    return io.StringIO(json.dumps(form))  # YAML holds JSON


def _compared(at: str, properties: Mapping[str, Any], load: Callable[[Mapping[str, Any]], Any]) -> list[str]:
    """Problems of one body: the entity is loaded from its YAML form, and must give the same body back."""
    try:
        entity = load(properties)
        read = json.loads(json.dumps(entity._to_rest_object().as_dict()["properties"]))
    except Exception as exc:  # noqa: BLE001 - the SDK raises classes of its own, marshmallow's and ValueError
        return list(dict.fromkeys(f"{at}{text}" for text in _refusals(exc, properties)))
    return [f"{at}{text}" for text in _differences(properties, read)]


def _refusals(exc: BaseException, properties: Mapping[str, Any]) -> list[str]:
    """The fields at fault with what is wrong: the messages of the schema deep in the chain, else the text."""
    names = {snake(key): key for key in properties} | {form: key for key, form in REFERENCES.items()}
    found: Mapping[str, Any] | None = None
    link: BaseException | None = exc
    while link is not None:
        messages = getattr(link, "messages", None)
        found = messages if isinstance(messages, Mapping) else found
        link = link.__cause__ or link.__context__
    if found is None:
        return [f": {_first_line(exc)}"]
    return [
        f".{'.'.join((names.get(path[0], path[0]), *path[1:]))}: {text}" for path, text in _messages(found, ())
    ]


def _messages(found: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, text) of marshmallow's nested messages."""
    if isinstance(found, Mapping):
        for key, below in found.items():
            yield from _messages(below, path if key in ("_schema", "value") else (*path, str(key)))
    elif isinstance(found, Sequence) and not isinstance(found, str):
        for below in found:
            yield from _messages(below, path)
    else:
        yield path, _first_line(found)


def _first_line(text: object) -> str:
    """What the SDK says is wrong: in its long texts, in colours, the line that begins with (x)."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d+m", "", str(text)).splitlines() if line.strip()]
    marked = [line.removeprefix("(x) ") for line in lines if line.startswith("(x)")]
    return (marked or lines or [type(text).__name__])[0]


def _differences(sent: Any, read: Any, path: str = "") -> Iterator[str]:
    if isinstance(sent, Mapping) and isinstance(read, Mapping):
        for key in {**sent, **read}:
            yield from _differences(sent.get(key), read.get(key), f"{path}.{key}")
    elif sent != read:
        yield f"{path}: azure-ai-ml reads {read!r} where the request has {sent!r}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


@contextlib.contextmanager
def _quiet_sdk() -> Iterator[Any]:
    """azure.ai.ml, without its notes on experimental classes and marshmallow's deprecations (hundreds)."""
    logger = logging.getLogger("azure.ai.ml")
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        try:
            import azure.ai.ml as ml
        except ImportError as exc:
            raise BackendNotInstalledError(
                f"backend azureml needs the package azure-ai-ml to check the request ({exc})",
                "pip install 'finelaunch[azureml]'",
            ) from exc
        logger.setLevel(logging.ERROR)  # the import has set it to INFO
        yield ml
