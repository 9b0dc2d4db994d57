"""launch cancel: checkpoint and stop."""

from __future__ import annotations

import click

from launcher.commands import options

WAIT_S = 60.0


@click.command("cancel")
@options.job
@click.option("--no-wait", is_flag=True, help="Do not wait for the checkpoint.")
def command(job: str, no_wait: bool) -> None:
    """Ask JOB to checkpoint and stop; launch resume goes on later."""
    import time

    client = options.make_client()
    before = client.latest(client.get(job).id)
    record = client.cancel(before.id)
    if before.over and record.id == before.id:
        again = "; no follower submits it anew" if client.needs_follower(record) else ""
        click.echo(f"{record.id} is over already: {record.state}{again}")
        return
    until = time.monotonic() + WAIT_S
    while not (no_wait or record.over or time.monotonic() > until):
        time.sleep(0.3)
        record = client.get(record.id)
    if record.over:
        click.echo(f"{record.id}: {record.state}\n  launch resume {record.id}   goes on from its checkpoint")
    else:
        click.echo(f"{record.id} was asked to stop\n  launch status {record.id}   tells when it has")
