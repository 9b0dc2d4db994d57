"""What worker.py can ask of SkyPilot's API server. Imported in SkyPilot's own environment, by worker.py alone.

{"op": "launch", "argument": {"name", "task", "managed", "secrets"}} -> {"started": bool}; nothing twice for a name
{"op": "look", "argument": {"name", "managed", "closely"}} -> {"phase", "detail", "reason", "recoveries"}
{"op": "down", "argument": {"name", "managed"}} -> {}
{"op": "alive", "argument": {}} -> {"found": [{"name", "state", "managed", "machine", "hourly", "since"}]}
{"op": "check", "argument": {"clouds"}} -> {"enabled": {cloud: ["compute", "storage"]}, "said": text}
{"op": "aws_keys", "argument": {}} -> {"travel": bool}: do machines outside AWS get keys to its buckets?
{"op": "start", "argument": {}} -> {}

`phase`: none, launching, failed (to launch), up, waiting, running, recovering, over. SkyPilot 0.14.1.
"""

from __future__ import annotations

import configparser
import io
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

MANAGED = {
    "PENDING": "waiting", "SUBMITTED": "waiting", "STARTING": "launching", "RUNNING": "running",
    "WINDING_DOWN": "running", "RECOVERING": "recovering", "CANCELLING": "running",
}  # fmt: skip
"""ManagedJobStatus -> phase; the others are the ends (sky/jobs/state.py)."""
GOES_ON = ("PENDING", "WAITING", "RUNNING")
"""RequestStatus of a request to the API server that is not over."""


def start(argument: Mapping[str, Any]) -> dict[str, Any]:
    from sky.client import sdk

    sdk.api_info()  # starts it where it does not run
    return {}


def launch(argument: Mapping[str, Any]) -> dict[str, Any]:
    import sky
    from sky import jobs
    from sky.client import sdk

    name, managed = argument["name"], argument["managed"]
    for request in _sending(name) if managed else ():  # one that was left, while it builds the controller
        sdk.get(request.request_id)
    if look({"name": name, "managed": managed, "closely": False})["phase"] != "none":
        return {"started": False}
    secrets = argument["secrets"]
    wanted = {**argument["task"], **({"secrets": secrets} if secrets else {})}
    task = sky.Task.from_yaml_config(wanted)
    if managed:
        sdk.get(jobs.launch(task, name=name))
    else:
        sdk.launch(task, cluster_name=name)
    return {"started": True}


def look(argument: Mapping[str, Any]) -> dict[str, Any]:
    found = {"phase": "none", "detail": "", "reason": None, "recoveries": 0}
    see = _managed if argument["managed"] else _cluster
    return {**found, **see(argument["name"], argument["closely"])}


def _managed(name: str, closely: bool) -> dict[str, Any]:
    """The newest managed job of this name."""
    sending = _sending(name)  # before the records: one that ends in between is there
    record = max(_managed_records(name), key=lambda one: one.job_id, default=None)
    if record is None:
        told = [one.status_msg or "waiting for SkyPilot's controller" for one in sending]
        return {"phase": "launching", "detail": told[0]} if told else {}
    status = record.status.value
    return {
        "phase": MANAGED.get(status, "over"), "detail": status, "recoveries": record.recovery_count or 0,
        "reason": record.failure_reason or f"SkyPilot's controller says {status}",
    }  # fmt: skip


def _sending(name: str) -> list[Any]:
    """The requests that go on to send a managed job of this name: the first one builds the controller."""
    from sky.client import sdk

    asked = [one for one in sdk.api_status() if one.name == "sky.jobs.launch" and one.status in GOES_ON]
    return [one for one in asked if (json.loads(one.request_body) or {}).get("name") == name]


def _managed_records(name: str | None = None) -> list[Any]:
    from sky import exceptions, jobs
    from sky.client import sdk

    try:
        records = sdk.get(jobs.queue_v2(refresh=False, skip_finished=name is None))[0]
    except exceptions.ClusterNotUpError:  # no controller was ever started
        return []
    return [one for one in records if name in (None, one.job_name)]


def _cluster(name: str, closely: bool) -> dict[str, Any]:
    """The cluster of this name: as it was last seen, or, `closely`, as its cloud and its queue say."""
    from sky.client import sdk

    asked = [r for r in sdk.api_status(all_status=True, cluster_name=name) if r.name == "sky.launch"]
    newest = max(asked, key=lambda one: one.created_at, default=None)
    if newest is not None and newest.status in GOES_ON:
        return {"phase": "launching", "detail": newest.status_msg or "waiting for machines"}
    cluster = _status(name, closely)
    if cluster is None:
        if newest is not None and newest.status == "FAILED":
            return {"phase": "failed", "reason": _why(newest.request_id)}
        return {} if newest is None else {"phase": "over", "reason": "its machines are gone"}
    if closely and cluster["status"].value == "UP":
        return _job(name)
    if newest is not None and newest.status == "FAILED":
        return {"phase": "failed", "reason": _why(newest.request_id)}
    return {"phase": "up", "detail": cluster["status"].value}


def _status(name: str, closely: bool) -> Any:
    from sky.client import sdk
    from sky.utils.common import StatusRefreshMode

    refresh = StatusRefreshMode.FORCE if closely else StatusRefreshMode.NONE
    found = sdk.get(sdk.status([name], refresh=refresh))
    return found[0] if found else None


def _job(name: str) -> dict[str, Any]:
    from sky.client import sdk

    queue = sdk.get(sdk.queue(name))
    if not queue:
        return {"phase": "up"}
    status = queue[0].status
    if status.is_terminal():
        return {"phase": "over", "detail": status.value, "reason": f"SkyPilot says {status.value}"}
    return {"phase": "up", "detail": status.value}


def _why(request: str) -> str:
    """The exception that a request ended with, in words."""
    from sky.client import sdk

    try:
        sdk.get(request)
    except Exception as exc:  # noqa: BLE001 - it is the answer
        return " ".join(f"{type(exc).__name__}: {exc}".split())
    return "SkyPilot does not say why"


def down(argument: Mapping[str, Any]) -> dict[str, Any]:
    """Begin to take the machines down; does not wait for that, and is silent where there are none."""
    from sky import exceptions, jobs
    from sky.client import sdk

    name = argument["name"]
    if argument["managed"]:
        for request in _sending(name):
            sdk.get(sdk.api_cancel([request.request_id]))
        running = [one.job_id for one in _managed_records(name) if one.status.value in MANAGED]
        if running:
            jobs.cancel(job_ids=running)
        return {}
    for request in sdk.api_status(cluster_name=name):  # a launch that goes on would bring it up again
        if request.name == "sky.launch":
            sdk.get(sdk.api_cancel([request.request_id]))
    try:
        if _status(name, False) is not None:
            sdk.down(name)
    except exceptions.ClusterDoesNotExist:
        pass
    return {}


def alive(argument: Mapping[str, Any]) -> dict[str, Any]:
    from sky.client import sdk

    found = []
    for one in sdk.get(sdk.status(None)):
        handle = one["handle"]
        resources = getattr(handle, "launched_resources", None)
        nodes = getattr(handle, "launched_nodes", None) or 1
        hourly = None if resources is None else resources.get_cost(3600) * nodes
        found.append(
            {"name": one["name"], "state": one["status"].value, "managed": False, "hourly": hourly,
             "machine": f"{nodes} x {resources}" if resources else None, "since": one["launched_at"]}
        )  # fmt: skip
    for record in _managed_records():
        found.append(
            {"name": record.job_name, "state": record.status.value, "managed": True, "hourly": None,
             "machine": record.resources, "since": record.submitted_at}
        )  # fmt: skip
    return {"found": found}


def check(argument: Mapping[str, Any]) -> dict[str, Any]:
    from sky.client import sdk

    said = io.StringIO()
    clouds = tuple(argument["clouds"]) or None
    found = sdk.stream_and_get(sdk.check(clouds, True), output_stream=said)
    enabled = {cloud: list(able) for space in found.values() for cloud, able in space.items() if able}
    return {"enabled": enabled, "said": said.getvalue()}


def aws_keys(argument: Mapping[str, Any]) -> dict[str, Any]:
    """SkyPilot copies the user's file of static keys to every machine, where its [default] counts."""
    from sky import clouds
    from sky.adaptors import aws
    from sky.server import common

    if not common.is_api_server_local():  # its server's keys count, which are not seen from here
        return {"travel": True}
    profiles = (aws.get_workspace_profile(), os.environ.get("AWS_DEFAULT_PROFILE"), os.environ.get("AWS_PROFILE"))
    file = configparser.RawConfigParser()
    file.read(clouds.AWS().get_credential_file_mounts().values())
    default = next(filter(None, profiles), "default") == "default"
    return {"travel": default and file.has_option("default", "aws_access_key_id")}


OPS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "start": start, "launch": launch, "look": look, "down": down, "alive": alive, "check": check,
    "aws_keys": aws_keys,
}  # fmt: skip
os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
