"""A model's own tokenizer and chat template without torch and transformers: what train_entry.data asks of them.

tokenizer.json says nearly everything. The rest, as transformers 5.23 reads it (read 2026-11-25): names of special
tokens in tokenizer_config.json (older: special_tokens_map.json), the template in chat_template.jinja or there.
Its add_bos_token and add_eos_token count for nothing beside a tokenizer.json, whose post-processor says it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import ConfigError
from train_entry.rows import Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ModelTokenizer:
    """As much of transformers' tokenizer as train_entry.data uses, by the same names."""

    def __init__(self, core: Tokenizer, chat_template: str | None, named: Mapping[str, str], eos: int) -> None:
        self.core = core
        self.chat_template = chat_template
        self.eos_token_id = eos
        self._named = dict(named)
        self._render: Callable[..., str] | None = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.core.encode(text, add_special_tokens=add_special_tokens).ids}

    def batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[Any]:
        """Encodings of many texts, on all cores; only their ids count."""
        return list(self.core.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return str(self.core.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self, messages: Sequence[Message], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The conversation as text. Raises jinja2.TemplateError where the template fails."""
        from jinja2 import TemplateError

        if self._render is None:
            self._render = _compiled(self.chat_template or "")
        try:
            return self._render(
                messages=[dict(m) for m in messages], tools=None, documents=None,
                add_generation_prompt=add_generation_prompt, **self._named,
            )  # fmt: skip
        except TemplateError:
            raise
        except Exception as exc:  # a template is a program: it can add a number to a text
            raise TemplateError(f"{type(exc).__name__}: {exc}") from exc


def load(files: Mapping[str, Path], chat_template: str | None, name: str) -> ModelTokenizer:
    """The tokenizer in these files, with the user's template where there is one.

    Raises ConfigError for files that can't be read, and for a model without an end-of-sequence token.
    """
    from tokenizers import Tokenizer

    path = files["tokenizer.json"]
    try:
        core = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing more special
        raise _unreadable(path, exc) from exc
    config = {**_json(files.get("special_tokens_map.json")), **_json(files.get("tokenizer_config.json"))}
    named = {key: text for key in NAMED if (text := _content(config.get(key)))}
    core.no_truncation()
    core.no_padding()
    _add_missing(core, config, named)
    eos = core.token_to_id(named["eos_token"]) if "eos_token" in named else None
    if eos is None:
        raise ConfigError(
            f"the tokenizer of {name} has no end-of-sequence token", "the trainer refuses it: use another model"
        )
    named.setdefault("pad_token", named["eos_token"])
    template = chat_template if chat_template is not None else _template(files, config)
    return ModelTokenizer(core, template, named, eos)


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise _unreadable(path, exc) from exc
    if not isinstance(found, dict):
        raise _unreadable(path, ValueError("not a mapping"))
    return found


def _content(value: Any) -> str | None:
    """A special token's text; it stands there bare or in a mapping."""
    found = value.get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) and found else None


def _add_missing(core: Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Tokens that tokenizer_config.json adds to tokenizer.json, in the order of their ids; then the named ones."""
    from tokenizers import AddedToken

    there = {token.content for token in core.get_added_tokens_decoder().values()}
    decoder = config.get("added_tokens_decoder")
    listed = sorted(decoder.items(), key=lambda item: int(item[0])) if isinstance(decoder, dict) else []
    kinds = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for _, token in listed:
        if isinstance(token, dict) and (text := _content(token)) and text not in there:
            core.add_tokens([AddedToken(text, **{kind: bool(token.get(kind)) for kind in kinds})])
            there.add(text)
    core.add_special_tokens([AddedToken(text, special=True) for text in named.values() if text not in there])


def _template(files: Mapping[str, Path], config: Mapping[str, Any]) -> str | None:
    path = files.get("chat_template.jinja")
    if path is not None:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as exc:
            raise _unreadable(path, exc) from exc
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name; a job has no tools, so it is the usual one
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}.get("default")
    return found if isinstance(found, str) else None


def _compiled(template: str) -> Callable[..., str]:
    """The template in jinja's sandbox, with the settings and functions that transformers gives it."""
    from datetime import datetime

    from jinja2 import TemplateError
    from jinja2.ext import Extension
    from jinja2.nodes import Node, Scope
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what an assistant says; it prints its content."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own interface

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # fmt: skip
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render
    except TemplateError as exc:
        raise ConfigError(
            f"the chat template can't be read: {exc}", "correct model.chat_template, or use another model"
        ) from exc


def _unreadable(path: Path, exc: Exception) -> ConfigError:
    first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
    return ConfigError(f"{path} can't be read: {first}", "remove the damaged file; it is fetched or copied anew")
