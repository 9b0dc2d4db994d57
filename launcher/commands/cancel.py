"""launch cancel: checkpoint and stop."""

from __future__ import annotations

import click

from launcher.commands import options

WAIT_S = 60.0
POLL_S = 1.0


@click.command("cancel")
@options.job
@click.option("--no-wait", is_flag=True, help="Do not wait for the checkpoint.")
def command(job: str, no_wait: bool) -> None:
    """Ask JOB to checkpoint and stop; launch resume goes on later."""
    import time

    from launcher.errors import LaunchError

    client = options.make_client()
    record = client.cancel(job)
    if record.over and record.state != "CANCELLED":
        again = "; no follower submits it anew" if client.needs_follower(record) else ""
        click.echo(f"{record.id} is over already: {record.state}{again}")
        return
    until, asked = time.monotonic() + WAIT_S, record.ref is not None
    while not (no_wait or record.over or time.monotonic() > until):
        time.sleep(POLL_S)
        try:
            record = client.get(record.id) if asked else client.cancel(record.id)
        except LaunchError as exc:
            click.echo(f"how it stands can't be asked now: {exc.message}", err=True)
            break
        asked = record.ref is not None
    if record.over:
        click.echo(f"{record.id}: {record.state}\n  launch resume {record.id}   goes on from its checkpoint")
    elif asked:
        click.echo(f"{record.id} was asked to stop\n  launch status {record.id}   tells when it has")
    else:
        click.echo(
            f"{record.id} is still being submitted by another launcher, and does not run yet\n"
            f"  launch cancel {record.id}   once more, or Ctrl-C there"
        )
