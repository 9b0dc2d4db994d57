"""How many tokens a job trains on: its own files through the model's own tokenizer, as train_entry makes rows.

Where the tokenizer is at hand the count is exact, row by row; it is kept by the content of everything that it
depends on. Where it is not, bytes are divided by what a token of such text has on average, and that is said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cost.model_files import find_files
from cost.passes import Passes
from launcher.errors import ConfigError
from launcher.spec import JobSpec
from train_entry.failure import write_atomic

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What is read of a model, the first of them necessarily."""
COUNTED = 4
"""Raised whenever the same files would be counted otherwise: counts kept before are then made anew."""


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """Rows in tokens as the trainer sees them: behind the chat template, cut or dropped at data.max_length."""

    lengths: tuple[int, ...]
    """Of whole rows, ascending: each row's, or KEPT quantiles of many; the last is the longest."""
    answers: tuple[int, ...]
    """Of the learnt part of rows, ascending, likewise."""
    rows: int
    """Rows that are trained on."""
    total: int
    """Tokens of one pass over them."""
    error: float = 0.0
    """How far `total` may be off, as a share of it; 0: counted."""
    assumption: str | None = None
    """What was assumed in place of counting."""
    dropped: int = 0
    """Rows that data.overlong leaves out."""
    truncated: int = 0
    """Rows that data.overlong shortens."""
    labels: int = 1
    """Different answers of the training rows: a classification's labels (train_entry/data.py, _labels)."""
    passes: tuple[Passes, ...] = ()
    """What passes over them come to, by way and size; of a sample."""
    evaluation: TokenCount | None = None
    """The held-out rows; None where they are read only where the job runs."""


def count(job: JobSpec, *, folder: Path, cache: Path) -> TokenCount:
    """The tokens of the job's rows; `folder` is the job file's, `cache` keeps counts and copies of tokenizers.

    Raises ConfigError for data that can't be read or that the trainer would refuse, and for data at a URI.
    """
    files = [_data_file(job.data.train, folder)]
    if job.data.eval is not None and "://" not in job.data.eval:
        files.append(_data_file(job.data.eval, folder))
    found = find_files(job.model, FILES, folder=folder, cache=cache)
    template = _users_template(job, folder)
    kept = cache / "tokens" / f"{_key(job, files, found.files, template)}.json"
    counted = _read_kept(kept)
    if counted is None:
        from cost.counting import count_files
        from cost.tokenizer import load

        tokenizer = load(found.files, template, job.model.id) if found.files else None
        counted = count_files(job, files, tokenizer)
        _keep(kept, counted)
    if found.files:
        return counted
    assumed = f"tokens by the size of the text: {found.why_not}"
    held = counted.evaluation
    return replace(counted, assumption=assumed, evaluation=held and replace(held, assumption=assumed))


def _data_file(name: str, folder: Path) -> Path:
    if "://" in name:
        raise ConfigError(
            f"data.train: {name} is read where the job runs, so its tokens are not known here",
            "name a local copy of the file to see what the job costs",
        )
    path = folder / name
    if not path.is_file():
        raise ConfigError(
            f"data file not found: {path}", "paths in a job file are relative to the job file's folder"
        )
    return path


def _users_template(job: JobSpec, folder: Path) -> str | None:
    if not job.model.chat_template:
        return None
    path = folder / job.model.chat_template
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"model.chat_template: {path} can't be read: {exc}", "name a Jinja file in UTF-8"
        ) from exc


def _key(job: JobSpec, files: Sequence[Path], tokenizer: Mapping[str, Path], template: str | None) -> str:
    """sha256 of all that a count depends on."""
    parts: dict[str, Any] = {
        "counted": COUNTED, "batch": job.train.batch_size,
        "data": dataclasses.asdict(job.data), "seed": job.train.seed, "template": template,
        "files": [_sha256(path) for path in files],
        "tokenizer": {name: _sha256(path) for name, path in tokenizer.items()},
        # Without a tokenizer the model's name tells how large its vocabulary is.
        "model": None if tokenizer else job.model.id,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_kept(path: Path) -> TokenCount | None:
    try:
        return _as_count(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _as_count(values: Any) -> TokenCount:
    held = values.pop("evaluation")
    return TokenCount(
        lengths=tuple(values.pop("lengths")), answers=tuple(values.pop("answers")),
        passes=tuple(Passes(**one) for one in values.pop("passes")),
        evaluation=_as_count(held) if held else None, **values,
    )  # fmt: skip


def _keep(path: Path, counted: TokenCount) -> None:
    """Without a place to keep it the count is made anew the next time."""
    with contextlib.suppress(OSError):
        write_atomic(path, json.dumps(dataclasses.asdict(counted)).encode())
