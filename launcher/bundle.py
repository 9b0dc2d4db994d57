"""Files -> one content-addressed bundle: the entrypoint verbatim, the resolved job, data, the user's files.

Layout inside a bundle (LAUNCH_INPUT_DIR where it runs):

    job.json                       the resolved job; its paths are relative to this folder
    code/train_entry/*.py          PYTHONPATH is code/
    data/train.jsonl data/...      local data files; URIs stay where they are
    files/...                      a scorer, a chat template
    model/...                      a base model that is a local folder
    wheels/*.whl                   what an offline job's image may lack (launcher/wheelhouse.py)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from backends.base import Bundle, BundleFile
from launcher.data.check import is_uri
from launcher.errors import ConfigError
from launcher.spec import JobSpec
from train_entry.failure import write_atomic

SECRETS: dict[str, re.Pattern[bytes]] = {
    "an AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY(?: BLOCK)?-----"),
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{60,})\b"),
    "an OpenAI-style key": re.compile(rb"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,}"),
    "a Google API key": re.compile(rb"\bAIza[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])"),
    "a Slack token": re.compile(rb"\bxox[abpr]-[0-9A-Za-z-]{20,}"),
}
"""Credentials with a shape of their own; a hit is almost never chance."""

SHOWN = 10
"""Hits named in a message; the rest is counted."""


def build_bundle(job: JobSpec, folder: Path, work: Path, wheels: Sequence[Path] = ()) -> Bundle:
    """The bundle of `job`, whose paths are relative to `folder`; job.json is written under `work`.

    `wheels` come along under wheels/. Equal content gives an equal sha256, whatever the file times and the
    machine. Raises ConfigError when a file is missing or looks like it holds a credential.
    """
    entries = list(_entries(job, folder))
    _refuse_secrets(job, entries)
    entries += [(f"wheels/{wheel.name}", wheel) for wheel in wheels]
    packed = [_pack(inside, source) for inside, source in entries]
    packed.append(_write_job_file(job, folder, work))
    ordered = tuple(sorted(packed, key=lambda f: f.path))
    return Bundle(sha256=_digest(ordered), files=ordered)


def resolved_job(job: JobSpec, folder: Path) -> dict[str, Any]:
    """The job as job.json holds it: every default filled in, local paths replaced by those in the bundle."""
    data = job.model_dump(mode="json")
    for section, key, inside in _local_files(job, folder):
        data[section][key] = inside
    if _is_model_folder(job, folder):
        data["model"]["id"] = "model"
    return data


def _local_files(job: JobSpec, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(section, key, path in the bundle) of every field that names a file of the user's."""
    wanted = (
        ("data", "train", job.data.train, "data/train"),
        ("data", "eval", job.data.eval, "data/eval"),
        ("model", "chat_template", job.model.chat_template, "files/chat_template"),
        ("eval", "scorer", job.eval.scorer, "files/scorer"),
    )
    for section, key, value, inside in wanted:
        if value is not None and not is_uri(value):
            path = folder / value
            if not path.is_file():
                raise ConfigError(
                    f"{section}.{key}: file not found: {path}",
                    "paths in a job file are relative to the job file's folder",
                )
            yield section, key, f"{inside}{path.suffix}"


def _is_model_folder(job: JobSpec, folder: Path) -> bool:
    name = job.model.id
    if is_uri(name):
        return False
    if (folder / name).is_dir():
        return True
    if Path(name).is_absolute() or name.startswith(("./", "../", "~")):  # no hub id begins so
        raise ConfigError(
            f"model.id: folder not found: {folder / name}",
            "paths in a job file are relative to the job file's folder",
        )
    return False


def _entries(job: JobSpec, folder: Path) -> Iterator[tuple[str, Path]]:
    for section, key, inside in _local_files(job, folder):
        yield inside, folder / getattr(getattr(job, section), key)
    if _is_model_folder(job, folder):
        yield from _model_files(folder / job.model.id)
    code = files("train_entry")
    for item in sorted(code.iterdir(), key=lambda i: i.name):
        if item.is_file() and item.name.endswith((".py", ".txt")):
            yield f"code/train_entry/{item.name}", Path(str(item))


def _model_files(root: Path) -> Iterator[tuple[str, Path]]:
    if not (root / "config.json").is_file():
        raise ConfigError(
            f"model.id: {root} has no config.json", "name a folder that save_pretrained wrote, or a hub id"
        )
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield f"model/{relative.as_posix()}", path


def _refuse_secrets(job: JobSpec, entries: Sequence[tuple[str, Path]]) -> None:
    problems = [
        f"{where}: looks like {what}"
        for where, text in _texts(job.model_dump(mode="json"))
        for what in _looks_like(text.encode())
    ]
    for inside, source in entries:
        if inside.startswith(("code/", "model/")) or (inside.startswith("data/") and job.data.allow_secrets):
            continue
        if source.suffix != ".parquet":
            problems += _scan(source)
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ConfigError(
            "something in the job looks like a credential, and the bundle leaves this machine",
            "remove it; a name under secrets: brings its value to the job, "
            "and data.allow_secrets: true accepts it in data files",
            problems=[*problems[:SHOWN], *more],
        )


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every text in the job file, keys too."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key, where)
            yield from _texts(item, f"{where}.{key}" if where else key)
    elif isinstance(value, Sequence):
        for number, item in enumerate(value):
            yield from _texts(item, f"{where}[{number}]")


def _scan(path: Path) -> list[str]:
    with path.open("rb") as file:
        return [
            f"{path.name}:{number}: looks like {what}"
            for number, line in enumerate(file, 1)
            for what in _looks_like(line)
        ]


def _looks_like(data: bytes) -> list[str]:
    return [what for what, pattern in SECRETS.items() if pattern.search(data)]


def _pack(inside: str, source: Path) -> BundleFile:
    return BundleFile(path=inside, size=source.stat().st_size, sha256=file_sha256(source), source=source)


def _write_job_file(job: JobSpec, folder: Path, work: Path) -> BundleFile:
    content = json.dumps(resolved_job(job, folder), indent=1, sort_keys=True).encode() + b"\n"
    digest = hashlib.sha256(content).hexdigest()
    path = work / f"job-{digest[:16]}.json"
    write_atomic(path, content)  # another launcher may read the same file now
    return BundleFile(path="job.json", size=len(content), sha256=digest, source=path)


def _digest(ordered: Sequence[BundleFile]) -> str:
    listing = "".join(f"{f.sha256} {f.path}\n" for f in ordered)
    return hashlib.sha256(listing.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
