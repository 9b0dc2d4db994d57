"""launch list: all jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from launcher.commands import options

RECENT = timedelta(days=7)
"""Of a job that was not seen to start: it would be over by now, or nearly."""


@click.command("list")
@click.option("--all", "-a", "everything", is_flag=True, help="Not only the newest 20.")
@click.option("--discover", is_flag=True, help="Ask the backends for jobs sent from elsewhere, too.")
@options.only_backend
@options.region
@options.as_json
def command(everything: bool, discover: bool, backend: str | None, region: str | None, as_json: bool) -> None:
    """All jobs, newest first.

    --discover takes in what the backends that are set up know of jobs sent from another laptop, or by
    somebody else who uses the account; with --backend and --region, also those of another region than yours.
    """
    from launcher import screen
    from launcher.errors import ConfigError
    from launcher.outcome import describe
    from launcher.site import current_user

    if region and not discover:
        raise ConfigError("--region says where --discover looks", f"launch list --discover --region {region} ...")
    client = options.make_client()
    if discover:
        found, unasked = client.discover([backend] if backend else [], region)
        screen.err().print(f"{found} jobs that were not known here", style="dim")
        for name, why in unasked.items():
            screen.err().print(f"{name} can't be asked for jobs: {why}", style="yellow")
    records, silent = client.listed(backend)
    for name, why in silent.items():
        line = f"{name} can't be asked now, its jobs are shown as they were last seen: {why}"
        screen.err().print(line, style="yellow")
    if as_json:
        screen.print_json([describe(record) for record in records])
        return
    if not records:
        screen.err().print("no jobs yet; launch init writes a job file, launch run starts it")
        return
    shown = records if everything else records[:20]
    console = screen.out()
    console.print(screen.jobs_table(shown, console.width, silent, current_user()))
    if len(shown) < len(records):
        screen.err().print(f"{len(records) - len(shown)} older ones: launch list --all", style="dim")
    for record in shown:
        if record.never_started and datetime.now(UTC) - record.created < RECENT:
            line = f"{record.id} was not seen to start: launch show {record.id} asks {record.backend} again"
            screen.err().print(line, style="dim", soft_wrap=True)
