"""The data check: what is refused before a job starts, what is only warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.data.check import DataReport, check_data
from launcher.errors import ConfigError
from launcher.spec import JobSpec

Pairs = list[tuple[str, str]]
TWENTY: Pairs = [(f"question {i}", "yes" if i % 2 else "no") for i in range(20)]


def check(
    tmp_path: Path, train: Pairs | str, held_out: Pairs | str | None = None, task: str = "classification",
    **changes: Any,
) -> DataReport:  # fmt: skip
    data = {"train": "train.jsonl", **changes.pop("data", {})}
    put(tmp_path / "train.jsonl", train)
    if held_out is not None:
        put(tmp_path / "eval.jsonl", held_out)
        data["eval"] = "eval.jsonl"
    spec = {"name": "demo", "model": "org/m", "task": task, "data": data, **changes}
    report = check_data(JobSpec.model_validate(spec), tmp_path)
    assert report is not None
    return report


def put(path: Path, rows: Pairs | str) -> None:
    lines = (
        rows
        if isinstance(rows, str)
        else "".join(json.dumps({"prompt": p, "completion": a}) + "\n" for p, a in rows)
    )
    path.write_text(lines, encoding="utf-8")


def test_clean_data_has_counts_and_no_warnings(tmp_path: Path) -> None:
    report = check(tmp_path, TWENTY)
    assert (report.train_rows, report.eval_rows, report.eval_from) == (18, 2, "split")
    assert report.labels == {"no": 10, "yes": 10}
    assert report.longest_chars == len("question 19") + len("yes")
    assert report.warnings == ()


def test_an_evaluation_file_is_counted_apart(tmp_path: Path) -> None:
    report = check(tmp_path, TWENTY, [("something else", "yes")])
    assert (report.train_rows, report.eval_rows, report.eval_from) == (20, 1, "file")


def test_files_elsewhere_are_checked_where_the_job_runs(tmp_path: Path) -> None:
    spec = {"name": "demo", "model": "org/m", "task": "generation", "data": {"train": "s3://bucket/rows.jsonl"}}
    assert check_data(JobSpec.model_validate(spec), tmp_path) is None


def test_evaluation_rows_elsewhere_are_unknown_not_guessed(tmp_path: Path) -> None:
    report = check(tmp_path, TWENTY, data={"eval": "s3://bucket/eval.jsonl"})
    assert (report.train_rows, report.eval_rows, report.eval_from) == (20, None, "uri")


def test_bad_rows_are_listed_by_line_and_the_rest_counted(tmp_path: Path) -> None:
    bad = "".join(f'{{"prompt": "q{i}", "completion": ""}}\n' for i in range(8))
    with pytest.raises(ConfigError, match=r"train\.jsonl: 8 of 9 rows") as refusal:
        check(tmp_path, '{"prompt": "q", "completion": "a"}\n' + bad)
    assert refusal.value.problems[0] == "train.jsonl:2: completion is empty"
    assert refusal.value.problems[-1] == "... and 3 more"
    assert len(refusal.value.problems) == 6


def test_bad_rows_of_both_files_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        check(tmp_path, "{nope\n", "{nope\n")
    assert [problem.split(":")[0] for problem in refusal.value.problems] == ["train.jsonl", "eval.jsonl"]


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.jsonl has no rows"):
        check(tmp_path, content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data file not found: .*gone\.jsonl"):
        check(tmp_path, TWENTY, data={"train": "gone.jsonl"})


def test_a_file_that_is_not_utf_8_is_a_config_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "gr\xfc\xdfe"}')
    with pytest.raises(ConfigError, match=r"latin\.jsonl:1: not UTF-8") as refusal:
        check(tmp_path, TWENTY, data={"train": "latin.jsonl"})
    assert "iconv" in (refusal.value.hint or "")


@pytest.mark.parametrize("rows", [[("q", "a")], [("q", "a"), ("q", "b"), ("q", "a")]])
def test_rows_that_cannot_be_split_are_refused(rows: Pairs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be split"):
        check(tmp_path, rows, task="generation")


def test_duplicates_are_found_across_case_and_spaces(tmp_path: Path) -> None:
    report = check(tmp_path, [*TWENTY, ("Question  3", "YES ")], eval={"labels": ["yes", "no", "YES"]})
    assert report.warnings == ("1 training rows stand there twice (train.jsonl:21 = train.jsonl:4)",)


def test_evaluation_rows_that_are_trained_on_are_warned_of(tmp_path: Path) -> None:
    report = check(tmp_path, TWENTY, [("QUESTION 3", "yes"), ("fresh", "no")])
    assert report.warnings == ("1 evaluation rows are also training rows (eval.jsonl:1 = train.jsonl:4)",)


def test_an_evaluation_of_training_rows_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="measure memory"):
        check(tmp_path, TWENTY, TWENTY[:3])


def test_one_label_is_no_classification(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every training answer is 'yes'"):
        check(tmp_path, [("a", "yes"), ("b", "yes ")])


def test_answers_outside_the_named_labels_are_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 answers are not in eval\.labels") as refusal:
        check(tmp_path, [*TWENTY, ("odd", "maybe")], eval={"labels": ["yes", "no"]})
    assert refusal.value.problems == ("train.jsonl:21: 'maybe'",)


def test_an_evaluation_label_never_trained_is_warned_of(tmp_path: Path) -> None:
    report = check(tmp_path, TWENTY, [("fresh", "maybe"), ("fresher", "no")])
    assert report.warnings == ("1 evaluation answers never occur in training (eval.jsonl:1)",)


def test_many_different_answers_are_questioned(tmp_path: Path) -> None:
    report = check(tmp_path, [(f"q{i}", f"answer {i}") for i in range(101)])
    assert any("is this classification" in warning for warning in report.warnings)


@pytest.mark.parametrize("overlong", ["error", "drop", "truncate_prompt"])
def test_a_row_that_cannot_fit_is_refused_unless_told_otherwise(overlong: str, tmp_path: Path) -> None:
    rows = [*TWENTY, ("word " * 1000, "yes")]
    data = {"max_length": 64, "overlong": overlong}
    if overlong == "error":
        with pytest.raises(ConfigError, match=r"train\.jsonl:21: 5003 characters can't fit data\.max_length 64"):
            check(tmp_path, rows, data=data)
    else:
        assert check(tmp_path, rows, data=data).longest_chars == 5003


def test_generation_has_no_labels(tmp_path: Path) -> None:
    assert check(tmp_path, TWENTY, task="generation").labels is None


def test_a_report_survives_the_record(tmp_path: Path) -> None:
    report = check(tmp_path, TWENTY)
    again = DataReport(**json.loads(json.dumps(report.as_dict())))
    assert again.labels == report.labels and again.train_rows == report.train_rows
