"""YAML job file + --set overrides -> JobSpec, or every problem at once in the user's words.

A value is located by where it was written: `launch.yaml:12: train.epochs: ...` or `--set train.epochs=x: ...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from launcher.errors import ConfigError
from launcher.problems import Fields, describe, dotted
from launcher.spec import SHORTHAND, JobSpec
from launcher.yamlfile import Document, Key, YamlError, parse_yaml, plain_scalar

MAX_BYTES = 1 << 20
MAX_PROBLEMS = 50
NATIVE = ("backend_options",)
"""Sections that go to a backend as they are: only there do scalars become numbers without a schema."""
SECRET = ("env", "secrets")
"""Sections whose values are never repeated in a message."""
SCHEMA_HINT = "launch schema prints every field and what it takes"

QUOTED = ('"', "'", "[", "{")
"""What a --set value starts with that is YAML, and not a text to be taken as it is."""

_SET_RANK = MAX_BYTES + 1
_Place = tuple[int, str]
"""Where something was written: a rank to sort by, and its name for the user."""


def load_job(path: Path, sets: Sequence[str] = ()) -> JobSpec:
    """The job of a YAML or JSON file, with `sets` ("a.b=c") applied in order, each winning over what is there.

    Raises ConfigError; its `problems` has a line for each thing wrong in the file and the sets.
    """
    draft = _Draft(path)
    for index, text in enumerate(sets):
        draft.override(text, _SET_RANK + index)
    draft.expand_shorthands()
    try:
        job = JobSpec.model_validate(draft.data)
    except ValidationError as exc:
        # A file of nothing but errors is not worth the time that it takes to explain each.
        draft.add_all(islice(describe(exc, draft.data, Fields(json_schema()), SECRET), MAX_PROBLEMS + 1))
    problems = draft.report()
    if not problems:
        return job
    count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
    if len(problems) > MAX_PROBLEMS:
        problems, count = problems[:MAX_PROBLEMS], f"over {MAX_PROBLEMS} problems; the first ones"
    where = f"{path}" + (" with --set" if sets else "")
    raise ConfigError(f"{where} has {count}", SCHEMA_HINT, problems=problems)


def json_schema() -> dict[str, Any]:
    """The job file's JSON Schema (draft 2020-12), for editors and other tools."""
    schema = JobSpec.model_json_schema(schema_generator=_WithDefaults)
    head = {"$schema": GenerateJsonSchema.schema_dialect, "title": "finelaunch job"}
    return head | {k: v for k, v in schema.items() if k not in head}


def parse_set(text: str) -> tuple[tuple[str, ...], Any]:
    """`a.b=c` -> (("a", "b"), value). Raises ConfigError.

    A value that starts with a quote or a bracket is YAML, any other is a text up to its end; as in a file,
    scalars stay text (null and an empty value are None), but under backend_options they get their types.
    """
    dotted_path, equals, written = text.partition("=")
    path = tuple(part.strip() for part in dotted_path.split("."))
    written = written.strip()
    label = f"--set {_unsecret(path, text)}"
    if not equals:
        raise ConfigError(f"{label}: no = in it", f"write --set {dotted_path.strip() or 'PATH'}=VALUE")
    if not all(path):
        raise ConfigError(f"{label}: {dotted_path!r} is no path", "write it like --set train.epochs=5")
    try:
        if written[:1] not in QUOTED:
            return path, plain_scalar(written, path[0] in NATIVE)
        document = parse_yaml(written, NATIVE, path)
    except YamlError as exc:
        hint = "quote the whole for the shell: --set 'a=[b, c]'" if written[:1] in QUOTED else None
        raise ConfigError(f"{label}: {exc.what}", hint) from None
    if document.findings:
        raise ConfigError(f"{label}: {document.findings[0].text}")
    return path, document.value


class _WithDefaults(GenerateJsonSchema):
    """Also shows the defaults that a factory makes, and refuses keys that do not fit their pattern."""

    def dict_schema(self, schema: core_schema.DictSchema) -> dict[str, Any]:
        made = super().dict_schema(schema)
        return made | {"additionalProperties": False} if "patternProperties" in made else made

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        factory = schema.get("default_factory")
        if factory is None or schema.get("default_factory_takes_data"):
            return super().get_default_value(schema)
        return factory()  # type: ignore[call-arg]


class _Draft:
    """A job as plain data, where each of its values was written, and what is wrong with it so far."""

    def __init__(self, path: Path) -> None:
        self._file = str(path)
        document = _read(path)
        self.data: dict[str, Any] = document.value
        self._places: dict[Key, _Place] = {
            key: (line, f"{self._file}:{line}") for key, line in document.lines.items()
        }
        self._places[()] = (0, self._file)
        self._problems: list[tuple[int, str]] = [
            (found.line, _line_of(f"{self._file}:{found.line}", found.key, found.text))
            for found in document.findings
        ]

    def override(self, text: str, rank: int) -> None:
        """Put the value of a --set in its place, making the mappings on the way there."""
        try:
            path, value = parse_set(text)
        except ConfigError as exc:
            self._problems.append((rank, exc.message + (f"; {exc.hint}" if exc.hint else "")))
            return
        place = (rank, f"--set {_unsecret(path, text)}")
        at = self.data
        for depth, name in enumerate(path[:-1], 1):
            below = at.get(name)
            if depth == 1 and isinstance(below, str) and name in SHORTHAND:
                below = {SHORTHAND[name]: below}
            if not isinstance(below, dict):
                below = {}
                self._places[path[:depth]] = place
            at[name] = below
            at = below
        at[path[-1]] = value
        for key in [key for key in self._places if key[: len(path)] == path]:
            del self._places[key]
        self._places[path] = place

    def expand_shorthands(self) -> None:
        for section, key in SHORTHAND.items():
            if isinstance(text := self.data.get(section), str):
                self.data[section] = {key: text}

    def add_all(self, problems: Iterable[tuple[Key, str]]) -> None:
        """Note problems, each where the value or the nearest mapping around it was written."""
        for key, text in problems:
            rank, label = next(self._places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self._places)
            named = label.replace(" ", "").startswith(f"--set{dotted(key)}=")
            self._problems.append((rank, _line_of(label, () if named else key, text)))

    def report(self) -> list[str]:
        """The problems, a line each: those of the file by line, then those of the sets in their order."""
        ordered = sorted(self._problems, key=lambda problem: problem[0])
        return list(dict.fromkeys(_printable(text) for _, text in ordered))


def _line_of(label: str, key: Key, text: str) -> str:
    return f"{label}: {dotted(key)}: {text}" if key else f"{label}: {text}"


def _printable(text: str) -> str:
    """Names and values come from outside: nothing in them may move the cursor or break the line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _unsecret(path: tuple[str, ...], text: str) -> str:
    return text.partition("=")[0] + "=..." if path[0] in SECRET else text


def _read(path: Path) -> Document:
    text = _text(path)
    try:
        document = parse_yaml(text, NATIVE)
    except YamlError as exc:
        shown = f"; the line is: {exc.shown.strip()}" if exc.shown.strip() else ""
        raise ConfigError(
            f"{path} is not valid YAML",
            "correct the line; launch plan checks the file again",
            problems=[f"{path}:{exc.line}: {exc.what}{shown}"],
        ) from None
    value = document.value
    if value is None:
        raise ConfigError(f"{path} is empty", "launch init writes a job file that runs as it is")
    if not isinstance(value, dict):
        hint = "write it as lines of `field: value`"
        if isinstance(value, str) and re.match(r"\w+:\S", value):
            hint += ", with a space after the colon"
        raise ConfigError(f"{path}:{document.lines[()]}: the top level must be fields, not {_kind(value)}", hint)
    return document


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a text"


def _text(path: Path) -> str:
    """The file's text, or ConfigError in words for everything that may be wrong with a file."""
    if path.is_dir():
        inside = next((f for f in ("launch.yaml", "launch.yml", "launch.json") if (path / f).is_file()), None)
        hint = f"name the file in it: {path / inside}" if inside else "name a job file; launch init writes one"
        raise ConfigError(f"{path} is a folder, not a job file", hint)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", "launch init writes a job file") from None
    except OSError as exc:
        raise ConfigError(
            f"{path} can't be read: {exc.strerror or exc}", "check its name and permissions"
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{path} is over 1 MiB: too big for a job file", "rows go into a file of their own: data.train"
        )
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"{path} is UTF-16 text", "save it as UTF-8")
    if (nul := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise ConfigError(f"{path}:{line}: a NUL byte: this is no text file", "name a YAML job file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte 0x{data[exc.start]:02x} is not UTF-8 text", "save it as UTF-8"
        ) from None
