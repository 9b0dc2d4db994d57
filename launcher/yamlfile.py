"""YAML text -> plain data and the line of every value, by YAML 1.2's rules, hostile input refused.

PyYAML reads YAML 1.1, where `no` is False, `12:30` is 750 and `1.10` loses its zero. Here a scalar stays the
text that was written, for the schema to type, except under `native` keys, whose values no schema knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Key = tuple[str | int, ...]
"""Where a value stands: mapping keys and list indices from the top."""

MAX_VALUES = 20_000
MAX_DEPTH = 40
NO_NUMBER = "is not a number that can be sent; quote it if it is a text"

_TAG = "tag:yaml.org,2002:"
_CORE = {
    "merge": r"<<",
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
"""Tag -> what a plain scalar of that type looks like (https://yaml.org/spec/1.2.2/#1032-tag-resolution)."""


class _Loader(yaml.SafeLoader):
    """Composes nodes; knows the implicit types of _CORE and no others."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - the base class wants an attribute of this name
    _composed = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._composed += 1
        if self._composed > MAX_VALUES:
            raise YamlError(int(self.line) + 1, f"it holds more than {MAX_VALUES} values")
        return super().compose_node(parent, index)


for _name, _pattern in _CORE.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), [None])


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong that does not stop the reading."""

    key: Key
    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """The data of a text; `lines` has the line of every mapping key and list item, () the first one."""

    value: Any
    lines: dict[Key, int]
    findings: tuple[Finding, ...]


class YamlError(ValueError):
    """The text is not YAML that we take: `line` (from 1), what is wrong, and the line itself."""

    def __init__(self, line: int, what: str, shown: str = "") -> None:
        super().__init__(what)
        self.line = line
        self.what = what
        self.shown = shown


def parse_yaml(text: str, native: Collection[str] = (), at: Key = ()) -> Document:
    """The one document in `text`; `at` is where its value will stand. Raises YamlError.

    Scalars are str, null is None; under the top-level keys `native` they are also bool, int and float.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.lstrip().startswith("{"):
        # JSON may be indented with tabs, which PyYAML does not skip; no JSON string spans lines.
        text = re.sub(r"^[ \t]+", lambda m: " " * len(m[0]), text, flags=re.MULTILINE)
    node = _compose(text)
    if node is None:
        return Document(value=None, lines={(): 1}, findings=())
    builder = _Builder(native)
    builder.lines[at] = _line(node)
    value = builder.build(node, at)
    return Document(value=value, lines=builder.lines, findings=tuple(builder.findings))


def plain_scalar(text: str, native: bool) -> Any:
    """What an unquoted text on one line is: None, text or (native) a bool, int or float. Raises YamlError."""
    kind = next((name for name, pattern in _CORE.items() if re.fullmatch(pattern, text)), "str")
    if "\0" in text:
        raise YamlError(1, "holds a NUL character")
    if kind == "null":
        return None
    try:
        return _typed(kind, text) if native else text
    except (ValueError, OverflowError):
        raise YamlError(1, NO_NUMBER) from None


def _compose(text: str) -> Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        raise _explained(exc, text) from None
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        code = exc.character if isinstance(exc.character, int) else ord(exc.character)
        raise YamlError(line, f"the character U+{code:04X} can't stand in YAML", _shown(text, line)) from None
    except RecursionError:
        raise YamlError(1, "brackets or blocks are nested too deeply") from None
    except YamlError:
        raise
    except (ValueError, OverflowError):
        # PyYAML lets chr() fail on escapes such as "\UFFFFFFFF", int() on a huge %YAML version.
        wrong = re.search(r"\\U[0-9A-Fa-f]{8}|^%.*", text, re.MULTILINE)
        line = text.count("\n", 0, wrong.start() if wrong else 0) + 1
        what = f"{wrong[0][:20] if wrong else 'an escape'} means nothing"
        raise YamlError(line, what, _shown(text, line)) from None


_OPENED = "the {0} opened here is not closed, or a comma is missing"
_WORDS: tuple[tuple[str, str], ...] = (
    (r"found character '\\t'", "a tab stands here; YAML takes spaces"),
    (r"mapping values are not allowed", "a colon can't stand here: check the indentation, or quote the text"),
    (r"quoted scalar: .*(end of stream|document separator)", "the quote opened here is not closed"),
    (r"expected ',' or '\]'|flow sequence", _OPENED.format("[")),
    (r"expected ',' or '\}'|flow mapping", _OPENED.format("{")),
    (r"could not find expected ':'", "a colon is missing after the key, or a line before is not indented like it"),
    (r"expected <block end>", "the indentation does not fit the lines above, or text follows a closing quote"),
    (r"expected a single document|expected '<document start>'", "text stands after the end of the document"),
    (r"found undefined alias", "the *alias has no &anchor before it; quote a text that starts with *"),
    (r"found duplicate anchor", "the &anchor stands twice"),
    (r"unknown escape|expected escape", "\\ starts an escape in double quotes: use single quotes, or / for \\"),
    (r"found character '.+' that cannot start", "a text that starts with this character must be quoted"),
    (r"node content, but found '<stream end>'", "it ends inside brackets"),
    (r"expected the node content", "a text that starts with a comma or a closing bracket must be quoted"),
    (r"sequence entries are not|expected alphabetic", "a text that starts with -, * or & must be quoted"),
)


def _explained(exc: yaml.MarkedYAMLError, text: str) -> YamlError:
    said = f"{exc.context or ''}: {exc.problem or ''}"
    what = next((words for pattern, words in _WORDS if re.search(pattern, said)), "")
    mark = exc.context_mark if "opened here" in what else exc.problem_mark
    mark = mark or exc.problem_mark or exc.context_mark
    line = min(mark.line + 1 if mark else 1, text.rstrip("\n").count("\n") + 1)
    return YamlError(line, what or f"not valid YAML ({exc.problem or exc.context})", _shown(text, line))


def _shown(text: str, line: int) -> str:
    shown = text.split("\n")[line - 1].rstrip()
    shown = "".join(c if c.isprintable() else "→" if c == "\t" else "�" for c in shown)
    return shown if len(shown) <= 80 else shown[:79] + "…"


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


class _Builder:
    """Nodes -> plain data. Aliases are copied where they stand, so what it makes is counted."""

    def __init__(self, native: Collection[str]) -> None:
        self.lines: dict[Key, int] = {}
        self.findings: list[Finding] = []
        self._native = native
        self._made = 0

    def build(self, node: Node, key: Key) -> Any:
        self._count(node, len(key))
        if isinstance(node, ScalarNode):
            return self._scalar(node, key)
        if not node.tag.startswith(_TAG) or node.tag.removeprefix(_TAG) not in ("map", "seq"):
            self._find(key, node, f"the tag {_bare(node.tag)} is not supported; remove it")
        if isinstance(node, MappingNode):
            return {name: self._child(value, (*key, name), line) for name, line, value in self._entries(node, key)}
        assert isinstance(node, SequenceNode)
        return [self._child(item, (*key, i), _line(item)) for i, item in enumerate(node.value)]

    def _child(self, node: Node, key: Key, line: int) -> Any:
        self.lines[key] = line
        return self.build(node, key)

    def _entries(self, node: MappingNode, key: Key, depth: int = 0) -> Iterator[tuple[str, int, Node]]:
        """(name, line, value) of a mapping and of those that it merges (<<); its own win, then the first's."""
        self._count(node, depth)
        own: dict[str, tuple[int, Node]] = {}
        merged: dict[str, tuple[int, Node]] = {}
        for name_node, value in node.value:
            if name_node.tag == _TAG + "merge":
                for source in self._merged(value, key):
                    for name, line, inner in self._entries(source, key, depth + 1):
                        merged.setdefault(name, (line, inner))
                continue
            if not isinstance(name_node, ScalarNode):
                self._find(key, name_node, "a key must be a word, not a list or mapping")
                continue
            name = self._text(name_node, key)
            if name in own:
                self._find(
                    (*key, name), name_node, f"stands twice, on lines {own[name][0]} and {_line(name_node)}"
                )
            own[name] = (_line(name_node), value)
        for name, (line, inner) in {**merged, **own}.items():
            yield name, line, inner

    def _merged(self, value: Node, key: Key) -> Iterator[MappingNode]:
        for source in value.value if isinstance(value, SequenceNode) else [value]:
            if isinstance(source, MappingNode):
                yield source
            else:
                self._find(key, source, "<< wants a mapping, or a list of them: <<: *anchor")

    def _scalar(self, node: ScalarNode, key: Key) -> Any:
        text = self._text(node, key)
        kind = node.tag.removeprefix(_TAG)
        if kind not in (*_CORE, "str"):
            self._find(key, node, f"the tag {_bare(node.tag)} is not supported; remove it")
        if kind == "null":
            return None
        if not key or key[0] not in self._native:
            return text
        try:
            return _typed(kind, text)
        except (ValueError, OverflowError):
            self._find(key, node, NO_NUMBER)
            return text

    def _text(self, node: ScalarNode, key: Key) -> str:
        # JSON writes characters beyond U+FFFF as two \u escapes, which PyYAML leaves as two halves.
        text = str(node.value)
        try:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self._find(key, node, "holds half of a character (one \\u escape of a pair)")
        if "\0" in text:
            self._find(key, node, "holds a NUL character (\\0)")
        return text

    def _find(self, key: Key, node: Node, text: str) -> None:
        self.findings.append(Finding(key=key, line=_line(node), text=text))

    def _count(self, node: Node, depth: int) -> None:
        self._made += 1
        if self._made > MAX_VALUES:
            raise YamlError(_line(node), f"it unfolds into more than {MAX_VALUES} values; use fewer *aliases")
        if depth > MAX_DEPTH:
            raise YamlError(_line(node), f"nested over {MAX_DEPTH} levels, or an *alias that holds itself")


def _typed(kind: str, text: str) -> Any:
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    return text


def _bare(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
