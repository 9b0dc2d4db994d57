"""The options and arguments that several verbs share."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from launcher.client import Client

DEFAULT_JOB_FILE = "launch.yaml"


def complete_job(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from launcher.errors import LaunchError
    from launcher.home import home
    from launcher.store import Store

    path = home() / "record.db"
    try:
        return [record.id for record in Store(path).find(incomplete)] if path.exists() else []
    except LaunchError:  # nothing that a prompt could show
        return []


def complete_backend(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from backends import registry

    return [name for name in registry.names() if name.startswith(incomplete)]


job_file = click.argument(
    "job_file", type=click.Path(path_type=Path), default=DEFAULT_JOB_FILE, metavar="[JOB_FILE]"
)
backend = click.option(
    "--backend", "-b", metavar="NAME", shell_complete=complete_backend, help="Where to run; wins over the file."
)
only_backend = click.option(
    "--backend", "-b", metavar="NAME", shell_complete=complete_backend, help="This backend alone."
)
region = click.option("--region", metavar="REGION", help="Look there, not in your account's region.")
detach = click.option("--detach", "-d", is_flag=True, help="Return when the job has started.")
yes_to_money = click.option("--yes", "-y", is_flag=True, help="Do not ask before spending money.")
yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
sets = click.option(
    "--set", "sets", multiple=True, metavar="PATH=VALUE", help="Override a field: --set train.epochs=5."
)
budget = click.option("--budget", metavar="DOLLARS", help="US dollars that the job may cost at most.")
dry_run = click.option("--dry-run", is_flag=True, help="A few real steps, then stop: time, tokens/s, memory.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON with stable names.")
job = click.argument("job", metavar="JOB", shell_complete=complete_job)
job_or_newest = click.argument("job", required=False, metavar="[JOB]", shell_complete=complete_job)


def budget_set(budget: str | None) -> tuple[str, ...]:
    """--budget as what --set takes."""
    return () if budget is None else (f"budget={budget.removeprefix('$')}",)


def make_client() -> Client:
    """The client of this user's record."""
    from launcher.client import Client
    from launcher.home import home

    return Client(home())


def as_typed(job_file: Path, backend: str | None, sets: tuple[str, ...], budget: str | None) -> str:
    """The words that name the same job again behind another verb, each with a space before it."""
    words = [] if job_file == Path(DEFAULT_JOB_FILE) else [str(job_file)]
    words += ["--backend", backend] if backend else []
    words += [word for one in sets for word in ("--set", one)]
    words += ["--budget", budget] if budget else []
    return "".join(f" {shlex.quote(word)}" for word in words)
