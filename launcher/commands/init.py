"""launch init: a job file that runs as it is."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands.options import DEFAULT_JOB_FILE

DEFAULT_TEMPLATE = "support_triage"
SKIPPED = ("__init__.py", "__pycache__")


def _templates() -> list[str]:
    from importlib.resources import files

    found = (item.name for item in files("templates").iterdir() if item.is_dir())
    return sorted(name for name in found if not name.startswith("_"))


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in _templates() if name.startswith(incomplete)]


@click.command("init")
@click.option(
    "--template",
    "-t",
    default=DEFAULT_TEMPLATE,
    show_default=True,
    metavar="NAME",
    shell_complete=_complete,
    help="What to begin with.",
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".", metavar="[FOLDER]")
def command(template: str, folder: Path) -> None:
    """Write launch.yaml, and data to try it on, into FOLDER (default: here). Overwrites nothing."""
    import difflib
    from importlib.resources import files

    from launcher.errors import ConfigError
    from train_entry.failure import write_atomic

    known = _templates()
    if template not in known:
        close = difflib.get_close_matches(template, known, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"there is no template {template!r}", f"{guess}there are: {', '.join(known)}")
    source = files("templates").joinpath(template)
    wanted = [item for item in source.iterdir() if item.name not in SKIPPED]
    there = [item.name for item in wanted if (folder / item.name).exists()]
    if there:
        raise ConfigError(
            f"{folder / there[0]} is there already; nothing was written",
            "launch init OTHER-FOLDER, or move it away",
        )
    # The job file comes last: where it is, everything that it names is too.
    for item in sorted(wanted, key=lambda i: i.name == DEFAULT_JOB_FILE):
        write_atomic(folder / item.name, item.read_bytes())
        click.echo(f"wrote {folder / item.name}")
    where = "" if folder == Path() else f" {folder / DEFAULT_JOB_FILE}"
    click.echo(f"next: launch plan{where}   then: launch run{where}")
