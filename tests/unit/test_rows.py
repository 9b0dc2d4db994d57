"""Rows from every kind of file in one shape, and what is wrong with those that can't be used."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from train_entry.failure import JobError
from train_entry.rows import Row, RowError, read_rows

PAIR = {"prompt": "a question", "completion": "an answer"}


def read(path: Path, columns: dict[str, str] | None = None, form: str = "auto") -> list[Row | RowError]:
    return list(read_rows(path, columns or {}, form))


def good(path: Path, **options: Any) -> list[tuple[str, str, str]]:
    rows = read(path, **options)
    assert all(isinstance(row, Row) for row in rows), rows
    return [(row.where, row.prompt, row.answer) for row in rows if isinstance(row, Row)]


def write(tmp_path: Path, name: str, text: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(tmp_path: Path, *records: Any) -> Path:
    return write(tmp_path, "rows.jsonl", "".join(json.dumps(r) + "\n" for r in records))


def parquet(tmp_path: Path, records: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


def test_the_three_shapes_mean_the_same(tmp_path: Path) -> None:
    records = [
        PAIR,
        {"instruction": "a question", "response": "an answer"},
        {"messages": [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]},
    ]
    path = jsonl(tmp_path, *records)
    assert [(p, a) for _, p, a in good(path)] == [("a question", "an answer")] * 3


def test_an_instruction_with_an_input_has_both_in_the_prompt(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"instruction": "Sum up", "input": "the text", "response": "text"})
    assert good(path)[0][1] == "Sum up\nthe text"
    path = jsonl(tmp_path, {"instruction": "Sum up", "input": "", "response": "text"})
    assert good(path)[0][1] == "Sum up"


def test_your_columns_are_renamed(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"question": "q", "label": "a"})
    assert good(path, columns={"prompt": "question", "completion": "label"}) == [("rows.jsonl:1", "q", "a")]


def test_jsonl_json_csv_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    records = [PAIR, {"prompt": 'say "hi",\nplease', "completion": "größe \U0001f600"}]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, PAIR)
        writer.writeheader()
        writer.writerows(records)
    paths = [
        jsonl(tmp_path, *records),
        write(tmp_path, "rows.json", json.dumps(records)),
        tmp_path / "rows.csv",
        parquet(tmp_path, records),
    ]
    expected = [(r["prompt"], r["completion"]) for r in records]
    for path in paths:
        assert [(prompt, answer) for _, prompt, answer in good(path)] == expected, path.suffix


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_unusual_line_separators_inside_a_field_do_not_split_the_row(
    separator: str, suffix: str, tmp_path: Path
) -> None:
    prompt = f"one{separator}two"
    if suffix == ".csv":
        path = write(tmp_path, "rows.csv", f"prompt,completion\n{prompt},yes\n")
    else:
        path = write(tmp_path, "rows.jsonl", json.dumps({**PAIR, "prompt": prompt}, ensure_ascii=separator < " "))
    assert [p for _, p, _ in good(path)] == [prompt]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.json"])
def test_a_byte_order_mark_and_windows_line_ends_are_taken(name: str, tmp_path: Path) -> None:
    text = {
        "rows.jsonl": json.dumps(PAIR) + "\r\n\r\n" + json.dumps(PAIR) + "\r\n",
        "rows.csv": "prompt,completion\r\na question,an answer\r\na question,an answer\r\n",
        "rows.json": json.dumps([PAIR, PAIR], indent=1).replace("\n", "\r\n"),
    }[name]
    path = write(tmp_path, name, b"\xef\xbb\xbf" + text.encode())
    assert [(p, a) for _, p, a in good(path)] == [("a question", "an answer")] * 2


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", f"\n{json.dumps(PAIR)}\n\n{json.dumps(PAIR)}")
    assert [where for where, _, _ in good(path)] == ["rows.jsonl:2", "rows.jsonl:4"]


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BAD = {
    "not JSON": ("{nope", r"rows.jsonl:1: not JSON: .* at column 2"),
    "no object": ("[1, 2]", "rows.jsonl:1: expected an object with named fields, got list"),
    "no known field": ('{"text": "x"}', "its fields are: text"),
    "no field": ("{}", "its fields are: none"),
    "empty answer": ('{"prompt": "q", "completion": "  "}', "rows.jsonl:1: completion is empty"),
    "null answer": ('{"prompt": "q", "completion": null}', "completion is missing"),
    "number": ('{"prompt": 3, "completion": "a"}', "prompt must be text, got int"),
    "empty messages": (json.dumps({"messages": []}), "messages must be a list"),
    "answer first": (json.dumps({"messages": [USER]}), "the last message must be a non-empty one"),
    "answer alone": (json.dumps({"messages": [ANSWER]}), "nothing before the assistant's answer"),
    "odd role": (json.dumps({"messages": [{**USER, "role": "bot"}, ANSWER]}), r"messages\[0\].role is 'bot'"),
    "odd content": (json.dumps({"messages": [{**USER, "content": 1}, ANSWER]}), r"messages\[0\] needs role and"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_by_file_and_line_and_the_others_are_read(kind: str, tmp_path: Path) -> None:
    text, expected = BAD[kind]
    found = read(write(tmp_path, "rows.jsonl", f"{text}\n{json.dumps(PAIR)}\n"))
    error, row = found
    assert isinstance(error, RowError) and isinstance(row, Row)
    assert str(error).startswith("rows.jsonl:1: ")
    with pytest.raises(RowError, match=expected):
        raise error
    assert row.where == "rows.jsonl:2"


def test_a_declared_format_is_not_guessed(tmp_path: Path) -> None:
    (error,) = read(jsonl(tmp_path, PAIR), form="instruction")
    assert "instruction is missing" in str(error)


def test_csv_rows_with_too_many_or_too_few_values_are_named(tmp_path: Path) -> None:
    many, few, fine = read(write(tmp_path, "r.csv", "prompt,completion\na,b,c\na\na,b\n"))
    assert str(many) == "r.csv:2: more values than the header has columns"
    assert str(few) == "r.csv:3: completion is missing"
    assert isinstance(fine, Row) and fine.where == "r.csv:4"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xe4"}', r"r\.jsonl:2: not UTF-8"),
        ("r.csv", b"prompt,completion\na,\xff\n", r"r\.csv:2: not UTF-8"),
        ("r.json", b'{"prompt": "a"}', r"r\.json: expected a list"),
        ("r.json", b'[\n{"prompt": ]', r"r\.json:2: not JSON"),
        ("r.csv", b'prompt,completion\na,b\n"open,b\nc,d\n', r"r\.csv:\d: "),
        ("r.parquet", b"no parquet", r"r\.parquet: not a readable Parquet file"),
        ("r.txt", b"text", r"r\.txt: unknown kind of file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=message) as refusal:
        read(write(tmp_path, name, content))
    assert refusal.value.kind == "data"


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv"])
def test_an_empty_file_has_no_rows(name: str, tmp_path: Path) -> None:
    assert read(write(tmp_path, name, "")) == []
