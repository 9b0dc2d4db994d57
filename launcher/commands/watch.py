"""launch watch: follow a job."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("watch")
@options.job_or_newest
@options.as_json
def command(job: str | None, as_json: bool) -> None:
    """Follow JOB (default: the newest) until it ends. Ctrl-C detaches; the job goes on."""
    from launcher.outcome import stay

    client = options.make_client()
    stay(client, client.get(job).id, as_json)
