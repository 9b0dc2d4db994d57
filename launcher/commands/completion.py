"""launch completion: the script that a shell needs."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the completion script, for example: launch completion bash >> ~/.bashrc"""
    from click.shell_completion import get_completion_class

    from launcher.cli import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "launch", "_LAUNCH_COMPLETE").source())
