"""Counting a job's tokens, row by row as train_entry makes rows; what is counted is kept by cost/tokens.py."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from heapq import nlargest
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from cost import token_guess
from cost.passes import Passes, PassRow, drawn, passes_of
from cost.tokenizer import ModelTokenizer
from cost.tokens import TokenCount
from launcher.errors import ConfigError
from launcher.spec import JobSpec
from train_entry.config import TrainJob
from train_entry.data import cut_prompt, ended, render, split, tokenize, too_long
from train_entry.failure import JobError
from train_entry.rows import Row, RowError, read_rows

if TYPE_CHECKING:
    from concurrent.futures import Future

MOST_ROWS, MOST_CHARACTERS = 200_000, 25_000_000
"""Larger files are counted by a sample: a preview must not take minutes, and a sample is half a per cent off."""
SAMPLE = 20_000
LONGEST = 50
"""Of a larger file, so many of the longest texts are counted too."""
KEPT = 2_000
"""Lengths that are kept of a file; of a larger one these many quantiles, the longest row among them."""
CUT_EXACTLY = 1_000
"""Overlong rows that are really cut and tokenised again; the others are as much below the limit as these."""
BATCH = 1_000
Z = 1.96
"""Standard errors on either side of a mean that 95 % of samples lie within."""


class _Lengths:
    """(prompt, answer) in tokens of rows in file order, and how many were left out or shortened."""

    def __init__(self, both: Sequence[tuple[int, int]], dropped: int = 0, truncated: int = 0) -> None:
        self.whole = [prompt + answer for prompt, answer in both]
        self.answers = [answer for _, answer in both]
        self.dropped, self.truncated = dropped, truncated


def count_files(job: JobSpec, files: Sequence[Path], tokenizer: ModelTokenizer | None) -> TokenCount:
    """The rows of the training file, and of the held-out one where there is a second.

    Raises ConfigError for rows that the trainer would refuse.
    """
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
        counted = replace(counted, passes=_ways(ready, train, tokenizer))
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


def _ways(job: TrainJob, rows: Sequence[Row], tokenizer: ModelTokenizer | None) -> tuple[Passes, ...]:
    """What passes over the rows come to, for every number of them that a pass may have."""
    chosen, limit, overlong = drawn(rows), job.data.max_length, job.data.overlong
    if tokenizer is None:
        both = token_guess.lengths(job, chosen)
        if overlong != "drop":  # a guess refuses nothing
            both = [_within(pair, limit) for pair in both]
        made = [PassRow(range(prompt), answer) for prompt, answer in both]
    else:
        examples = [tokenize(job, tokenizer, row) for row in chosen]
        if overlong == "truncate_prompt":
            examples = [cut_prompt(job, one, limit, tokenizer) for one in examples]
        made = [PassRow(one.prompt, len(one.completion)) for one in examples]
    fitting = [row for row in made if len(row) <= limit]
    sizes = [n for n in range(1, job.train.batch_size + 1) if job.train.batch_size % n == 0]
    return passes_of(fitting, sizes, known=tokenizer is not None)


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
        both[i] = _within(both[i], length)
    return _Lengths(both, truncated=len(over))


def _within(both: tuple[int, int], limit: int) -> tuple[int, int]:
    """(prompt, answer) in tokens with the prompt cut to what the answer leaves of `limit`."""
    prompt, answer = both
    answer = min(limit, answer)
    return min(prompt, limit - answer), answer


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
