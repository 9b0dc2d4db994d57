"""launch orphans: what runs, and costs, without a job of the record."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("orphans")
@options.only_backend
@options.region
@options.as_json
def command(backend: str | None, region: str | None, as_json: bool) -> None:
    """What is alive at the backends that are set up, and no job of your record owns, with what it costs an hour.

    Jobs sent from elsewhere, and machines whose job is over; with --backend and --region, in another region than
    yours. Nothing is stopped: each line says what stops it.
    """
    from launcher import screen

    found, silent = options.make_client().orphans([backend] if backend else [], region)
    console = screen.err()
    for name, why in silent.items():
        console.print(f"{name} can't be asked: {why}", style="yellow")
    if as_json:
        screen.print_json(
            [
                {
                    "backend": one.backend, "id": one.id, "what": one.what, "stop": one.stop,
                    "hourly": None if one.hourly is None else str(one.hourly),
                    "since": one.since.isoformat() if one.since else None,
                }
                for one in found
            ]
        )  # fmt: skip
        return
    for one in found:
        cost = "unknown cost" if one.hourly is None else f"${one.hourly:.2f} an hour"
        click.echo(f"{one.backend}  {one.id}  {one.what}  {cost}\n  {one.stop}")
    if not found and not silent:
        click.echo("nothing runs that your record does not know")
