"""launch setup: tell a backend the facts of your account, once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from launcher.commands import options

if TYPE_CHECKING:
    from backends.base import Backend, Fact, FindsFacts


@click.command("setup", context_settings={"ignore_unknown_options": True})
@click.argument("backend", shell_complete=options.complete_backend)
@click.argument("facts", nargs=-1, type=click.UNPROCESSED, metavar="[--FACT VALUE]...")
def command(backend: str, facts: tuple[str, ...]) -> None:
    """Tell BACKEND the facts of your account: role, bucket, project, ... ; asks for what no option names.

    \b
    --list      the facts, each with an example (--json for scripts)
    --find      look them up in the account; who is signed in, what is missing
    --advice    commands and least-privilege policies that make what is missing
    --install   build the environment of an SDK that lives by itself (skypilot)
    --clouds    aws,lambda: the same, with what it needs of these clouds

    They are kept in your configuration folder. No secret is asked for: credentials stay where the vendor's own
    tools keep them.
    """
    from backends import registry
    from backends.base import FindsFacts
    from launcher.home import home
    from launcher.site import check_facts, load_site, save_site

    target = registry.create(backend, home())
    clouds, facts = _taken(facts, "--clouds")
    if "--install" in facts or clouds is not None:
        _install(target, clouds)
        facts = tuple(word for word in facts if word != "--install")
        if not facts:
            return
    if not target.facts:
        click.echo(f"{backend} needs no facts")
        return
    if "--list" in facts:
        _list_facts(backend, target.facts, as_json="--json" in facts)
        return
    find, advise = "--find" in facts, "--advice" in facts
    given = _parse(tuple(word for word in facts if word not in ("--find", "--advice")))
    known = load_site(backend, target.facts).facts
    values = {name: value for name, value in {**known, **given}.items() if value}
    check_facts(backend, target.facts, values, {name: f"--{name}" for name in values})
    if advise:
        click.echo(_finder(target).advice(values))
        return
    values = _completed(target, values, find, bool(given))
    check_facts(backend, target.facts, values, {name: f"--{name}" for name in values})
    path = save_site(backend, values)
    click.echo(f"wrote {path}")
    missing = [fact.name for fact in target.facts if fact.required and fact.name not in values]
    if missing:
        click.echo(f"not set yet: {', '.join(missing)}")
        if isinstance(target, FindsFacts):
            click.echo(f"  launch setup {backend} --advice   shows how to make them")


def _completed(target: Backend, values: dict[str, str], find: bool, given: bool) -> dict[str, str]:
    """`values` with what the account tells and, on a terminal, what the user answers."""
    from backends.base import FindsFacts
    from launcher.errors import ConfigError, LaunchError

    asks = sys.stdin.isatty() and not given and not find
    found: dict[str, str] = {}
    if find or (asks and isinstance(target, FindsFacts)):
        try:
            found = _found(target, values)
        except LaunchError as exc:
            if find:
                raise
            click.echo(f"nothing could be looked up: {exc.message}", err=True)
    if not asks:
        if not (find or given):
            raise ConfigError(
                f"setup {target.name}: nobody can be asked here",
                f"launch setup {target.name} --list shows the options",
            )
        return {**found, **values}
    for fact in target.facts:
        note = "" if fact.required else ", optional"
        default = values.get(fact.name) or found.get(fact.name, "")
        values[fact.name] = click.prompt(f"{fact.what} (like {fact.example}{note})", default=default).strip()
    return {name: value for name, value in values.items() if value}


def _found(target: Backend, values: dict[str, str]) -> dict[str, str]:
    """The best value of each fact that is not known yet; all of them are shown, and as whom that was asked."""
    from backends.base import SaysWho, Site

    told = _finder(target).find_facts(values)
    found = {name: candidates for name, candidates in told.items() if candidates and name not in values}
    best = {name: candidates[0] for name, candidates in found.items()}
    if isinstance(target, SaysWho):
        who = target.signed_in(Site(backend=target.name, facts={**best, **values}))
        click.echo(f"signed in as {who}", err=True)
    for name, candidates in found.items():
        others = f" (also: {', '.join(candidates[1:4])})" if len(candidates) > 1 else ""
        click.echo(f"found {name}: {candidates[0]}{others}", err=True)
    return best


def _finder(target: Backend) -> FindsFacts:
    from backends.base import FindsFacts
    from launcher.errors import ConfigError

    if not isinstance(target, FindsFacts):
        raise ConfigError(
            f"setup {target.name}: nothing can be looked up there", f"launch setup {target.name} --list"
        )
    return target


def _taken(words: tuple[str, ...], option: str) -> tuple[list[str] | None, tuple[str, ...]]:
    """The comma-separated value of an option that is no fact, and the words without it."""
    for at, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == option:
            if not equals and at + 1 == len(words):
                raise click.UsageError(f"{option} needs a value")
            value, rest = (value, words[at + 1 :]) if equals else (words[at + 1], words[at + 2 :])
            return [one.strip() for one in value.split(",") if one.strip()], words[:at] + rest
    return None, words


def _install(target: Backend, clouds: list[str] | None) -> None:
    from backends.base import Installs
    from launcher.errors import ConfigError

    if not isinstance(target, Installs):
        raise ConfigError(
            f"setup {target.name} --install: nothing is installed that way", "launch backends says what each needs"
        )
    target.install(lambda line: click.echo(line, err=True), clouds)


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


def _list_facts(backend: str, facts: tuple[Fact, ...], as_json: bool) -> None:
    from launcher import screen

    if as_json:
        screen.print_json(
            [{"name": f.name, "what": f.what, "example": f.example, "required": f.required} for f in facts]
        )
        return
    console = screen.out()
    console.print(f"launch setup {backend} [--FACT VALUE]...\n")
    console.print(screen.facts_table(facts))
