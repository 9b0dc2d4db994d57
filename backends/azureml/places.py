"""Where a job's things are: in the workspace's datastore, and in the container, where Azure ML mounts them.

No path is known before the job runs: `${{inputs.NAME}}` in the command becomes one, in an environment variable it
stays as it is. https://learn.microsoft.com/azure/machine-learning/reference-yaml-job-command (read 2026-11-25)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from backends.base import Bundle, Site
from backends.container import remote_uris
from launcher.errors import ConfigError
from launcher.spec import JobSpec

JOB_TAG, LINEAGE_TAG, OWNER_TAG = "finelaunch_job", "finelaunch_lineage", "finelaunch_owner"
DEFAULT_DATASTORE = "workspaceblobstore"
"""Every workspace has it. https://learn.microsoft.com/azure/machine-learning/how-to-datastore"""
AZURE = re.compile(r"azureml://|wasbs://|abfss://|https://[^/]+\.(?:blob|dfs)\.core\.")
"""What Azure ML mounts. https://learn.microsoft.com/azure/machine-learning/how-to-read-write-data-v2#paths"""
SIGNED = re.compile(r"[?&]sig=", re.IGNORECASE)
INPUT_OF = {"data.train": "data_train", "data.eval": "data_eval", "model.id": "model"}
EXPRESSION = re.compile(r"\$\{\{\s*(inputs|outputs)\.([\w.-]+?)\s*\}\}")
BUNDLE, OUTPUT, CHECKPOINTS, MODEL_CACHE = "bundle", "output", "checkpoints", "model_cache"


def workspace(site: Site) -> str:
    """The workspace's ARM id."""
    return (
        f"/subscriptions/{site.need('subscription')}/resourceGroups/{site.need('resource_group')}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{site.need('workspace')}"
    )


def folder(site: Site, path: str) -> str:
    """A folder of ours in the datastore."""
    datastore = site.get("datastore") or DEFAULT_DATASTORE
    return f"azureml://datastores/{datastore}/paths/finelaunch/{path}/"


def inputs(job: JobSpec, bundle: Bundle, site: Site) -> dict[str, Any]:
    """The bundle, then the job's data and model in Azure's storage.

    The bundle is copied: Python reads its many small files again and again. One with a model in it is mounted,
    since the nodes' disks are small.
    """
    whole = any(file.path.startswith("model/") for file in bundle.files)
    found = {
        BUNDLE: {
            "jobInputType": "uri_folder",
            "uri": folder(site, f"bundles/{bundle.sha256}"),
            "mode": "ReadOnlyMount" if whole else "Download",
        }
    }
    for field, uri in _own_storage(job).items():
        kind = "uri_folder" if field == "model.id" else "uri_file"
        found[INPUT_OF[field]] = {"jobInputType": kind, "uri": uri, "mode": "ReadOnlyMount"}
    return found


def mounts(job: JobSpec) -> dict[str, str]:
    """URI -> the expression that becomes its path."""
    return {uri: inside("inputs", INPUT_OF[field]) for field, uri in _own_storage(job).items()}


def outputs(job: JobSpec, site: Site, token: str, lineage: str) -> dict[str, Any]:
    """Mounted folders: what is written there outlives the job, and an interruption."""
    found = {OUTPUT: f"jobs/{token}/output", CHECKPOINTS: f"jobs/{lineage}/checkpoints"}
    if job.model.cache:
        found[MODEL_CACHE] = "models"
    return {
        name: {"jobOutputType": "uri_folder", "uri": folder(site, path), "mode": "ReadWriteMount"}
        for name, path in found.items()
    }


def vault_name(secret: str) -> str:
    """The secret's name in a key vault, where names have no underscore."""
    return secret.replace("_", "-")


def inside(kind: str, name: str) -> str:
    """The expression that becomes the path of an input or output in the container."""
    return f"${{{{{kind}.{name}}}}}"


def command(env: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """(the job's shell command, the variables that can stand outside of it).

    exec: the process takes the shell's place, so that it gets SIGTERM.
    """
    shell = {name: value for name, value in env.items() if EXPRESSION.search(value) and _ours(name)}
    exports = " ".join(f"{name}={_quoted(value)}" for name, value in sorted(shell.items()))
    return f"export {exports} && exec python3 -m train_entry", {k: v for k, v in env.items() if k not in shell}


def _ours(name: str) -> bool:
    return name.startswith("LAUNCH_") or name == "PYTHONPATH"


def _quoted(value: str) -> str:
    """In double quotes, which hold whether the expression becomes a path or a variable that names it."""

    def escape(match: re.Match[str]) -> str:
        found = match.group()
        return found if EXPRESSION.fullmatch(found) else f"\\{found}"

    escaped = re.sub(rf'{EXPRESSION.pattern}|["\\$`]', escape, value)
    return f'"{escaped}"'


def _own_storage(job: JobSpec) -> dict[str, str]:
    """Field -> URI that Azure ML mounts; the training process reads every other one itself."""
    found = {}
    for field, uri in remote_uris(job).items():
        if SIGNED.search(uri):
            raise ConfigError(
                f"{field}: the URI holds a signature (SAS), which is a secret",
                "make a datastore of the storage account and name azureml://datastores/NAME/paths/...",
            )
        if AZURE.match(uri):
            found[field] = uri
    return found
