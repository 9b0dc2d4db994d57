"""launch resume: go on from the checkpoints."""

from __future__ import annotations

import click

from launcher.commands import options, starting


@click.command("resume")
@options.job
@options.detach
@options.yes_to_money
@options.as_json
def command(job: str, detach: bool, yes: bool, as_json: bool) -> None:
    """Start a new job that goes on where JOB, which ended early, left off.

    What it can cost is shown, and asked, before it starts.
    """
    client = options.make_client()
    starting.start(client, client.plan_resume(job), detach=detach, yes=yes, as_json=as_json)
