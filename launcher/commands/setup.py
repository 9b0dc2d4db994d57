"""launch setup: tell a backend the facts of your account, once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from launcher.commands import options

if TYPE_CHECKING:
    from backends.base import Fact


@click.command("setup", context_settings={"ignore_unknown_options": True})
@click.argument("backend", shell_complete=options.complete_backend)
@click.argument("facts", nargs=-1, type=click.UNPROCESSED, metavar="[--FACT VALUE]...")
def command(backend: str, facts: tuple[str, ...]) -> None:
    """Tell BACKEND the facts of your account: role, bucket, project, ... ; asks for what no option names.

    launch setup BACKEND --list shows the facts. They are kept in your configuration folder. No secret is
    asked for: credentials stay where the vendor's own tools keep them.
    """
    from backends import registry
    from launcher.errors import ConfigError
    from launcher.home import home
    from launcher.site import check_facts, load_site, save_site

    target = registry.create(backend, home())
    if not target.facts:
        click.echo(f"{backend} needs no facts")
        return
    if "--list" in facts:
        _list_facts(backend, target.facts)
        return
    given = _parse(facts)
    known = load_site(backend, target.facts).facts
    values = {name: value for name, value in {**known, **given}.items() if value}
    check_facts(backend, target.facts, values, {name: f"--{name}" for name in values})
    if sys.stdin.isatty() and not given:
        for fact in target.facts:
            note = "" if fact.required else ", optional"
            asked = click.prompt(f"{fact.what} (like {fact.example}{note})", default=values.get(fact.name, ""))
            values[fact.name] = asked.strip()
        values = {name: value for name, value in values.items() if value}
        check_facts(backend, target.facts, values, {name: f"--{name}" for name in values})
    elif not given:
        raise ConfigError(
            f"setup {backend}: nobody can be asked here", f"launch setup {backend} --list shows the options"
        )
    path = save_site(backend, values)
    click.echo(f"wrote {path}")
    missing = [fact.name for fact in target.facts if fact.required and fact.name not in values]
    if missing:
        click.echo(f"not set yet: {', '.join(missing)}")


def _parse(words: tuple[str, ...]) -> dict[str, str]:
    """--fact value and --fact=value."""
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise click.UsageError(f"expected --FACT VALUE, got {word!r}")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise click.UsageError(f"{word} needs a value")
            value = rest.pop(0)
        given[name.replace("-", "_")] = value
    return given


def _list_facts(backend: str, facts: tuple[Fact, ...]) -> None:
    from launcher import screen

    console = screen.out()
    console.print(f"launch setup {backend} [--FACT VALUE]...\n")
    console.print(screen.facts_table(facts))
