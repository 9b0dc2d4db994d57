"""launch release: remove what jobs left stored."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import click

from launcher.commands import options

if TYPE_CHECKING:
    from datetime import timedelta

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@click.command("release")
@click.argument("jobs", nargs=-1, metavar="[JOB]...", shell_complete=options.complete_job)
@click.option("--older-than", metavar="AGE", help="All jobs that ended longer ago: 30d, 12h, 2w.")
@options.backend
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def command(jobs: tuple[str, ...], older_than: str | None, backend: str | None, yes: bool) -> None:
    """Remove what each JOB left stored: output, checkpoints, and its bundle where no other job needs it.

    Fetch first what you want to keep. The record and its figures stay. With --older-than also what belongs to no
    job and is a day old at least: uploads that were broken off, bundles of jobs that never started.
    """
    from launcher.errors import ConfigError

    if bool(jobs) == bool(older_than):
        raise ConfigError(
            "release: name jobs, or an age", "launch release JOB, or launch release --older-than 30d"
        )
    client = options.make_client()
    age = None if older_than is None else _age(older_than)
    found = list(jobs) if age is None else client.unneeded(age, backend)
    if found and not yes:
        if not sys.stdin.isatty():
            raise ConfigError("release: nobody can be asked here", "add --yes")
        names = ", ".join(found)
        click.confirm(f"Remove what {names} left stored?", abort=True, err=True)
    for key in found:
        click.echo(f"{client.release(key).id}: released")
    swept = 0
    for name, count, trouble in () if age is None else client.sweep(age, backend):
        swept += count
        if count:
            click.echo(f"{name}: {count} uploads and bundles of no job removed")
        if trouble:
            click.echo(f"{name}: what belongs to no job stays for now: {trouble}", err=True)
    if not (found or swept):
        click.echo("nothing to remove")


def _age(text: str) -> timedelta:
    from datetime import timedelta

    from launcher.errors import ConfigError

    match = re.fullmatch(r"(\d+)([hdw])", text)
    if match is None:
        raise ConfigError(f"--older-than: {text!r} is no age", "write it like 30d, 12h or 2w")
    return timedelta(**{UNITS[match.group(2)]: int(match.group(1))})
