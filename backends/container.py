"""What every rendered container has in common: its environment, time limits, image rules, raw options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from backends.base import PLACEHOLDER, Bundle, Fact
from launcher.errors import ConfigError, UnsupportedError
from launcher.spec import JobSpec

PYTHON_AT_LEAST = (3, 11)
TORCH_AT_LEAST = (2, 6)
"""What train_entry/requirements.txt needs."""
DEFAULT_MAX_HOURS = 24.0
"""The hard stop of a job that names none: a forgotten job must not run, and cost, for ever."""
GRACE_HOURS = 0.25
"""The backend's own stop comes this much after the job's, which checkpoints first."""
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Image:
    """One published image: its reference (may hold {region} and the like), what is in it, where that was read."""

    ref: str
    python: tuple[int, int]
    torch: tuple[int, int]
    as_of: date
    url: str

    def __post_init__(self) -> None:
        if self.python < PYTHON_AT_LEAST or self.torch < TORCH_AT_LEAST:
            raise ValueError(f"{self.ref} has Python {self.python} and torch {self.torch}: too old for the pins")


def max_hours(job: JobSpec) -> float:
    """The hours after which the job stops itself."""
    return job.resources.max_hours or DEFAULT_MAX_HOURS


def hard_stop_s(job: JobSpec) -> int:
    """Seconds after which the backend stops the job, whatever it does."""
    return round((max_hours(job) + GRACE_HOURS) * 3600)


def launch_env(
    job: JobSpec, token: str, *, gpus: int, inputs: str, outputs: str, checkpoints: str, model_cache: str,
    mounts: Mapping[str, str], secrets: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """The LAUNCH_* dialect (docs/container.md) with the job's own variables.

    `gpus`: those that a node is paid for; with fewer, training does not begin (the job's env may name a number).
    `mounts`: URI prefix -> the path where the container has it. `secrets`: name -> reference into the vendor's
    store, never a value. `inputs` holds the bundle. Raises ConfigError where the job sets a variable of ours.
    """
    env = {
        "LAUNCH_JOB_ID": token,
        "LAUNCH_INPUT_DIR": inputs,
        "LAUNCH_OUTPUT_DIR": outputs,
        "LAUNCH_CHECKPOINT_DIR": checkpoints,
        "PYTHONPATH": f"{inputs}/code",
        "PYTHONUNBUFFERED": "1",
        "LAUNCH_MAX_HOURS": f"{max_hours(job):g}",
    }
    if mounts:
        env["LAUNCH_MOUNTS"] = json.dumps(dict(sorted(mounts.items())))
    if secrets:
        env["LAUNCH_SECRETS"] = json.dumps(dict(sorted(secrets.items())))
    if job.model.cache:
        env["LAUNCH_MODEL_CACHE"] = model_cache
    if job.resources.offline:
        env |= {"LAUNCH_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    for section, names in (("env", job.env), ("secrets", job.secrets)):
        if taken := [name for name in names if name in env]:
            raise ConfigError(
                f"{section}.{taken[0]}: launch itself sets this variable",
                f"take it out of {section} in the job file",
            )
    return {"LAUNCH_GPUS": str(gpus), **job.env, **env}


def remote_uris(job: JobSpec) -> dict[str, str]:
    """Field -> URI of everything that stays where it is: data.train, data.eval, model.id."""
    named = {"data.train": job.data.train, "data.eval": job.data.eval, "model.id": job.model.id}
    return {field: uri for field, uri in named.items() if uri and "://" in uri}


def refuse_offline_downloads(job: JobSpec, mounted: Mapping[str, str]) -> None:
    """An offline job can't fetch its model, its data or its secrets. Raises UnsupportedError naming the field.

    `mounted`: URI prefix -> path, as in launch_env.
    """
    if not job.resources.offline:
        return
    if job.secrets:
        raise UnsupportedError(
            "secrets: a job that is offline can't reach the vendor's secret store",
            "take secrets out, or set resources.offline: false",
        )
    model = job.model.id
    is_local = model.startswith(("/", ".")) or "\\" in model
    if "://" not in model and not is_local and "{model folder}" not in mounted:
        raise UnsupportedError(
            f"model.id: a job that is offline can't download {model}",
            "name a local folder (it goes into the bundle) or a URI that the backend mounts",
        )
    for field, uri in remote_uris(job).items():
        if not any(uri.startswith(prefix) for prefix in mounted):
            raise UnsupportedError(
                f"{field}: a job that is offline can't read {uri}", "name a URI in the backend's own storage"
            )


def model_in_bundle(bundle: Bundle) -> dict[str, str]:
    """What tells refuse_offline_downloads, beside the mounts, that the model comes along; empty if it doesn't."""
    return {"{model folder}": ""} if any(f.path.startswith("model/") for f in bundle.files) else {}


def raw_field(job: JobSpec, backend: str, *path: str) -> Any:
    """What `backend_options` has at `path`; None where it has nothing there, or no mapping above it."""
    found: Any = job.backend_options.get(backend)
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def merged(request: Mapping[str, Any], options: Mapping[str, Any], ours: frozenset[str]) -> dict[str, Any]:
    """`request` with the user's raw backend options laid over it: mappings merge, all else replaces, null removes.

    `ours`: dotted paths that only launch sets (the name that makes submit idempotent, ...). Raises ConfigError.
    """
    for path, value in _paths(options):
        # Replacing or removing what holds a field of ours would replace the field.
        holds_ours = not isinstance(value, Mapping) and any(own.startswith(f"{path}.") for own in ours)
        if path in ours or holds_ours:
            raise ConfigError(f"backend_options: {path} is set by launch itself", "take it out of backend_options")
    return _laid_over(request, options)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = _laid_over(out[key], value)
        else:
            out[key] = value
    return out


def _paths(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in `options`."""
    for key, value in options.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def with_examples(value: Any, facts: tuple[Fact, ...]) -> Any:
    """`value` with every placeholder replaced by its fact's example, for validation."""
    examples = {fact.name: fact.example for fact in facts}
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda match: examples.get(match.group(2), match.group()), value)
    if isinstance(value, Mapping):
        return {with_examples(k, facts): with_examples(v, facts) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [with_examples(v, facts) for v in value]
    return value
