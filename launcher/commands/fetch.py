"""launch fetch: a job's output on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands import options


@click.command("fetch")
@options.job_or_newest
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), help="Folder; default: ./JOB.")
@options.as_json
def command(job: str | None, to: Path | None, as_json: bool) -> None:
    """Download what JOB (default: the newest) left; every file verified, repeatable when interrupted."""
    from launcher import screen

    client = options.make_client()
    record = client.get(job)
    folder = client.fetch(record.id, to or Path(record.id))
    files = [p for p in folder.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    if as_json:
        screen.print_json({"id": record.id, "folder": str(folder), "files": len(files), "bytes": size})
    else:
        click.echo(f"{folder}: {len(files)} files, {screen.size(size)}")
