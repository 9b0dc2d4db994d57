"""launch secrets: put a secret where a backend's jobs read it by reference."""

from __future__ import annotations

import re
import sys

import click

from launcher.commands import options


@click.group("secrets")
def command() -> None:
    """Secrets of jobs: names stand in the job file, values in the vendor's own store."""


@command.command("put")
@click.argument("name")
@click.option(
    "--backend", "-b", metavar="NAME", shell_complete=options.complete_backend, help="Whose store; default: local."
)
def put(name: str, backend: str | None) -> None:
    """Store the value of NAME: asked for, or read from standard input.

    A new value replaces the old one. It is never an argument: a shell keeps those.
    """
    from backends import registry
    from backends.base import KeepsSecrets
    from launcher.errors import ConfigError
    from launcher.home import home
    from launcher.site import load_site
    from launcher.spec import ENV_PATTERN

    if not re.fullmatch(ENV_PATTERN, name):
        raise ConfigError(
            f"secrets put: {name!r} can't be an environment variable", "use letters, digits and _, like HF_TOKEN"
        )
    target = registry.create(backend or "local", home())
    if not isinstance(target, KeepsSecrets):
        raise ConfigError(f"secrets put: backend {target.name} has no store of its own", f"export {name}=...")
    value = click.prompt(name, hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    value = value.rstrip("\r\n")
    if not value:
        raise ConfigError(f"secrets put: no value for {name} came", f"printf %s VALUE | launch secrets put {name}")
    where = target.put_secret(load_site(target.name, target.facts), name, value)
    click.echo(f"{name} is in {where}; a job gets it with  secrets: [{name}]")
