"""launcher.load on arbitrary input: a JobSpec or a ConfigError, and what was dumped loads again."""

from __future__ import annotations

import json
import string
from pathlib import Path

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.errors import ConfigError
from launcher.load import json_schema, load_job
from launcher.problems import Fields
from launcher.spec import JobSpec

JOB = "name: triage\nmodel: org/base\ntask: classification\ndata:\n  train: rows.jsonl\n"

paths = st.sampled_from(Fields(json_schema()).paths)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
yamlish = st.lists(
    st.one_of(
        st.sampled_from(["name", "train", "data", "model", "env", "a", "null", "1e5", "0x", "*a", "...", "\\x"]),
        st.sampled_from([": ", ":", "\n", "\n  ", "\n\t", "- ", "&a ", "<<: ", "!!int ", "!x ", " ", "---\n"]),
        st.sampled_from("[]{}'\"|>%@#?"),
        st.text(string.printable + "ü\u2028\x85\ufeff", max_size=4),
    ),
    max_size=25,
).map("".join)
relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(folder: Path, content: str | bytes, *sets: str) -> JobSpec:
    path = folder / "launch.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_job(path, sets)


def _load_or_refuse(tmp_path: Path, content: str | bytes, *sets: str) -> None:
    try:
        load(tmp_path, content, *sets)
    except ConfigError as error:
        assert error.message
        assert all(problem.isprintable() for problem in error.problems)


@relaxed
@given(content=st.one_of(st.binary(max_size=60), yamlish.map(str.encode), words.map(str.encode)))
def test_any_bytes_give_a_job_or_a_config_error(tmp_path: Path, content: bytes) -> None:
    _load_or_refuse(tmp_path, content)


@relaxed
@given(text=yamlish)
def test_anything_after_a_good_beginning_gives_a_job_or_a_config_error(tmp_path: Path, text: str) -> None:
    _load_or_refuse(tmp_path, JOB + text)


@relaxed
@given(text=st.one_of(words, st.builds("{}={}".format, paths, st.one_of(words, yamlish))))
def test_any_set_gives_a_job_or_a_config_error(tmp_path: Path, text: str) -> None:
    _load_or_refuse(tmp_path, JOB, text)


@relaxed
@given(text=words.filter(str.strip))
def test_any_text_comes_back_as_it_was_dumped(tmp_path: Path, text: str) -> None:
    job = JobSpec.model_validate(
        yaml.safe_load(JOB) | {"tags": {text: text}, "eval": {"labels": [text]}, "data": {"train": text}}
    )
    assert load(tmp_path, yaml.safe_dump(job.model_dump(mode="json"))) == job
    assert load(tmp_path, json.dumps(job.model_dump(mode="json"))) == job


@relaxed
@given(number=st.floats(min_value=1e-300, allow_nan=False, allow_infinity=False))
def test_any_positive_number_comes_back(tmp_path: Path, number: float) -> None:
    assert load(tmp_path, JOB + f"train: {{epochs: {number!r}}}\n").train.epochs == number
    assert load(tmp_path, JOB, f"train.learning_rate={number!r}").train.learning_rate == number
