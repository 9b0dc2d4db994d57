"""train_entry.config reads the job that launcher.spec wrote: the same values, the same bounds, refused alike."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from launcher.spec import JobSpec
from train_entry.config import Doc, JobFileError, TrainJob, fingerprint, read_job

PLAIN: dict[str, Any] = {
    "name": "a", "model": {"id": "m"}, "task": "classification", "data": {"train": "data/train.jsonl"},
}  # fmt: skip
SECTIONS = ("model", "data", "tuning", "train", "eval", "output")
HINTS = typing.get_type_hints(TrainJob, include_extras=True)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One field of a section that the training process reads."""

    path: tuple[str, ...]
    options: tuple[Any, ...]
    doc: Doc


def leaves() -> list[Leaf]:
    return [leaf for section in SECTIONS for leaf in _leaves((section,), HINTS[section])]


def _leaves(path: tuple[str, ...], kind: Any) -> list[Leaf]:
    found = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if typing.get_origin(hint) is not Annotated:
            continue
        inner, doc = typing.get_args(hint)
        union = typing.get_origin(inner) not in (None, Literal, tuple, dict)
        options = typing.get_args(inner) if union else (inner,)
        found.append(Leaf((*path, name), options, doc))
        for option in options:
            if dataclasses.is_dataclass(option):
                found += _leaves((*path, name), option)
    return found


LEAVES = leaves()
BOUNDED = [leaf for leaf in LEAVES if leaf.doc.bounds()]


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(json.dumps(PLAIN))
    at = job
    for part in path[:-1]:
        at = at.setdefault(part, {})
    at[path[-1]] = value
    return job


def read(folder: Path, raw: Any) -> TrainJob:
    path = folder / "job.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return read_job(path)


def both_refuse(folder: Path, raw: dict[str, Any], path: tuple[str, ...]) -> None:
    """Neither side takes the job, and the reader names the field."""
    with pytest.raises(ValidationError):
        JobSpec.model_validate(raw)
    with pytest.raises(JobFileError, match=r"\.".join(path)):
        read(folder, raw)


def ids(leaf: Leaf) -> str:
    return ".".join(leaf.path)


def test_the_fields_are_all_found() -> None:
    assert len(LEAVES) > 45
    assert ("train", "early_stopping", "patience") in {leaf.path for leaf in LEAVES}


def test_a_resolved_job_reads_as_the_job_it_was(tmp_path: Path) -> None:
    job = JobSpec.model_validate(PLAIN | {"resources": {"max_hours": 2}, "secrets": ["TOKEN"], "budget": 5})
    got = read(tmp_path, job.model_dump(mode="json"))
    for section in SECTIONS:
        assert getattr(got, section) == getattr(job, section)
    assert (got.name, got.task, got.method, got.secrets, got.max_hours) == (
        "a",
        "classification",
        "sft",
        ("TOKEN",),
        2.0,
    )


def test_a_bare_job_gets_the_same_defaults_on_both_sides(tmp_path: Path) -> None:
    job, got = JobSpec.model_validate(PLAIN), read(tmp_path, PLAIN)
    assert [getattr(got, s) for s in SECTIONS] == [getattr(job, s) for s in SECTIONS]
    assert got.max_hours is None


@pytest.mark.parametrize("leaf", BOUNDED, ids=ids)
def test_both_sides_have_the_same_bounds(tmp_path: Path, leaf: Leaf) -> None:
    whole = int in leaf.options
    for name, bound in leaf.doc.bounds().items():
        step = 1 if whole else 0.01
        edge = int(bound) if whole else float(bound)
        outside = {"ge": edge - step, "gt": edge, "le": edge + step}[name]
        inside = {"ge": edge, "gt": edge + step, "le": edge}[name]
        both_refuse(tmp_path, changed(leaf.path, outside), leaf.path)
        if leaf.path == ("train", "micro_batch"):
            continue  # also bound by batch_size
        raw = changed(leaf.path, inside)
        assert getattr(read(tmp_path, raw), leaf.path[0]) == getattr(JobSpec.model_validate(raw), leaf.path[0])


@pytest.mark.parametrize("leaf", LEAVES, ids=ids)
def test_both_sides_refuse_the_same_wrong_types(tmp_path: Path, leaf: Leaf) -> None:
    both_refuse(tmp_path, changed(leaf.path, [[{}]]), leaf.path)
    both_refuse(tmp_path, changed(leaf.path, {"surprise": [1]}), leaf.path)
    if NoneType not in leaf.options:
        both_refuse(tmp_path, changed(leaf.path, None), leaf.path)


@pytest.mark.parametrize("leaf", [leaf for leaf in LEAVES if float in leaf.options], ids=ids)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_both_sides_refuse_numbers_without_end(tmp_path: Path, leaf: Leaf, value: float) -> None:
    both_refuse(tmp_path, changed(leaf.path, value), leaf.path)


@pytest.mark.parametrize("section", SECTIONS)
def test_both_sides_refuse_unknown_fields(tmp_path: Path, section: str) -> None:
    both_refuse(tmp_path, changed((section, "surprise"), 1), (section, "surprise"))


@pytest.mark.parametrize("path", [("name",), ("task",), ("data", "train"), ("model", "id")])
def test_both_sides_refuse_what_is_missing(tmp_path: Path, path: tuple[str, ...]) -> None:
    raw = json.loads(json.dumps(PLAIN))
    at = raw
    for part in path[:-1]:
        at = at[part]
    del at[path[-1]]
    both_refuse(tmp_path, raw, path[-1:])


def test_what_only_the_launcher_needs_is_passed_over(tmp_path: Path) -> None:
    raw = PLAIN | {"backend": "local", "tags": {"a": "b"}, "backend_options": {"x": {"y": 1}}, "budget": "5"}
    assert read(tmp_path, raw) == read(tmp_path, PLAIN)


def _values(kind: Any, doc: Doc) -> st.SearchStrategy[Any]:
    low, high = doc.gt if doc.gt is not None else doc.ge, doc.le
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(min_value=math.ceil(low or 0), max_value=int(high) if high is not None else None)
    if kind is float:
        open_end = doc.gt is not None
        return st.floats(low, high, exclude_min=open_end, allow_nan=False, allow_infinity=False)
    if kind is NoneType:
        return st.none()
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    text = st.text(st.characters(codec="utf-8"), max_size=8)
    if origin is tuple:
        return st.lists(text, max_size=3)
    if origin is dict:
        return st.dictionaries(text, text, max_size=3)
    return text


PLAIN_LEAVES = [leaf for leaf in LEAVES if not any(dataclasses.is_dataclass(option) for option in leaf.options)]


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(json.dumps(PLAIN))
    for leaf in draw(st.lists(st.sampled_from(PLAIN_LEAVES), max_size=8, unique_by=ids)):
        at = raw
        for part in leaf.path[:-1]:
            at = at.setdefault(part, {})
        at[leaf.path[-1]] = draw(st.one_of([_values(option, leaf.doc) for option in leaf.options]))
    return raw


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=jobs())
def test_any_job_that_the_launcher_takes_reads_the_same(tmp_path: Path, raw: dict[str, Any]) -> None:
    try:
        job = JobSpec.model_validate(raw)
    except ValidationError as exc:
        assert all(error["loc"] == () for error in exc.errors())  # only impossible combinations
        return
    got = read(tmp_path, job.model_dump(mode="json"))
    assert [getattr(got, s) for s in SECTIONS] == [getattr(job, s) for s in SECTIONS]


class TestInForce:
    @pytest.mark.parametrize(("kind", "rate"), [("lora", 2e-4), ("qlora", 2e-4), ("full", 2e-5)])
    def test_the_learning_rate_follows_the_kind_of_tuning(self, tmp_path: Path, kind: str, rate: float) -> None:
        assert read(tmp_path, PLAIN | {"tuning": {"kind": kind}}).learning_rate == rate
        set_one = read(tmp_path, PLAIN | {"tuning": {"kind": kind}, "train": {"learning_rate": 1e-3}})
        assert set_one.learning_rate == 1e-3

    def test_alpha_is_twice_the_rank_unless_set(self, tmp_path: Path) -> None:
        assert read(tmp_path, PLAIN | {"tuning": {"r": 8}}).alpha == 16
        assert read(tmp_path, PLAIN | {"tuning": {"r": 8, "alpha": 3}}).alpha == 3


class TestFingerprint:
    """Checkpoints belong to a job as long as nothing changed that changes the training."""

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("name",), "b"),
            (("eval", "max_rows"), 7),
            (("output", "merged"), True),
            (("train", "keep_checkpoints"), 9),
            (("train", "checkpoint_minutes"), 1.0),
            (("train", "checkpoint_steps"), 3),
            (("train", "dry_run_steps"), 3),
            (("secrets",), ["A"]),
            (("resources", "max_hours"), 3),
            (("data", "allow_secrets"), True),
        ],
    )
    def test_what_may_change_between_attempts(self, tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
        changed_job = read(tmp_path, changed(path, value))
        assert changed_job != read(tmp_path, PLAIN)
        assert changed_job.fingerprint_parts() == read(tmp_path, PLAIN).fingerprint_parts()

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (("model", "id"), "n"),
            (("model", "revision"), "v2"),
            (("task",), "generation"),
            (("data", "max_length"), 64),
            (("data", "columns"), {"prompt": "q"}),
            (("tuning", "r"), 8),
            (("tuning", "targets"), ["q"]),
            (("train", "epochs"), 4),
            (("train", "seed"), 1),
            (("train", "early_stopping"), None),
        ],
    )
    def test_what_makes_it_another_job(self, tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
        before = read(tmp_path, PLAIN).fingerprint_parts()
        after = read(tmp_path, changed(path, value)).fingerprint_parts()
        differ = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
        assert differ
        assert all(k.startswith(".".join(path)) for k in differ)
        assert fingerprint(before) != fingerprint(after)
