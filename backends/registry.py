"""Backend name -> class: strings here, imports on use, the install hint beside the string."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from backends.base import Backend
from launcher.errors import BackendError, BackendNotFoundError, BackendNotInstalledError

ENTRY_POINT_GROUP = "launcher.backends"


@dataclass(frozen=True)
class Builtin:
    """A built-in backend: where its class is, and the extra and root module it needs (None: neither)."""

    target: str
    summary: str
    extra: str | None = None
    root_module: str | None = None


BUILTIN: dict[str, Builtin] = {
    "local": Builtin("backends.local:LocalBackend", "this machine: CPU, one GPU or several"),
    "sagemaker": Builtin("backends.sagemaker:SageMakerBackend", "Amazon SageMaker training", "sagemaker", "boto3"),
    "vertex": Builtin("backends.vertex:VertexBackend", "Google Vertex AI custom training", "vertex", "google"),
    "azureml": Builtin("backends.azureml:AzureMLBackend", "Azure Machine Learning", "azureml", "azure"),
    "skypilot": Builtin(
        "backends.skypilot:SkyPilotBackend",
        "any GPU cloud, Kubernetes or Slurm, through SkyPilot",
        "skypilot",
        "sky",
    ),
}


def create(name: str, home: Path) -> Backend:
    """The backend called `name`, its state kept under `home`.

    Raises BackendNotFoundError (with a did-you-mean), BackendNotInstalledError, or BackendError for a plugin
    that can't be loaded.
    """
    builtin = BUILTIN.get(name)
    target = builtin.target if builtin else _third_party(name)
    module, _, attribute = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        if builtin is None:
            raise BackendError(
                f"the plugin of backend {name} ({target}) can't be loaded: {exc}", "reinstall or remove the plugin"
            ) from exc
        # Only the extra's own root missing means "not installed"; anything else is a bug worth its traceback.
        root = (getattr(exc, "name", None) or "").split(".")[0]
        if isinstance(exc, ModuleNotFoundError) and builtin.extra and root == builtin.root_module:
            raise BackendNotInstalledError(
                f"backend {name} needs the package {exc.name}", f"pip install 'finelaunch[{builtin.extra}]'"
            ) from exc
        raise
    return cast(Backend, found(home))


def names() -> list[str]:
    """Built-in names, then those of installed plugins; a plugin can't shadow a built-in."""
    return [*BUILTIN, *sorted(name for name in _plugins() if name not in BUILTIN)]


def _third_party(name: str) -> str:
    plugins = _plugins()
    if name in plugins:
        return plugins[name]
    known = names()
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise BackendNotFoundError(
        f"there is no backend {name!r}", f"{guess}there are: {', '.join(known)} (launch backends)"
    )


def _plugins() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
