"""launch list: all jobs."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("list")
@click.option("--all", "-a", "everything", is_flag=True, help="Not only the newest 20.")
@options.as_json
def command(everything: bool, as_json: bool) -> None:
    """All jobs, newest first."""
    from launcher import screen
    from launcher.outcome import describe

    records = options.make_client().jobs()
    if as_json:
        screen.print_json([describe(record) for record in records])
        return
    if not records:
        screen.err().print("no jobs yet; launch init writes a job file, launch run starts it")
        return
    shown = records if everything else records[:20]
    console = screen.out()
    console.print(screen.jobs_table(shown, console.width))
    if len(shown) < len(records):
        screen.err().print(f"{len(records) - len(shown)} older ones: launch list --all", style="dim")
