"""launcher.spec: what a job may say, what can't be combined, and the schema that editors get."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from launcher.load import json_schema, load_job
from launcher.problems import Fields
from launcher.spec import SHORTHAND, JobSpec

PLAIN: dict[str, Any] = {"name": "a", "model": "org/base", "task": "generation", "data": {"train": "rows.jsonl"}}
SCHEMA = json_schema()
FIELDS = Fields(SCHEMA)


def errors(**changes: Any) -> list[tuple[Any, ...]]:
    """Where a job with these changes is refused."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(PLAIN | changes)
    return [error["loc"] for error in caught.value.errors()]


def combination(**changes: Any) -> list[str]:
    """The lines of the model validator."""
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(PLAIN | changes)
    (error,) = caught.value.errors()
    assert error["loc"] == ()
    return str(error["ctx"]["error"]).splitlines()


@pytest.mark.parametrize("name", ["a", "7", "support-triage", "a--b", "a" * 40])
def test_names_that_every_backend_takes(name: str) -> None:
    assert JobSpec.model_validate(PLAIN | {"name": name}).name == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a b", "a.b", "ä", "a" * 41, "a\n", "../a"])
def test_names_that_some_backend_refuses(name: str) -> None:
    assert errors(name=name) == [("name",)]


@pytest.mark.parametrize("section", ["model", "data", "tuning", "train", "eval", "resources", "output"])
def test_an_unknown_field_is_refused_in_every_section(section: str) -> None:
    known = {"model": {"id": "m"}, "data": {"train": "r"}}.get(section, {})
    assert errors(**{section: known | {"surprise": 1}}) == [(section, "surprise")]


def test_a_job_is_frozen_all_the_way_down() -> None:
    job = JobSpec.model_validate(PLAIN)
    for part, name in ((job, "name"), (job.train, "epochs"), (job.resources, "gpus"), (job.tuning, "r")):
        with pytest.raises((ValidationError, AttributeError)):
            setattr(part, name, 9)


def test_shorthands_mean_the_mapping() -> None:
    short = JobSpec.model_validate(PLAIN | {"tuning": "full"})
    assert short == JobSpec.model_validate(PLAIN | {"model": {"id": "org/base"}, "tuning": {"kind": "full"}})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"tuning": {"kind": "full", "dora": True}},
            "tuning.dora needs an adapter: tuning.kind lora or qlora, not full",
        ),
        (
            {"tuning": "qlora", "output": {"merged": True}},
            "output.merged can't merge into a 4-bit base: use tuning.kind lora, or leave output.merged out",
        ),
        ({"eval": {"labels": ["a"]}}, "eval.labels is for task classification, and the task is generation"),
        ({"train": {"micro_batch": 17}}, "train.micro_batch is above train.batch_size"),
        ({"env": {"A": "x"}, "secrets": ["A"]}, "env.A also stands in secrets"),
    ],
)
def test_impossible_combinations_start_with_the_field_at_fault(changes: dict[str, Any], line: str) -> None:
    assert combination(**changes) == [line]
    path = tuple(line.split()[0].split("."))
    assert FIELDS.at(path), f"{path} is no field"


def test_impossible_combinations_are_told_together() -> None:
    assert len(combination(eval={"labels": ["a"]}, train={"micro_batch": 17})) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning": {"kind": "qlora", "dora": True}},
        {"tuning": "lora", "output": {"merged": True}},
        {"tuning": "full", "output": {"merged": True}},
        {"task": "classification", "eval": {"labels": ["a", "b"]}},
        {"train": {"micro_batch": 16}},
        {"env": {"A": "x"}, "secrets": ["B"]},
    ],
)
def test_their_neighbours_are_possible(changes: dict[str, Any]) -> None:
    JobSpec.model_validate(PLAIN | changes)


@pytest.mark.parametrize("name", ["1A", "A-B", "A B", "", "A=B", "Ä"])
def test_names_of_environment_variables(name: str) -> None:
    assert errors(secrets=[name]) == [("secrets", 0)]
    assert errors(env={name: "x"})[0][:2] == ("env", name)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("path", ["train.epochs", "train.weight_decay", "train.early_stopping.min_delta",
                                  "resources.max_hours", "resources.max_wait_hours", "budget"])  # fmt: skip
def test_no_number_is_infinite(path: str, value: float) -> None:
    *above, name = path.split(".")
    changes: dict[str, Any] = {name: value}
    for part in reversed(above):
        changes = {part: changes}
    assert errors(**changes) == [tuple(path.split("."))]


def test_the_dump_is_plain_json_and_gives_the_same_job() -> None:
    job = JobSpec.model_validate(
        PLAIN
        | {
            "budget": "12.50",
            "secrets": ["TOKEN"],
            "env": {"A": "b"},
            "tuning": {"targets": ["q_proj", "v_proj"]},
            "backend_options": {"local": {"processes": 2, "nested": [1, {"a": None}]}},
        }
    )
    dumped = json.dumps(job.model_dump(mode="json"), allow_nan=False)
    again = JobSpec.model_validate(json.loads(dumped))
    assert again == job
    assert again.budget == Decimal("12.50")


class TestSchema:
    def test_it_names_its_dialect_and_needs_no_network(self) -> None:
        assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert "$id" not in SCHEMA
        assert SCHEMA["additionalProperties"] is False
        assert SCHEMA["required"] == ["name", "model", "task", "data"]
        references = [value for key, value in _leaves(SCHEMA) if key == "$ref"]
        assert references
        assert all(reference.removeprefix("#/$defs/") in SCHEMA["$defs"] for reference in references)
        json.dumps(SCHEMA, allow_nan=False)

    def test_every_field_is_described(self) -> None:
        assert [path for path in FIELDS.paths if not FIELDS.text(tuple(path.split(".")))] == []

    def test_shorthands_are_offered_beside_the_mapping(self) -> None:
        properties = SCHEMA["properties"]
        assert properties["model"]["anyOf"] == [{"type": "string"}, {"$ref": "#/$defs/Model"}]
        assert properties["tuning"]["anyOf"][0]["enum"] == ["lora", "qlora", "full"]
        assert set(SHORTHAND) == {name for name, field in properties.items() if _is_shorthand(field)}

    def test_every_optional_field_shows_its_default_and_the_default_loads(self, tmp_path: Path) -> None:
        path = tmp_path / "launch.json"
        path.write_text(json.dumps(PLAIN))
        plain = load_job(path)
        optional = [(name, field) for name, field, required in _fields() if not required]
        assert len(optional) > 50
        for name, field in optional:
            assert "default" in field, name
            default = json.dumps(field["default"])
            assert load_job(path, [f"{name}={default}"]) == plain, name

    def test_bounds_reach_the_editor(self) -> None:
        (fraction,) = FIELDS.at(("data", "eval_fraction"))
        assert (fraction["exclusiveMinimum"], fraction["maximum"]) == (0, 0.5)
        (env,) = FIELDS.at(("env",))
        assert env["additionalProperties"] is False


def _is_shorthand(field: dict[str, Any]) -> bool:
    options = field.get("anyOf", [])
    return any("$ref" in option for option in options) and any(o.get("type") == "string" for o in options)


def _leaves(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, list):
        return [leaf for item in node for leaf in _leaves(item)]
    if isinstance(node, dict):
        return [pair for k, v in node.items() for pair in ([(k, v)] if isinstance(v, str) else _leaves(v))]
    return []


def _fields() -> list[tuple[str, dict[str, Any], bool]]:
    """(path, its schema, whether it is required) of every field."""
    found = []
    for path in FIELDS.paths:
        *above, name = path.split(".")
        for node in FIELDS.at(tuple(above)):
            if name in node.get("properties", {}):
                found.append((path, dict(node["properties"][name]), name in node.get("required", [])))
    return found
