"""launch release: remove what jobs left stored."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from launcher.commands import asking, options

if TYPE_CHECKING:
    from datetime import timedelta

    from launcher.client import Client
    from launcher.store import JobRecord

UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@click.command("release")
@click.argument("jobs", nargs=-1, metavar="[JOB]...", shell_complete=options.complete_job)
@click.option("--older-than", metavar="AGE", help="All your jobs that ended longer ago: 30d, 12h, 2w.")
@click.option("--all-owners", is_flag=True, help="With --older-than: also those that others have sent.")
@options.only_backend
@options.yes
@options.as_json
def command(
    jobs: tuple[str, ...], older_than: str | None, all_owners: bool, backend: str | None, yes: bool, as_json: bool
) -> None:
    """Remove what each JOB left stored: output, checkpoints, and its bundle where no other job needs it.

    Fetch first what you want to keep. The record and its figures stay. With --older-than also, on SageMaker, what
    belongs to no job and is a day old at least: uploads broken off, bundles of jobs that never started.
    """
    from launcher import screen
    from launcher.errors import ConfigError

    if bool(jobs) == bool(older_than):
        raise ConfigError(
            "release: name jobs, or an age", "launch release JOB, or launch release --older-than 30d"
        )
    if jobs and (all_owners or backend):
        raise ConfigError("release: --all-owners and --backend go with --older-than", "leave them out")
    client = options.make_client()
    age = None if older_than is None else _age(older_than)
    if age is None:
        found = [client.known(key) for key in jobs]
    else:
        found = _of_mine(client.unneeded(age, backend), all_owners)
    what = f"what {asking.named(found)} left stored" if found else ""
    if sharing := [one for record in found for one in client.sharing(record) if one not in found]:
        what += f", and the checkpoints from which {asking.named(sharing)} can be resumed"
    if stores := [] if age is None else client.swept(backend):
        what += " and " if what else ""
        what += f"uploads and bundles of no job, whoever sent them, at {', '.join(stores)}"
    asking.refuse_unasked(f"release removes {what}", yes or not what)
    asking.ask(f"Remove {what}?", yes or not what)
    for record in found:
        client.release(record.id)
        if not as_json:
            click.echo(f"{record.id}: released")
    swept = 0 if age is None else _sweep(client, age, backend, as_json)
    if as_json:
        screen.print_json([{"id": record.id, "owner": record.owner} for record in found])
    elif not (found or swept):
        click.echo("nothing to remove")


def _sweep(client: Client, age: timedelta, backend: str | None, as_json: bool) -> int:
    """Remove what belongs to no job; how many things those were."""
    swept = 0
    for name, count, trouble in client.sweep(age, backend):
        swept += count
        if count and not as_json:
            click.echo(f"{name}: {count} uploads and bundles of no job removed")
        if trouble:
            click.echo(f"{name}: what belongs to no job stays for now: {trouble}", err=True)
    return swept


def _of_mine(found: list[JobRecord], all_owners: bool) -> list[JobRecord]:
    """Those that this user is known to have sent; the others are told."""
    from launcher.site import current_user

    me = current_user()
    mine = [record for record in found if all_owners or (me is not None and record.owner == me)]
    theirs = {record.lineage for record in found if record not in mine}  # they go on from its checkpoints
    mine = [record for record in mine if record.id not in theirs]
    others = [f"{record.id} ({record.owner or 'owner unknown'})" for record in found if record not in mine]
    if others:
        click.echo(f"left out, of others: {', '.join(others)}\n  --all-owners takes them too", err=True)
    return mine


def _age(text: str) -> timedelta:
    from datetime import timedelta

    from launcher.errors import ConfigError

    match = re.fullmatch(r"(\d+)([hdw])", text)
    if match is None:
        raise ConfigError(f"--older-than: {text!r} is no age", "write it like 30d, 12h or 2w")
    return timedelta(**{UNITS[match.group(2)]: int(match.group(1))})
