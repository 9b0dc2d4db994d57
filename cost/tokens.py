"""How many tokens a job trains on: its own files through the model's own tokenizer, as train_entry makes rows.

Where the tokenizer is at hand the count is exact, row by row; it is kept by the content of everything that it
depends on. Where it is not, bytes are divided by what a token of such text has on average, and that is said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from cost import token_guess
from cost.model_files import find_files
from cost.tokenizer import FILES, ModelTokenizer, load
from launcher.errors import ConfigError
from launcher.spec import JobSpec
from train_entry.config import TrainJob
from train_entry.data import cut_prompt, ended, render, split, tokenize, too_long
from train_entry.failure import JobError, write_atomic
from train_entry.rows import Row, RowError, read_rows

if TYPE_CHECKING:
    from concurrent.futures import Future

COUNTED = 2
"""Raised whenever the same files would be counted otherwise: counts kept before are then made anew."""
MOST_ROWS, MOST_CHARACTERS = 200_000, 20_000_000
"""Larger files are counted by a sample: a preview must not take minutes, and a sample is half a per cent off."""
SAMPLE = 20_000
LONGEST = 50
"""Of a larger file, so many of the longest texts are counted too."""
KEPT = 2_000
"""Lengths that are kept of a file; of a larger one these many quantiles, the longest row among them."""
PACKED = 256
"""Rows of which is found out how much they share; train_entry/packing.py looks at as many."""
CUT_EXACTLY = 1_000
"""Overlong rows that are really cut and tokenised again; the others are as much below the limit as these."""
BATCH = 1_000
Z = 1.96
"""Standard errors on either side of a mean that 95 % of samples lie within."""


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
    shared: tuple[tuple[int, float], ...] = ()
    """(rows a pass, tokens computed for each) where beginnings that rows share are computed once; of a sample."""
    evaluation: TokenCount | None = None
    """The held-out rows; None where they are read only where the job runs."""


class _Lengths:
    """(prompt, answer) in tokens of rows in file order, and how many were left out or shortened."""

    def __init__(self, both: Sequence[tuple[int, int]], dropped: int = 0, truncated: int = 0) -> None:
        self.whole = [prompt + answer for prompt, answer in both]
        self.answers = [answer for _, answer in both]
        self.dropped, self.truncated = dropped, truncated


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
        tokenizer = load(found.files, template, job.model.id) if found.files else None
        counted = _count(job, files, tokenizer)
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


def _count(job: JobSpec, files: Sequence[Path], tokenizer: ModelTokenizer | None) -> TokenCount:
    ready = _train_job(job)
    try:
        train = _rows(job, files[0])
        held: list[Row] | None = None
        if len(files) > 1:
            held = _rows(job, files[1])
        elif job.data.eval is None:
            train, held = split(train, job.data.eval_fraction, job.train.seed)
        counted = _count_rows(ready, train, tokenizer)
        counted = replace(counted, labels=len({row.answer.strip() for row in train}))
        if tokenizer is not None:
            counted = replace(counted, shared=_shared(ready, train, tokenizer))
        return replace(counted, evaluation=_count_rows(ready, held, tokenizer) if held else None)
    except JobError as exc:
        raise ConfigError(exc.message, exc.hint) from exc


def _train_job(job: JobSpec) -> TrainJob:
    return TrainJob(
        name=job.name, model=job.model, task=job.task, data=job.data, method=job.method, tuning=job.tuning,
        train=job.train, eval=job.eval, output=job.output,
    )  # fmt: skip


def _rows(job: JobSpec, path: Path) -> list[Row]:
    """The file's rows. Raises JobError; which rows are bad, and all of them, launch run's own check tells."""
    rows = []
    for row in read_rows(path, job.data.columns, job.data.format):
        if isinstance(row, RowError):
            raise JobError("data", f"this row can't be used: {row}", "correct or remove it")
        rows.append(row)
    if not rows:
        raise JobError("data", f"{path.name} has no rows", "it needs one example a line; see launch init")
    return rows


def _count_rows(job: TrainJob, rows: Sequence[Row], tokenizer: ModelTokenizer | None) -> TokenCount:
    sampled = len(rows) > SAMPLE and (len(rows) > MOST_ROWS or sum(map(_size, rows)) > MOST_CHARACTERS)
    chosen = random.Random(job.train.seed).sample(rows, SAMPLE) if sampled else rows
    found = _lengths(job, chosen, tokenizer)
    if not found.whole:
        raise JobError("data", "no row is left within data.max_length", "raise data.max_length")
    # A sample seldom has the longest row, which memory depends on: the longest texts are looked at beside it.
    longest = _lengths(job, nlargest(LONGEST, rows, key=_size), tokenizer) if sampled else found
    more = len(rows) / len(chosen)
    error = 0.0 if tokenizer else token_guess.error(chosen)
    return TokenCount(
        lengths=thinned(found.whole, max(longest.whole, default=0)),
        answers=thinned(found.answers, max(longest.answers, default=0)),
        rows=round(len(found.whole) * more), total=round(sum(found.whole) * more),
        error=error + (sampling_error(found.whole) if sampled else 0.0),
        dropped=round(found.dropped * more), truncated=round(found.truncated * more),
    )  # fmt: skip


def _shared(job: TrainJob, rows: Sequence[Row], tokenizer: ModelTokenizer) -> tuple[tuple[int, float], ...]:
    """What packing would make of some rows, for every number of them that a pass may have."""
    drawn = random.Random(0).sample(rows, min(len(rows), PACKED))
    examples = [tokenize(job, tokenizer, row) for row in drawn]
    pairs = [(one.prompt, one.completion) for one in examples if len(one) <= job.data.max_length]
    batch = job.train.batch_size
    sizes = [n for n in range(1, min(batch, len(pairs)) + 1) if batch % n == 0]
    return tuple((size, shared(pairs, size)) for size in sizes)


def shared(rows: Sequence[tuple[Sequence[int], Sequence[int]]], size: int) -> float:
    """Tokens computed for a row, `size` (prompt, completion) a pass, when what prompts share is computed once.

    A row's last token is never computed, and the last of a prompt never shared.
    Example: prompts 1 2 3 and 1 2 4, answers of 2: 1 and 2 once, then two tokens each: 6 for 2 rows, 3.
    """
    batches = [rows[at : at + size] for at in range(0, max(1, len(rows) - size + 1), size)]
    total = 0
    for batch in batches:
        prefixes = {tuple(prompt[:n]) for prompt, _ in batch for n in range(1, len(prompt))}
        total += len(prefixes) + sum(len(completion) - (not prompt) for prompt, completion in batch)
    return total / sum(map(len, batches))


def _size(row: Row) -> int:
    return len(row.answer) + sum(len(m["content"]) for m in row.messages)


def _lengths(job: TrainJob, rows: Sequence[Row], tokenizer: ModelTokenizer | None) -> _Lengths:
    """Tokens of each row that is left, in file order, bounded as train_entry.data bounds them."""
    if tokenizer is None:
        both = token_guess.lengths(job, rows)
    else:
        both = _tokenized(job, rows, tokenizer)
    limit = job.data.max_length
    over = [i for i, (prompt, answer) in enumerate(both) if prompt + answer > limit]
    if over and job.data.overlong == "error" and tokenizer is not None:  # a guess refuses nothing
        raise too_long([(rows[i].where, sum(both[i])) for i in over], limit)
    if job.data.overlong == "drop":
        kept = [pair for pair in both if sum(pair) <= limit]
        return _Lengths(kept, dropped=len(over))
    for i, length in zip(over, _cut(job, [rows[i] for i in over], tokenizer), strict=True):
        both[i] = (max(0, length - both[i][1]), min(length, both[i][1]))
    return _Lengths(both, truncated=len(over))


def _tokenized(job: TrainJob, rows: Sequence[Row], tokenizer: ModelTokenizer) -> list[tuple[int, int]]:
    """(prompt, answer) in tokens of each row: what train_entry.data.tokenize makes of it, many at once."""
    from concurrent.futures import ThreadPoolExecutor

    # The tokenizer works outside of the interpreter's lock: templates of the next rows are rendered meanwhile.
    with ThreadPoolExecutor(1) as aside:
        parts: list[Future[list[tuple[int, int]]]] = []
        for at in range(0, len(rows), BATCH):
            texts = [render(job, tokenizer, row) for row in rows[at : at + BATCH]]
            if len(parts) > 1:
                parts[-2].result()  # no more than two batches of text wait
            parts.append(aside.submit(_batch, texts, tokenizer))
        return [pair for part in parts for pair in part.result()]


def _batch(texts: Sequence[tuple[str, str]], tokenizer: ModelTokenizer) -> list[tuple[int, int]]:
    prompts = tokenizer.batch([prompt for prompt, _ in texts], not tokenizer.chat_template)
    answers = tokenizer.batch([answer for _, answer in texts], False)
    end = tokenizer.eos_token_id
    return [(len(p), len(ended(a.ids, end))) for p, a in zip(prompts, answers, strict=True)]


def _cut(job: TrainJob, rows: Sequence[Row], tokenizer: ModelTokenizer | None) -> list[int]:
    """Tokens of overlong rows whose prompt is cut. Many are not all cut: a row more or less is as the others."""
    limit = job.data.max_length
    if tokenizer is None:
        return [limit] * len(rows)
    exactly = [len(cut_prompt(job, tokenize(job, tokenizer, r), limit, tokenizer)) for r in rows[:CUT_EXACTLY]]
    rest = len(rows) - len(exactly)
    return [*exactly, *[round(sum(exactly) / len(exactly))] * rest] if rest else exactly


def thinned(values: Sequence[int], longest: int) -> tuple[int, ...]:
    """The values in ascending order, or KEPT quantiles of more; the last is `longest` where that is more.

    Example: of 0 .. 5,999 the values 1, 4, 7, ... 5,995, and 5,999.
    """
    ordered = sorted(values)
    if len(ordered) > KEPT:
        top = ordered[-1]
        ordered = [ordered[int((i + 0.5) * len(ordered) / KEPT)] for i in range(KEPT)]
        ordered[-1] = top
    return (*ordered[:-1], max(ordered[-1], longest))


def sampling_error(values: Sequence[int]) -> float:
    """Half the width of the 95 % band of the mean, as a share of it.

    Example: 100 values of 10 and 100 of 30: mean 20, deviation 10, 1.96 x 10.03 / sqrt(200) / 20 = 0.069.
    """
    return Z * stdev(values) / math.sqrt(len(values)) / fmean(values)


def _read_kept(path: Path) -> TokenCount | None:
    try:
        return _as_count(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _as_count(values: Any) -> TokenCount:
    held = values.pop("evaluation")
    return TokenCount(
        lengths=tuple(values.pop("lengths")), answers=tuple(values.pop("answers")),
        shared=tuple((size, tokens) for size, tokens in values.pop("shared")),
        evaluation=_as_count(held) if held else None, **values,
    )  # fmt: skip


def _keep(path: Path, counted: TokenCount) -> None:
    """Without a place to keep it the count is made anew the next time."""
    with contextlib.suppress(OSError):
        write_atomic(path, json.dumps(dataclasses.asdict(counted)).encode())
