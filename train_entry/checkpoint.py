"""Checkpoints that survive anything: whole or not at all, and never another job's.

A checkpoint is built outside the checkpoint folder, copied in, and becomes one when its manifest (size and
sha256 of every file, the job's fingerprint, the step) is written last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_entry import watchdog
from train_entry.config import changes, misfits
from train_entry.events import say
from train_entry.failure import FULL, JobError, write_atomic

MANIFEST = "manifest.json"
FORMAT = 1
BLOCK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the step it was made after, and what the trainer noted in it.

    `changed`: the fields in which the job has changed since, where LAUNCH_FROM_CHECKPOINT accepts that.
    """

    folder: Path
    step: int
    notes: Mapping[str, Any]
    changed: tuple[str, ...] = ()


def publish(
    built: Path, root: Path, step: int, parts: Mapping[str, str], notes: Mapping[str, Any], keep: int
) -> Path:
    """Copy the folder `built` to root/step-N and make it a checkpoint; then keep only the `keep` newest up to it.

    `parts` is the job's fingerprint field by field. Raises JobError("disk_full") with the older ones intact.
    """
    target = root / f"step-{step:08d}"
    root.mkdir(parents=True, exist_ok=True)
    try:
        # A folder without a manifest is what a killed copy left; one with a manifest is replaced as a whole.
        (target / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        files = _copy_tree(built, target)
        manifest = {"format": FORMAT, "step": step, "job": dict(parts), "notes": dict(notes), "files": files}
        write_atomic(target / MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync_folder(target)
        _sync_folder(root)
    except OSError as exc:
        shutil.rmtree(target, ignore_errors=True)
        raise JobError(
            "disk_full" if exc.errno in FULL else "checkpoint",
            f"could not write the checkpoint of step {step} to {root}: {exc}",
            "the checkpoint before it is intact; free space or raise resources.disk_gib, then resume",
        ) from exc
    _forget_others(root, target, keep)
    return target


def newest_complete(root: Path, parts: Mapping[str, str], at_most: int | None = None) -> Checkpoint | None:
    """The newest checkpoint (of step `at_most` at most) whose files match its manifest, or None.

    A damaged one is skipped for the one before, with a line in the log. Raises JobError("checkpoint") naming
    the changed fields when it belongs to another job: unless LAUNCH_FROM_CHECKPOINT is 1 and its weights fit.
    """
    for folder in sorted(root.glob("step-*"), reverse=True):
        if at_most is not None and folder.name > f"step-{at_most:08d}":
            continue
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if problem := _damage(folder, manifest):
                say(f"skipping checkpoint {folder.name}: {problem}", sys.stderr)
                continue
        except (OSError, ValueError, KeyError, TypeError) as exc:
            say(f"skipping checkpoint {folder.name}: no usable manifest ({exc})", sys.stderr)
            continue
        changed = _accepted(folder, manifest["job"], parts)
        return Checkpoint(folder, int(manifest["step"]), manifest["notes"], changed)
    return None


def newest_agreed(root: Path, parts: Mapping[str, str], leader: bool, rank: int) -> Checkpoint | None:
    """The newest checkpoint that every node has whole, the same on every rank; None without any.

    `leader`: whether this rank reads for its node; nodes may have copies of their own. Raises
    JobError("checkpoint") on every rank when one has no checkpoint and another has.
    """
    limit = None
    while True:
        own = newest_complete(root, parts, limit) if leader else None
        steps = _gathered((rank, own.step if own else -1) if leader else None)
        newest = {step for _, step in steps}
        if newest == {-1}:
            return None
        if len(newest) == 1:
            return own or _known(root, newest.pop(), parts)
        if -1 in newest:
            without = ", ".join(str(r) for r, step in steps if step == -1)
            raise JobError(
                "checkpoint",
                f"rank {without} sees no whole checkpoint in {root}, and another node has step {max(newest)}",
                "LAUNCH_CHECKPOINT_DIR must be one folder for all nodes",
            )
        limit = min(newest)


def _gathered(own: tuple[int, int] | None) -> list[tuple[int, int]]:
    """What the leaders say, on every rank."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [own] if own else []
    said: list[tuple[int, int] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(said, own)
    return [one for one in said if one is not None]


def _known(root: Path, step: int, parts: Mapping[str, str]) -> Checkpoint:
    """A checkpoint that this node's leader has verified."""
    folder = root / f"step-{step:08d}"
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return Checkpoint(folder, step, manifest["notes"], changes(manifest["job"], parts))


def _damage(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    if manifest["format"] != FORMAT:
        return f"format {manifest['format']}, not {FORMAT}"
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["size"]:
            return f"{name} is missing or cut short"
        if sha256_of(path) != expected["sha256"]:
            return f"{name} does not match its sha256"
    return None


def _accepted(folder: Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> tuple[str, ...]:
    """What has changed since the checkpoint, when that was meant; raises JobError("checkpoint") when not."""
    changed = changes(theirs, ours)
    meant = os.environ.get("LAUNCH_FROM_CHECKPOINT") == "1"
    wrong = misfits(changed) if meant else changed
    if wrong:
        raise JobError(
            "checkpoint",
            f"the checkpoints in {folder.parent} belong to a different job ({'; '.join(wrong[:5])})",
            "run it as a new job" if meant else "run it as a new job, or undo the change and resume; "
            "launch run --from-checkpoint JOB goes on from them nevertheless",
            retry=False,
        )  # fmt: skip
    return changed


def _copy_tree(built: Path, target: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for source in sorted(p for p in built.rglob("*") if p.is_file()):
        name = source.relative_to(built).as_posix()
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        files[name] = _copy(source, destination)
    return files


def _copy(source: Path, destination: Path) -> dict[str, Any]:
    """Copy a file onto the disk, however long that takes; its size and sha256.

    Written once from front to back: mounts of object stores take nothing else.
    """
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as original, destination.open("wb") as file:
        while block := original.read(BLOCK):
            file.write(block)
            digest.update(block)
            size += len(block)
            watchdog.beat()
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _forget_others(root: Path, published: Path, keep: int) -> None:
    """Leave the `keep` newest checkpoints up to `published`.

    Later ones were passed over when training went on from before them: they are damaged, or the job was taken
    back. A folder without a manifest is what a killed copy left.
    """
    complete = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        if folder.name <= published.name and (folder / MANIFEST).is_file():
            complete.append(folder)
        else:
            _remove(folder)
    for old in complete[keep:]:
        _remove(old)


def _remove(folder: Path) -> None:
    # The manifest goes first, so that a half-removed checkpoint is none.
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # Windows can't open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):  # a mount without folders has nothing to write
            raise
    finally:
        os.close(handle)
