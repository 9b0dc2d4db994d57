"""Rows of a JSONL, JSON, CSV or Parquet file in one shape: messages, the last of them the answer.

Standard library only (pyarrow for Parquet): the launcher checks files with the same reader that trains.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_entry.failure import JobError

Message = dict[str, str]
"""{"role": system | user | assistant | tool, "content": text}."""

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One example. `where` is file:line, or "file row n"; `messages` are those before the answer."""

    where: str
    messages: tuple[Message, ...]
    answer: str

    @property
    def prompt(self) -> str:
        """The messages before the answer as plain text."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)


class RowError(ValueError):
    """One bad row: `where` and what is wrong with it."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


def read_rows(path: Path, columns: Mapping[str, str], declared_format: str) -> Iterator[Row | RowError]:
    """Every row of the file, or what is wrong with it. Raises JobError when the file can't be read."""
    for where, record in _records(path):
        if isinstance(record, RowError):
            yield record
            continue
        if not isinstance(record, dict):
            yield RowError(where, f"expected an object with named fields, got {type(record).__name__}")
            continue
        try:
            yield _as_row(where, _rename(record, columns), declared_format)
        except RowError as exc:
            yield exc


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix not in SUFFIXES:
        raise JobError(
            "data", f"{path.name}: unknown kind of file", f"use one of {', '.join(SUFFIXES)} (by its ending)"
        )
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        line = path.read_bytes()[: exc.start].count(b"\n") + 1
        raise JobError(
            "data",
            f"{path.name}:{line}: not UTF-8 (byte {exc.start})",
            f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}",
        ) from exc
    if path.suffix == ".jsonl":
        yield from _jsonl(path.name, text)
    elif path.suffix == ".json":
        yield from _json(path.name, text)
    else:
        yield from _csv(path.name, text)


def _jsonl(name: str, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as exc:
            yield where, RowError(where, f"not JSON: {exc.msg} at column {exc.colno}")


def _json(name: str, text: str) -> Iterator[tuple[str, Any]]:
    try:
        loaded = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as exc:
        raise JobError(
            "data", f"{name}:{exc.lineno}: not JSON: {exc.msg}", "one object a line? name it .jsonl"
        ) from exc
    if not isinstance(loaded, list):
        raise JobError("data", f"{name}: expected a list of objects", "one object a line? name it .jsonl")
    for number, record in enumerate(loaded, 1):
        yield f"{name} row {number}", record


def _csv(name: str, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): a field may hold U+2028. Strict: an open quote must not swallow the rest of the file.
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for record in reader:
            where = f"{name}:{reader.line_num}"
            if None in record:
                yield where, RowError(where, "more values than the header has columns")
            else:
                yield where, record
    except csv.Error as exc:
        raise JobError("data", f"{name}:{reader.line_num}: {exc}", "check the quotes of that line") from exc


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError as exc:
        raise JobError(
            "data", f"{path.name}: reading Parquet needs pyarrow", "pip install 'finelaunch[parquet]'"
        ) from exc
    import pyarrow as pa

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as exc:
        raise JobError("data", f"{path.name}: not a readable Parquet file: {exc}") from exc
    for number, record in enumerate(table.to_pylist(), 1):
        yield f"{path.name} row {number}", record


def _rename(record: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    yours = {own: standard for standard, own in columns.items()}
    return {yours.get(key, key): value for key, value in record.items()}


def _as_row(where: str, record: dict[str, Any], declared: str) -> Row:
    kind = declared if declared != "auto" else _guess_format(where, record)
    if kind == "messages":
        return _from_messages(where, record.get("messages"))
    if kind == "prompt_completion":
        return _single(where, _text(where, record, "prompt"), _text(where, record, "completion"))
    prompt = _text(where, record, "instruction")
    if record.get("input"):
        prompt = f"{prompt}\n{_text(where, record, 'input')}"
    return _single(where, prompt, _text(where, record, "response"))


def _guess_format(where: str, record: dict[str, Any]) -> str:
    if "messages" in record:
        return "messages"
    if "prompt" in record and "completion" in record:
        return "prompt_completion"
    if "instruction" in record and "response" in record:
        return "instruction"
    found = ", ".join(map(str, record)) or "none"
    raise RowError(
        where,
        "needs instruction and response, prompt and completion, or messages; "
        f"its fields are: {found} (name yours under data.columns)",
    )


def _text(where: str, record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        raise RowError(where, f"{key} is missing")
    if not isinstance(value, str):
        raise RowError(where, f"{key} must be text, got {type(value).__name__}")
    if not value.strip():
        raise RowError(where, f"{key} is empty")
    return value


def _from_messages(where: str, messages: Any) -> Row:
    if not isinstance(messages, list) or not messages:
        raise RowError(where, "messages must be a list of {role, content}")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise RowError(where, f"messages[{number}] needs role and content, both text")
        if message.get("role") not in ("system", "user", "assistant", "tool"):
            raise RowError(where, f"messages[{number}].role is {message.get('role')!r}")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise RowError(where, "the last message must be a non-empty one of the assistant: it is what is learnt")
    before = tuple({"role": m["role"], "content": m["content"]} for m in messages[:-1])
    if not any(m["content"].strip() for m in before):
        raise RowError(where, "there is nothing before the assistant's answer")
    return Row(where, before, messages[-1]["content"])


def _single(where: str, prompt: str, answer: str) -> Row:
    return Row(where, ({"role": "user", "content": prompt},), answer)
