"""Rows -> token ids with the labels that are learnt, the same on every rank and after every restart."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_entry.config import TrainJob
from train_entry.embedded import cache_dir
from train_entry.failure import JobError
from train_entry.folders import mounted, refuse_fetch
from train_entry.rows import Message, Row, RowError, read_rows

SHOWN = 5


@dataclass(frozen=True)
class Example:
    """One tokenised row: prompt ids, then completion ids ending in exactly one end-of-turn token."""

    row: Row
    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Dataset:
    """What the job trains and is judged on. `sha256` covers the training rows' text."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    labels: tuple[str, ...] | None
    dropped: int
    truncated: int
    sha256: str


def load_dataset(job: TrainJob, inputs: Path, tokenizer: Any) -> Dataset:
    """Read, split, tokenise and bound the job's rows.

    Raises JobError("data") naming file and line of what can't be used.
    """
    train = _read(job, inputs, job.data.train)
    held_out: list[Row]
    if job.data.eval is None:
        train, held_out = split(train, job.data.eval_fraction, job.train.seed)
    else:
        held_out = _read(job, inputs, job.data.eval)
    digest = hashlib.sha256(repr([(r.messages, r.answer) for r in train]).encode()).hexdigest()
    bounded_train, dropped, cut = _bound(job, [tokenize(job, tokenizer, r) for r in train], tokenizer)
    bounded_eval, dropped_eval, cut_eval = _bound(job, [tokenize(job, tokenizer, r) for r in held_out], tokenizer)
    if not bounded_train or not bounded_eval:
        raise JobError("data", "no row is left within data.max_length", "raise data.max_length")
    return Dataset(
        train=tuple(bounded_train),
        held_out=tuple(bounded_eval),
        labels=_labels(job, bounded_train),
        dropped=dropped + dropped_eval,
        truncated=cut + cut_eval,
        sha256=digest,
    )


def split(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(training, held-out) rows by seed; at least one of each. Rows with equal prompts stay together."""
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row)
    if len(by_prompt) < 2:
        raise JobError("data", "fewer than two different rows can't be split", "add rows, or give data.eval")
    groups = list(by_prompt.values())
    order = sorted(range(len(groups)), key=lambda i: random.Random(f"{seed}:{i}").random())
    wanted = max(1, round(len(rows) * fraction))
    held: set[int] = set()
    taken = 0
    for index in order[: len(groups) - 1]:
        if taken >= wanted:
            break
        held.add(index)
        taken += len(groups[index])
    chosen = {id(row) for index in held for row in groups[index]}
    return [r for r in rows if id(r) not in chosen], [r for r in rows if id(r) in chosen]


def judged_rows(job: TrainJob, data: Dataset) -> list[Example]:
    """The held-out rows that are judged: at most eval.max_rows, chosen by the seed, in file order."""
    if len(data.held_out) <= job.eval.max_rows:
        return list(data.held_out)
    chosen = random.Random(job.train.seed).sample(range(len(data.held_out)), job.eval.max_rows)
    return [data.held_out[i] for i in sorted(chosen)]


def tokenize(job: TrainJob, tokenizer: Any, row: Row) -> Example:
    """The row as the model sees it: the prompt's ids are the same in training and in use."""
    prompt, completion = render(job, tokenizer, row)
    # A chat template writes the special tokens itself; plain text gets the tokenizer's own (bos).
    prompt_ids = tokenizer(prompt, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    return Example(row, tuple(prompt_ids), completion_ids(tokenizer, completion))


def completion_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of an answer, ending in one end-of-turn token and nothing after it."""
    return ended(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)


def ended(ids: Sequence[int], end: int) -> tuple[int, ...]:
    """The ids up to their last end of turn; with one where there is none."""
    # Templates put a line feed behind the end of turn: no model has to learn that.
    return (*ids[: len(ids) - ids[::-1].index(end)],) if end in ids else (*ids, end)


def render(job: TrainJob, tokenizer: Any, row: Row) -> tuple[str, str]:
    """(prompt text, answer text) through the chat template, or as they are where there is none."""
    from jinja2 import TemplateError

    messages = with_system(job.data.system, row.messages)
    if not tokenizer.chat_template:
        text = "\n".join(m["content"] for m in messages if m["content"])
        return f"{text}\n", row.answer
    answered = [*messages, {"role": "assistant", "content": row.answer}]
    try:
        prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(answered, tokenize=False)
    except TemplateError as exc:
        raise JobError(
            "data",
            f"{row.where}: the model's chat template refuses this row: {exc}",
            "change the row or data.system, or give a template of your own as model.chat_template",
        ) from exc
    # Some templates render a finished answer differently (empty thinking blocks): then the answer is added.
    completion = whole[len(prompt) :] if whole.startswith(prompt) else row.answer
    return prompt, completion


def with_system(system: str | None, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put data.system before messages that have none of their own."""
    if system is None or (messages and messages[0]["role"] == "system"):
        return tuple(messages)
    return ({"role": "system", "content": system}, *messages)


def label_ids(example: Example, loss_on: str) -> list[int]:
    """Labels for input ids prompt + completion: -100 where nothing is learnt."""
    # Nothing stands before the first token that could predict it.
    head = [-100] * len(example.prompt) if loss_on == "completion" else [-100, *example.prompt[1:]]
    return [*head, *example.completion]


def _read(job: TrainJob, inputs: Path, name: str) -> list[Row]:
    path = (_mounted_file(name) or _local_copy(name)) if "://" in name else inputs / name
    if not path.is_file():
        where = f" (looked for at {path})" if "://" in name else ""
        raise JobError("data", f"data file not found: {name}{where}")
    found = list(read_rows(path, job.data.columns, job.data.format))
    bad = [str(r) for r in found if isinstance(r, RowError)]
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise JobError("data", f"{len(bad)} rows can't be used: {'; '.join(bad[:SHOWN])}{more}")
    rows = [r for r in found if isinstance(r, Row)]
    if not rows:
        raise JobError("data", f"{name} has no rows")
    return rows


def _mounted_file(uri: str) -> Path | None:
    """Where the container has a data file; some vendors mount a file as a folder that holds it."""
    path = mounted(uri)
    inside = path / uri.rsplit("/", 1)[-1] if path is not None and path.is_dir() else None
    return inside if inside is not None and inside.is_file() else path


def _local_copy(uri: str) -> Path:
    """A data file at a URI, copied into the cache. Read anew by every start: the object may have changed."""
    refuse_fetch("data", uri)
    try:
        import fsspec
    except ModuleNotFoundError as exc:
        raise JobError("data", f"reading {uri} needs fsspec") from exc
    target = cache_dir() / "data" / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}-{uri.rsplit('/', 1)[-1]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
        filesystem.get_file(path, str(temporary))
    except (OSError, ImportError, ValueError) as exc:
        raise JobError("data", f"could not read {uri}: {exc}", "check the URI and its rights") from exc
    temporary.replace(target)
    return target


def _bound(job: TrainJob, examples: list[Example], tokenizer: Any) -> tuple[list[Example], int, int]:
    """(examples within data.max_length, dropped, truncated). An answer is never cut."""
    limit = job.data.max_length
    long = [e for e in examples if len(e) > limit]
    if not long:
        return examples, 0, 0
    if job.data.overlong == "error":
        raise too_long([(e.row.where, len(e)) for e in long], limit)
    if job.data.overlong == "drop":
        return [e for e in examples if len(e) <= limit], len(long), 0
    return [cut_prompt(job, e, limit, tokenizer) for e in examples], 0, len(long)


def too_long(rows: Sequence[tuple[str, int]], limit: int) -> JobError:
    """The refusal of rows (where, tokens) that are over the limit."""
    worst, length = max(rows, key=lambda row: row[1])
    where = ", ".join(place for place, _ in rows[:SHOWN])
    return JobError(
        "data",
        f"{len(rows)} rows are longer than data.max_length {limit} ({where}); "
        f"the longest has {length} tokens ({worst})",
        f"set data.max_length: {length}, or data.overlong: drop or truncate_prompt",
    )


def cut_prompt(job: TrainJob, example: Example, limit: int, tokenizer: Any) -> Example:
    """Shorten the last user message from its end until the row fits; the template around it stays whole."""
    if len(example) <= limit:
        return example
    messages = list(example.row.messages)
    at = max(i for i, m in enumerate(messages) if m["role"] == "user" or i == 0)
    words = tokenizer(messages[at]["content"], add_special_tokens=False)["input_ids"]
    keep = len(words) - (len(example) - limit)
    while keep > 0:
        text = tokenizer.decode(words[:keep], skip_special_tokens=True)
        shorter = (*messages[:at], {**messages[at], "content": text}, *messages[at + 1 :])
        cut = tokenize(job, tokenizer, Row(example.row.where, shorter, example.row.answer))
        if len(cut) <= limit:
            return cut
        keep -= len(cut) - limit
    raise JobError(
        "data",
        f"{example.row.where}: the answer and the template alone are longer than data.max_length {limit}",
        "raise data.max_length, or set data.overlong: drop",
    )


def _labels(job: TrainJob, train: Sequence[Example]) -> tuple[str, ...] | None:
    if job.task != "classification":
        return None
    return job.eval.labels or tuple(sorted({e.row.answer.strip() for e in train}))
