"""Runs in SkyPilot's own environment: a JSON request a line on stdin, an answer a line on stdout.

{"op": "validate", "argument": {"task": {...}, "managed": bool}} -> {"result": {"problems": [{field, message}]}}
{"op": "prices", "argument": {"clouds": [...]}} -> {"result": {"rows": [InstanceTypeInfo], "failed": {cloud: why}}}
What a job's life needs is in life.py. {"error": "...", "type": "ValueError"} answers what could not be done. A
request of another "version" is refused. Imports sky and the standard library, nothing of the launcher.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

CATALOGUE_FIELDS = ("instance_type",)
"""What SkyPilot can only check in catalogues that it downloads; taken out before a check."""


def validate(request: Mapping[str, Any]) -> dict[str, Any]:
    """What SkyPilot refuses of the request, without a network: its schema, then what its service checks later."""
    from sky.utils import schemas

    _no_network()
    # A client lets unknown keys of `config` through to the server, which then refuses them.
    schemas._allow_additional_properties = lambda: False
    task = _without_catalogue_fields(copy.deepcopy(dict(request["task"])))
    found = [{"field": field, "message": _one_line(message)} for field, message in _problems(task)]
    return {"problems": found}


def _problems(task: dict[str, Any]) -> Iterator[tuple[str, str]]:
    import sky

    try:
        built = sky.Task.from_yaml_config(copy.deepcopy(task))
    except Exception as exc:  # noqa: BLE001 - whatever it raises is its answer
        yield from _located(task, str(exc))
        return
    for field, check in _later_checks(built):
        try:
            check()
        except Exception as exc:  # noqa: BLE001
            yield field, str(exc)


def _located(task: dict[str, Any], message: str) -> Iterator[tuple[str, str]]:
    """The fields that SkyPilot refuses also when they stand alone; `task` when only the whole is refused."""
    import sky

    alone = 0
    for key, value in task.items():
        try:
            sky.Task.from_yaml_config({key: copy.deepcopy(value)})
        except Exception as exc:  # noqa: BLE001
            alone += 1
            yield f"task.{key}", str(exc)
    if not alone:
        yield "task", message


def _later_checks(task: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What `sky launch` checks once the task is at the API server, and needs no account for."""
    from sky.data import storage

    yield "task.name", task.validate_name
    yield "task.run", task.validate_run
    for path, mount in task.storage_mounts.items():
        yield (
            f"task.file_mounts.{path}",
            partial(storage.Storage._validate_source, mount.source, mount.mode, False),
        )
    for resources in task.resources:
        yield "task.resources.labels", partial(_check_labels, resources)
        yield "task.resources.job_recovery", resources._try_validate_managed_job_attributes
        yield "task.resources", partial(_check_features, task, resources)


def _check_labels(resources: Any) -> None:
    if resources.cloud is not None:  # else SkyPilot asks which clouds the user has an account with
        resources._try_validate_labels()


def _check_features(task: Any, resources: Any) -> None:
    """The features that a cloud never has; what a cluster may have (FUSE, Pyxis, spot pods) is not known here."""
    from sky.clouds import CloudImplementationFeatures as Feature

    cloud = resources.cloud
    if cloud is None:
        return
    wanted = set(resources.get_required_cloud_features())
    wanted |= {Feature.MULTI_NODE} if task.num_nodes > 1 else set()
    wanted |= {Feature.STORAGE_MOUNTING} if task.storage_mounts else set()
    stop = resources.autostop_config
    if stop is not None and stop.enabled:
        wanted.add(Feature.AUTODOWN if stop.down else Feature.AUTOSTOP)
    maybe = set(getattr(cloud, "_DYNAMICALLY_CHECKED_FEATURES", ()))
    if str(cloud) == "Kubernetes":
        maybe |= {Feature.SPOT_INSTANCE, Feature.CUSTOM_NETWORK_TIER}
    never = getattr(cloud, "_CLOUD_UNSUPPORTED_FEATURES", {})
    refused = {f: why for f, why in never.items() if f in wanted - maybe}
    if refused:
        raise ValueError("; ".join(f"{cloud} has no {f.value}: {why}" for f, why in refused.items()))


def _without_catalogue_fields(task: dict[str, Any]) -> dict[str, Any]:
    resources = task.get("resources")
    if isinstance(resources, dict):
        every = [resources, *(resources.get("ordered") or ()), *(resources.get("any_of") or ())]
        for one in every:
            for name in CATALOGUE_FIELDS:
                if isinstance(one, dict):
                    one.pop(name, None)
    return task


def prices(argument: Mapping[str, Any]) -> dict[str, Any]:
    """The machines with accelerators in each cloud's catalogue, every region; SkyPilot downloads what is old."""
    from sky.catalog import list_accelerators

    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for cloud in argument["clouds"]:
        try:
            found = list_accelerators(gpus_only=True, clouds=cloud, all_regions=True)
        except Exception as exc:  # noqa: BLE001 - one cloud's catalogue may be unreachable, the others not
            failed[cloud] = _one_line(f"{type(exc).__name__}: {exc}")
            continue
        for machines in found.values():
            rows += [{name: _plain(value) for name, value in one._asdict().items()} for one in machines]
    return {"rows": rows, "failed": failed}


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's; NaN, which JSON has not, as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


def _no_network() -> None:
    """A check that reaches for the network is a mistake; it fails at once and by name."""

    def refuse(*args: Any, **_: Any) -> Any:
        raise OSError("this check may not use the network")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse


def _one_line(text: str) -> str:
    return " ".join(text.split())


VERSION = 1


def _ops() -> dict[str, Callable[[Mapping[str, Any]], Any]]:
    import life  # type: ignore[import-not-found] # beside this script, which is not run as a part of a package

    return {"validate": validate, "prices": prices, **life.OPS}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what SkyPilot prints is no answer
    ops = _ops()
    for line in sys.stdin:
        try:
            asked = json.loads(line)
            if asked.get("version") != VERSION:
                raise ValueError(f"this worker speaks version {VERSION}, not {asked.get('version')}")
            answer: dict[str, Any] = {"result": ops[asked["op"]](asked["argument"])}
        except Exception as exc:  # noqa: BLE001 - the launcher shows it
            answer = {"error": _one_line(f"{type(exc).__name__}: {exc}"), "type": type(exc).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
