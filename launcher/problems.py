"""What pydantic found wrong with a job, in the user's words: path, what is wrong, what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from launcher.yamlfile import Key

ELSEWHERE = {
    "lr": "train.learning_rate",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "steps": "train.max_steps",
    "per_device_train_batch_size": "train.micro_batch",
    "micro_batch_size": "train.micro_batch",
    "gradient_accumulation_steps": "train.batch_size",
    "lr_scheduler": "train.scheduler",
    "lr_scheduler_type": "train.scheduler",
    "save_steps": "train.checkpoint_steps",
    "sample_packing": "train.packing",
    "base_model": "model.id",
    "model_id": "model.id",
    "model_name_or_path": "model.id",
    "adapter": "tuning.kind",
    "lora_r": "tuning.r",
    "lora_alpha": "tuning.alpha",
    "lora_dropout": "tuning.dropout",
    "lora_target_modules": "tuning.targets",
    "target_modules": "tuning.targets",
    "use_dora": "tuning.dora",
    "use_rslora": "tuning.rslora",
    "dataset": "data.train",
    "datasets": "data.train",
    "train_file": "data.train",
    "validation_file": "data.eval",
    "val_set_size": "data.eval_fraction",
    "sequence_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_len": "data.max_length",
    "system_prompt": "data.system",
    "accelerators": "resources.gpu",
    "num_gpus": "resources.gpus",
    "num_nodes": "resources.nodes",
    "use_spot": "resources.spot",
    "disk_size": "resources.disk_gib",
    "timeout": "resources.max_hours",
    "envs": "env",
}
"""Names that other tools give to our fields (transformers, peft, axolotl, SkyPilot), and where they stand here."""

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_BOUNDS = {
    "greater_than": ("gt", "must be above {}"),
    "greater_than_equal": ("ge", "must be at least {}"),
    "less_than": ("lt", "must be below {}"),
    "less_than_equal": ("le", "must be at most {}"),
}
_TYPES = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false"}


def dotted(key: Key) -> str:
    """("eval", "labels", 2) -> eval.labels[2]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


class Fields:
    """The fields of a JSON Schema: what stands where, and which name was meant."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self.paths = tuple(self._walk((), schema))

    def at(self, key: Key) -> list[Mapping[str, Any]]:
        """The alternatives that the schema has at a path, references followed; none for an unknown path."""
        found = self._alternatives(self._schema)
        for part in key:
            found = [below for node in found for below in self._alternatives(_step(node, part))]
        return found

    def text(self, key: Key) -> str:
        """A field's description, without its full stop."""
        *above, name = key
        for node in self.at(tuple(above)):
            field = node.get("properties", {}).get(name, {})
            if said := field.get("description") or next((n.get("description", "") for n in self.at(key)), ""):
                return str(said).rstrip(".")
        return ""

    def meant(self, key: Key) -> str:
        """The field that an unknown one was probably meant to be: a name at its level, or a dotted path; or ""."""
        *above, last = key
        name = str(last).lower().replace("-", "_")
        here: list[str] = [field for node in self.at(tuple(above)) for field in node.get("properties", {})]
        if name in here:
            return name
        if str(last) in self.paths:
            section, _, field = str(last).partition(".")
            return f"{field} on a line of its own below {section}:"
        elsewhere = [path for path in self.paths if path.rsplit(".", 1)[-1] == name]
        if close := difflib.get_close_matches(name, here, n=1, cutoff=0.75):
            return close[0]
        if elsewhere:
            return " or ".join(elsewhere)
        if name in ELSEWHERE:
            return ELSEWHERE[name]
        if close := difflib.get_close_matches(name, here, n=1):
            return close[0]
        leaves = {path.rsplit(".", 1)[-1]: path for path in self.paths}
        return next((leaves[leaf] for leaf in difflib.get_close_matches(name, leaves, n=1, cutoff=0.8)), "")

    def _alternatives(self, node: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
        if not node:
            return []
        if "$ref" in node:
            return self._alternatives(self._schema["$defs"][node["$ref"].rsplit("/", 1)[-1]])
        if "anyOf" in node:
            return [option for each in node["anyOf"] for option in self._alternatives(each)]
        return [node]

    def _walk(self, above: tuple[str, ...], node: Mapping[str, Any]) -> Iterator[str]:
        for option in self._alternatives(node):
            for name, below in option.get("properties", {}).items():
                yield ".".join((*above, name))
                yield from self._walk((*above, name), below)


def _step(node: Mapping[str, Any], part: str | int) -> Mapping[str, Any] | None:
    if isinstance(part, int):
        return node.get("items")
    if part in node.get("properties", {}):
        below: Mapping[str, Any] = node["properties"][part]
        return below
    for pattern in (*node.get("patternProperties", {}).values(), node.get("additionalProperties")):
        if isinstance(pattern, Mapping):
            return pattern
    return None


def describe(
    exc: ValidationError, data: Any, fields: Fields, secret: Collection[str] = ()
) -> Iterator[tuple[Key, str]]:
    """(path, what is wrong) of each error; values under the top-level keys `secret` are not repeated."""
    located = [(_path_in(data, error), error) for error in exc.errors(include_url=False)]
    around = {key[:depth] for key, _ in located for depth in range(len(key))}
    for key, error in located:
        if key in around and error["type"].endswith("_type"):
            continue  # of the alternatives of a field, the one that fits best is the one that went deepest
        if error["type"] == "value_error" and not key:
            yield from _combinations(error, fields)
            continue
        value = _value(data, key)
        got = "" if key[:1] and key[0] in secret else f", got {_got(value)}"
        yield key, _words(error, key, value, got, fields)


def _path_in(data: Any, error: ErrorDetails) -> Key:
    """The error's path as the user knows it: without pydantic's names for the alternatives of a union."""
    key: list[str | int] = []
    parts = [part for part in error["loc"] if part != "[key]"]
    for i, part in enumerate(parts):
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
            key.append(part)
        elif error["type"] == "missing" and i == len(parts) - 1:
            key.append(part)
    return tuple(key)


def _value(data: Any, key: Key) -> Any:
    """The value at a path; None where there is none."""
    for part in key:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part]
        else:
            return None
    return data


def _combinations(error: ErrorDetails, fields: Fields) -> Iterator[tuple[Key, str]]:
    """The model's own lines, each of which starts with the path of the field at fault."""
    for line in str(error.get("ctx", {}).get("error", "")).splitlines():
        path, _, rest = line.partition(" ")
        yield tuple(path.split(".")), rest


def _words(error: ErrorDetails, key: Key, value: Any, got: str, fields: Fields) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _UNKNOWN:
        meant = fields.meant(key)
        return "unknown field" + (f"; did you mean {meant}?" if meant else "")
    if kind == "missing":
        return "is missing" + _explained(fields.text(key))
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return words.format(f"{float(context[bound]):.10g}") + got
    if kind == "finite_number":
        return "must be a finite number" + got
    if kind == "int_parsing_size":
        return "is too large a number" + got
    if kind == "string_pattern_mismatch":
        if error["loc"][-1] == "[key]" or key[0] == "secrets":
            return "must be a name of letters, digits and _, not starting with a digit" + got
        return f"must be {_lower(fields.text(key))}{got}"
    expected = fields.at(key)
    choices = [
        str(choice) for node in expected for choice in node.get("enum", [node["const"]] if "const" in node else [])
    ]
    if choices and isinstance(value, str):
        close = difflib.get_close_matches(value.lower(), choices, n=1)
        return f"must be {_one_of(choices)}{got}" + (f"; did you mean {close[0]}?" if close else "")
    return f"expected {_types(expected)}{got}" + (_quote_hint(value, expected) if got else "")


def _types(expected: list[Mapping[str, Any]]) -> str:
    """The alternatives of a field as words: "a whole number or null"."""
    words: dict[str, None] = {}
    for node in expected:
        if "enum" in node or "const" in node:
            words[_one_of([str(choice) for choice in node.get("enum", [node.get("const")])])] = None
        elif node.get("type") == "array":
            items = node.get("items", {}).get("type")
            words["a list of texts" if items == "string" else "a list"] = None
        elif node.get("type") == "object":
            names = list(node.get("properties", {}))
            words[
                "a mapping" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")
            ] = None
        elif node.get("type") in _TYPES:
            words[_TYPES[node["type"]]] = None
    if "a number" in words:
        words.pop("text", None)  # a decimal number may also be quoted
    if any(node.get("type") == "null" for node in expected):
        words["null"] = None
    return " or ".join(words) or "something else"


def _one_of(choices: list[str]) -> str:
    return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)


def _quote_hint(value: Any, expected: list[Mapping[str, Any]]) -> str:
    types = {node.get("type") for node in expected}
    if value is None and types == {"string"}:
        return '; the word itself is written "null"'
    if isinstance(value, str) and "array" in types:
        return f"; write [{value}]" if re.fullmatch(r"[\w, -]{1,60}", value) else "; write [a, b]"
    return ""


def _explained(text: str) -> str:
    return f" ({_lower(text)})" if text else ""


def _lower(text: str) -> str:
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _got(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    if not text.isprintable() or text != text.strip() or not text:
        text = repr(text)
    return text if len(text) <= 60 else text[:59] + "…"
