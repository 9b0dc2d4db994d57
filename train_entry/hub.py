"""A hub model kept in the job's own storage, so that an interruption does not download it again.

LAUNCH_MODEL_CACHE names the folder. A model there is whole when its marker is: written last, it lists every
file with its size, so that a copy that was cut short, or synced half, is none.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from train_entry.config import Model
from train_entry.events import say
from train_entry.failure import write_atomic

MARKER = "complete.json"
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken"]
OLD_WEIGHTS = ["*.bin"]
ELSEWHERE = ["original/*", "onnx/*", "openvino/*", "coreml/*", "consolidated*"]
"""The same weights again, for other libraries."""


def hub_source(model: Model) -> str:
    """Where from_pretrained takes a hub model from: the kept folder, else a download, else the id itself.

    Rank 0 downloads and keeps; the others wait for it before they ask. Raises OSError or ValueError, as the
    hub's library does.
    """
    root = os.environ.get("LAUNCH_MODEL_CACHE")
    if not root:
        return model.id
    kept = kept_folder(Path(root), model)
    if is_whole(kept):
        return str(kept)
    if os.environ.get("RANK", "0") != "0":
        return model.id
    found = _download(model)
    try:
        _keep(found, kept, model)
    except OSError as exc:  # the job can go on without
        say(f"could not keep {model.id} in {root}: {exc}", sys.stderr)
    return str(found)


def on_the_hub(model: Model) -> Model:
    """The model by its hub id where it is named hf://OWNER/NAME[@REVISION]; any other as it is."""
    found = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/?", model.id)
    return replace(model, id=found[1], revision=found[2] or model.revision) if found else model


def kept_folder(root: Path, model: Model) -> Path:
    """The folder of this model at this revision under `root`."""
    name = f"{model.id}@{model.revision or 'main'}"
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", model.id)
    return root / f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def is_whole(folder: Path) -> bool:
    """True when the marker is there and every file has its size."""
    try:
        listed = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return bool(listed) and all((folder / name).stat().st_size == size for name, size in listed.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _download(model: Model) -> Path:
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        found = snapshot_download(
            model.id, revision=model.revision, allow_patterns=patterns, ignore_patterns=ELSEWHERE
        )
        return Path(found)

    folder = fetch(WANTED)
    patterns = _patterns(folder)
    return folder if patterns == WANTED else fetch(patterns)


def _patterns(folder: Path) -> list[str]:
    return WANTED if any(folder.glob("*.safetensors")) else [*WANTED, *OLD_WEIGHTS]


def _matches(name: str, patterns: list[str]) -> bool:
    """As the hub's library matches: a star goes over slashes."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _keep(found: Path, kept: Path, model: Model) -> None:
    (kept / MARKER).unlink(missing_ok=True)
    patterns = _patterns(found)
    sizes = {}
    for name in sorted(p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file()):
        # The hub's cache may hold more of the repository than was asked for now.
        if not _matches(name, patterns) or _matches(name, ELSEWHERE):
            continue
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found / name, kept / name)
        sizes[name] = (found / name).stat().st_size
    # The hub's cache names the folder after the commit.
    marker = {"model": model.id, "revision": model.revision, "commit": found.name, "files": sizes}
    write_atomic(kept / MARKER, json.dumps(marker, indent=1).encode())
