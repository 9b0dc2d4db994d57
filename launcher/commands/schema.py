"""launch schema: the job file's JSON Schema."""

from __future__ import annotations

import click


@click.command("schema")
def command() -> None:
    """Print the job file's JSON Schema, for editors: launch schema > launch.schema.json."""
    from launcher import screen
    from launcher.load import json_schema

    screen.print_json(json_schema())
