"""A REST body as the YAML that azure-ai-ml's load_job and load_environment read: the way into the vendor's model.

https://learn.microsoft.com/azure/machine-learning/reference-yaml-job-command
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REFERENCES = {"environmentId": "environment", "computeId": "compute", "codeId": "code"}
KEPT = ("tags", "environmentVariables", "properties")
"""Their keys are the user's own."""
IMPLIED = ("jobType", "isArchived", "jobLimitsType")
"""load_job sets these; where it sets another value than the request, the comparison says so."""
KINDS = {"distributionType": "type", "identityType": "type", "jobInputType": "type", "jobOutputType": "type"}
RENAMED = {"uri": "path", "assetName": "name", "assetVersion": "version", "dockerArgsList": "docker_args"}
VALUES = {
    "AMLToken": "aml_token", "UserIdentity": "user_identity", "Managed": "managed",
    "ReadOnlyMount": "ro_mount", "ReadWriteMount": "rw_mount", "Download": "download", "Upload": "upload",
    "Direct": "direct", "EvalMount": "eval_mount", "EvalDownload": "eval_download",
    "PyTorch": "pytorch", "Mpi": "mpi", "TensorFlow": "tensorflow", "Ray": "ray",
}  # fmt: skip
PRIORITIES = {1: "low", 2: "medium", 3: "high"}
DURATION = re.compile(r"P(?=.)(?:(\d+)D)?(?:T(?=.)(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?")


def duration(seconds: int) -> str:
    """Seconds in ISO 8601, as Azure writes them: `P1DT15M`."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    time = "".join(f"{n}{unit}" for n, unit in ((hour, "H"), (minute, "M"), (second, "S")) if n)
    return f"P{f'{day}D' if day else ''}{f'T{time}' if time else ''}"


def seconds(text: object) -> int | None:
    """The seconds of a duration in ISO 8601; None where it is none."""
    found = DURATION.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    day, hour, minute, second = (int(part or 0) for part in found.groups())
    return ((day * 24 + hour) * 60 + minute) * 60 + second


def job_form(name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """The body of Jobs - Create Or Update as a command job's YAML. What is unknown keeps its name."""
    form: dict[str, Any] = {"name": name, "type": str(properties.get("jobType", "")).lower()}
    for key, value in properties.items():
        if key in IMPLIED:
            continue
        if key in REFERENCES:
            form[REFERENCES[key]] = value if str(value).startswith("azureml:") else f"azureml:{value}"
        elif key in KEPT or not isinstance(value, Mapping):
            form[snake(key)] = value
        elif key in ("inputs", "outputs"):
            form[key] = {own: _data(data) for own, data in value.items()}
        else:
            form[snake(key)] = _section(value)
    return form


def environment_form(name: str, version: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """The body of Environment Versions - Create Or Update as YAML; the conda file as the mapping it holds.

    Raises yaml.YAMLError where that is none.
    """
    import yaml

    form: dict[str, Any] = {"name": name, "version": version}
    for key, value in properties.items():
        if key in ("isAnonymous", "isArchived"):
            continue
        form[snake(key)] = yaml.safe_load(value) if key == "condaFile" else value
    return form


def snake(name: str) -> str:
    """`instanceCount` -> `instance_count`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def _data(data: Any) -> Any:
    if isinstance(data, Mapping) and data.get("jobInputType") == "literal":
        return data.get("value")
    return _section(data) if isinstance(data, Mapping) else data


def _section(section: Mapping[str, Any]) -> dict[str, Any]:
    """distribution, identity, resources, limits, queueSettings, or one input or output."""
    found = {}
    for key, value in section.items():
        if key in IMPLIED:
            continue
        name = KINDS.get(key) or RENAMED.get(key) or snake(key)
        if key == "timeout":
            value = seconds(value) or value
        elif key == "priority":
            value = PRIORITIES.get(value, value)
        elif isinstance(value, str) and (key in KINDS or key == "mode"):
            value = VALUES.get(value, value)
        found[name] = value
    return found
