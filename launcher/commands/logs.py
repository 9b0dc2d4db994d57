"""launch logs: what a job printed."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("logs")
@options.job_or_newest
@click.option("--follow", "-f", is_flag=True, help="Stay until the job ends.")
@click.option("--tail", "-n", type=click.IntRange(min=0), metavar="N", help="The last lines only.")
@options.as_json
def command(job: str | None, follow: bool, tail: int | None, as_json: bool) -> None:
    """What JOB (default: the newest) printed, its events as words; --json: its events as JSON lines."""
    from backends.base import JobStatus, LogLine
    from launcher import screen
    from launcher.events import Event, from_line
    from launcher.live import as_words, in_trouble, spent_so_far, submitted_anew
    from launcher.observing import Resubmitted, Spending, Trouble
    from launcher.outcome import detaching

    client = options.make_client()
    job_id = client.get(job).id

    def show(item: LogLine | Event) -> None:
        if as_json:
            if isinstance(item, Event):
                click.echo(screen.json_text(item.as_json()))
            return
        line = item.text if isinstance(item, LogLine) else as_words(item)
        if line is not None:
            click.echo(line)

    if follow:
        with detaching(client, job_id):
            for item in client.follow(job_id):
                if isinstance(item, Trouble):
                    click.echo(in_trouble(item), err=True)
                elif isinstance(item, Resubmitted):
                    click.echo(submitted_anew(item), err=True)
                elif isinstance(item, Spending):
                    click.echo(spent_so_far(item, job_id), err=True)
                elif not isinstance(item, JobStatus):
                    show(item)
        return
    lines = [from_line(line.text) or line for line in client.log_lines(job_id)]
    for item in lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]:
        show(item)
