"""Where this node keeps what is its own, and where the container has what a URI names.

Standard library only. A folder of an object store (gcsfuse, blobfuse, ...) takes whole files well, and neither
appended lines nor renamed folders: working files then lie on the machine's own disk.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from train_entry.failure import JobError

LOCAL_FUSE = ("fuse.fuse-overlayfs", "fuse.lxcfs")
"""A container's own root folder, where no root user runs it."""


def work_folder(outputs: Path, node: int) -> Path:
    """This node's working files: LAUNCH_WORK_DIR, else in the output folder unless that is an object store.

    Nodes that share the output folder have one each.
    """
    if chosen := os.environ.get("LAUNCH_WORK_DIR"):
        return Path(chosen)
    name = ".work" if node == 0 else f".work-node{node}"
    if on_object_store(outputs):
        job = os.environ.get("LAUNCH_JOB_ID") or "job"
        return Path(tempfile.gettempdir()) / f"finelaunch-{job}{name}"
    return outputs / name


def on_object_store(path: Path, mounts: str | None = None) -> bool:
    """True when the folder lies on a FUSE mount. `mounts`: the text of /proc/self/mounts (Linux; read here)."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
    best, kind = "", ""
    for line in mounts.splitlines():
        _, point, found, *_ = [*line.split(), "", "", ""]
        point = point.replace("\\040", " ")
        if len(point) >= len(best) and path.resolve().is_relative_to(point or "/"):
            best, kind = point, found
    return kind.split(".")[0] == "fuse" and kind not in LOCAL_FUSE


def move_tree(source: Path, target: Path) -> None:
    """Put the folder `source` at `target`, which is replaced; one step where the file system can."""
    shutil.rmtree(target, ignore_errors=True)
    try:
        source.rename(target)
    except OSError:  # another file system, or one that renames files only, and knows no modes and times
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
        shutil.rmtree(source, ignore_errors=True)


def mounted(uri: str) -> Path | None:
    """Where LAUNCH_MOUNTS (JSON: URI prefix -> path) has `uri`, by its longest prefix; None where it has not.

    Raises JobError("setup") when LAUNCH_MOUNTS can't be read.
    """
    prefixes = _mapping("LAUNCH_MOUNTS")
    for prefix in sorted(prefixes, key=len, reverse=True):
        rest = uri.removeprefix(prefix)
        # Not s3://bucket/base for s3://bucket/base-2.
        if uri.startswith(prefix) and (not rest or prefix.endswith("/") or rest.startswith("/")):
            root = Path(prefixes[prefix])
            return root / rest.lstrip("/") if rest.lstrip("/") else root
    return None


def refuse_fetch(kind: str, uri: str) -> None:
    """Raise JobError(kind) where LAUNCH_OFFLINE forbids to fetch a URI that is not mounted."""
    if os.environ.get("LAUNCH_OFFLINE") == "1":
        raise JobError(
            kind,
            f"this job is offline and {uri} is not mounted in its container",
            "name a local path (it goes into the bundle), or a URI in the backend's own storage",
        )


def _mapping(variable: str) -> dict[str, str]:
    text = os.environ.get(variable) or "{}"
    try:
        found = json.loads(text)
        return {str(k): str(v) for k, v in found.items()}
    except (ValueError, AttributeError) as exc:
        raise JobError("setup", f"{variable} is not a JSON mapping: {exc}", "the backend sets it") from exc
