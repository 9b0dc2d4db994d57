"""launch resume: go on from the checkpoints."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("resume")
@options.job
@click.option("--detach", "-d", is_flag=True, help="Return when the job has started.")
@options.as_json
def command(job: str, detach: bool, as_json: bool) -> None:
    """Start a new job that goes on where JOB, which ended early, left off."""
    import json

    from launcher import screen
    from launcher.outcome import stay, unfollowed

    client = options.make_client()
    console = screen.err()
    record = client.resume(job, screen.ProgressLines(console))
    if as_json:
        print(json.dumps({"event": "submitted", "id": record.id, "ref": record.ref}), flush=True)
    else:
        console.print(f"{record.id} goes on from {record.resumes}")
    if detach and client.needs_follower(record):
        console.print(unfollowed(record), soft_wrap=True)
    if not detach:
        stay(client, record.id, as_json)
