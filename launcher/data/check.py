"""The basic check of the data before every job: shape, empty fields, leaks, lengths, labels."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import ConfigError
from launcher.spec import JobSpec
from train_entry.failure import JobError
from train_entry.rows import Row, RowError, read_rows

SHOWN = 5
"""Bad rows named in a message; the rest is counted."""
CHARS_PER_TOKEN_AT_MOST = 12.0
"""A row longer than this many characters for each allowed token is over the limit with any tokenizer that
splits English text (4 to 5 characters a token); the exact count is made where the job runs."""
MANY_LABELS = 100


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What the check saw. `labels` counts the training answers.

    `eval_from` is "file", "split", or "uri": then `eval_rows` is None, they are counted where the job runs.
    """

    train_rows: int
    eval_rows: int | None
    eval_from: str
    labels: dict[str, int] | None
    longest_chars: int
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def check_data(job: JobSpec, folder: Path) -> DataReport | None:
    """Check the job's files, paths relative to `folder`; None when they are URIs (checked where it runs).

    Raises ConfigError listing the bad rows of both files.
    """
    if is_uri(job.data.train):
        return None
    train, held_out = _read_files(job, folder)
    warnings = [*_duplicates(train, "training"), *_label_warnings(job, train, held_out)]
    if held_out is not None:
        warnings += _leaks(train, held_out)
    eval_from, eval_rows = _held_out_rows(job, train, held_out)
    return DataReport(
        train_rows=len(train) - (eval_rows or 0 if eval_from == "split" else 0),
        eval_rows=eval_rows,
        eval_from=eval_from,
        labels=_labels(job, train),
        longest_chars=_longest(job, [*train, *(held_out or [])]),
        warnings=tuple(warnings),
    )


def _held_out_rows(job: JobSpec, train: Sequence[Row], held_out: Sequence[Row] | None) -> tuple[str, int | None]:
    """(where the evaluation rows come from, how many they are)."""
    if held_out is not None:
        return "file", len(held_out)
    if job.data.eval is not None:
        return "uri", None
    if len({row.prompt for row in train}) < 2:
        raise ConfigError(
            f"{job.data.train}: fewer than two different prompts can't be split into training and evaluation",
            "add rows, or name an evaluation file under data.eval",
        )
    return "split", max(1, round(len(train) * job.data.eval_fraction))


def is_uri(text: str) -> bool:
    """True for s3://..., gs://..., azureml://..., hf://...; False for a path (also C:\\...)."""
    return "://" in text


def _read_files(job: JobSpec, folder: Path) -> tuple[list[Row], list[Row] | None]:
    """The rows of both files (None: no evaluation file here), or one error with what is wrong in either."""
    names = [job.data.train]
    if job.data.eval is not None and not is_uri(job.data.eval):
        names.append(job.data.eval)
    found: list[list[Row]] = []
    errors: list[ConfigError] = []
    for name in names:
        try:
            found.append(_rows(job, folder / name))
        except ConfigError as exc:
            errors.append(exc)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        problems = [p for e in errors for p in e.problems]
        raise ConfigError("; ".join(e.message for e in errors), errors[0].hint, problems=problems)
    return found[0], found[1] if len(found) > 1 else None


def _rows(job: JobSpec, path: Path) -> list[Row]:
    if not path.is_file():
        raise ConfigError(
            f"data file not found: {path}", "paths in a job file are relative to the job file's folder"
        )
    rows: list[Row] = []
    bad: list[RowError] = []
    try:
        for row in read_rows(path, job.data.columns, job.data.format):
            if isinstance(row, RowError):
                bad.append(row)
            else:
                rows.append(row)
    except JobError as exc:
        raise ConfigError(exc.message, exc.hint) from exc
    if bad:
        more = [f"... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        raise ConfigError(
            f"{path.name}: {len(bad)} of {len(bad) + len(rows)} rows can't be used",
            "correct or remove these rows; nothing was started",
            problems=[*(str(b) for b in bad[:SHOWN]), *more],
        )
    if not rows:
        raise ConfigError(f"{path.name} has no rows", "it needs one example a line; see launch init")
    return rows


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def _duplicates(rows: Sequence[Row], what: str) -> list[str]:
    seen: dict[tuple[str, str], str] = {}
    again = []
    for row in rows:
        key = (_same(row.prompt), _same(row.answer))
        if key in seen:
            again.append(f"{row.where} = {seen[key]}")
        seen.setdefault(key, row.where)
    return [f"{len(again)} {what} rows stand there twice ({_some(again)})"] if again else []


def _leaks(train: Sequence[Row], held_out: Sequence[Row]) -> list[str]:
    known = {_same(row.prompt): row.where for row in train}
    leaks = [f"{r.where} = {known[_same(r.prompt)]}" for r in held_out if _same(r.prompt) in known]
    if len(leaks) == len(held_out):
        raise ConfigError(
            "every evaluation row is also a training row: the evaluation would measure memory",
            "give data.eval another file, or leave it out to set rows aside",
        )
    return [f"{len(leaks)} evaluation rows are also training rows ({_some(leaks)})"] if leaks else []


def _labels(job: JobSpec, train: Sequence[Row]) -> dict[str, int] | None:
    if job.task != "classification":
        return None
    return dict(sorted(Counter(row.answer.strip() for row in train).items()))


def _label_warnings(job: JobSpec, train: Sequence[Row], held_out: Sequence[Row] | None) -> list[str]:
    counts = _labels(job, train)
    if counts is None:
        return []
    labels = set(job.eval.labels or counts)
    if len(labels) < 2:
        raise ConfigError(
            f"classification needs two labels or more; every training answer is {next(iter(counts))!r}",
            "check data.columns, or choose another task",
        )
    warnings = []
    if len(labels) > MANY_LABELS:
        warnings.append(f"{len(labels)} different answers: is this classification, or task: generation?")
    strange = [r for r in (*train, *(held_out or ())) if r.answer.strip() not in labels]
    if strange and job.eval.labels:
        raise ConfigError(
            f"{len(strange)} answers are not in eval.labels",
            "add the label or correct the rows",
            problems=[f"{r.where}: {r.answer!r}" for r in strange[:SHOWN]],
        )
    if strange:
        warnings.append(
            f"{len(strange)} evaluation answers never occur in training ({_some([r.where for r in strange])})"
        )
    return warnings


def _longest(job: JobSpec, rows: Sequence[Row]) -> int:
    longest = max(rows, key=lambda r: len(r.prompt) + len(r.answer))
    chars = len(longest.prompt) + len(longest.answer)
    if chars > job.data.max_length * CHARS_PER_TOKEN_AT_MOST and job.data.overlong == "error":
        raise ConfigError(
            f"{longest.where}: {chars} characters can't fit data.max_length {job.data.max_length} tokens",
            "raise data.max_length, or set data.overlong to drop or truncate_prompt",
        )
    return chars


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(items[:SHOWN])
    return f"{shown}, ..." if len(items) > SHOWN else shown
