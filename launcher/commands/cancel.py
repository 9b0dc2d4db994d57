"""launch cancel: checkpoint and stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.commands import asking, options

if TYPE_CHECKING:
    from launcher.client import Client
    from launcher.store import JobRecord

WAIT_S = 60.0
POLL_S = 1.0


@click.command("cancel")
@options.job
@click.option("--no-wait", is_flag=True, help="Do not wait for the checkpoint.")
@options.yes
@options.as_json
def command(job: str, no_wait: bool, yes: bool, as_json: bool) -> None:
    """Ask JOB to checkpoint and stop; launch resume goes on later.

    Asks before it stops somebody else's.
    """
    from launcher import screen

    client = options.make_client()
    known = client.known(job)
    if owner := asking.anothers(known):
        asking.refuse_unasked(f"{known.id} is {owner}'s job", yes)
        asking.ask(f"{known.id} is {owner}'s job. Stop it?", yes)
    record = client.cancel(known.id)
    before = record.over and record.state != "CANCELLED"
    if not (before or no_wait):
        record = _stopped(client, record)
    if as_json:
        screen.print_json({"id": record.id, "state": record.state, "asked": record.ref is not None and not before})
        return
    click.echo(_over_before(client, record) if before else _how_it_stands(record))


def _stopped(client: Client, record: JobRecord) -> JobRecord:
    """The job when it has stopped, or when that has been waited for."""
    import time

    from launcher.errors import LaunchError

    until = time.monotonic() + WAIT_S
    while not (record.over or time.monotonic() > until):
        time.sleep(POLL_S)
        try:
            # One that another launcher still submits can't be asked yet.
            record = client.get(record.id) if record.ref else client.cancel(record.id)
        except LaunchError as exc:
            click.echo(f"how it stands can't be asked now: {exc.message}", err=True)
            break
    return record


def _over_before(client: Client, record: JobRecord) -> str:
    again = "; no follower submits it anew" if client.needs_follower(record) else ""
    return f"{record.id} is over already: {record.state}{again}"


def _how_it_stands(record: JobRecord) -> str:
    if record.over:
        return f"{record.id}: {record.state}\n  launch resume {record.id}   goes on from its checkpoint"
    if record.ref is not None:
        return f"{record.id} was asked to stop\n  launch status {record.id}   tells when it has"
    return (
        f"{record.id} is still being submitted by another launcher, and does not run yet\n"
        f"  launch cancel {record.id}   once more, or Ctrl-C there"
    )
