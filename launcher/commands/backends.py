"""launch backends: where jobs can run."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("backends")
@options.as_json
def command(as_json: bool) -> None:
    """Where jobs can run, and what each still needs."""
    from launcher import screen

    found = options.make_client().check_backends()
    if as_json:
        screen.print_json(
            [
                {
                    "name": name,
                    "summary": summary,
                    "ready": not any(p.fatal for p in problems),
                    "problems": [{"what": p.what, "fix": p.fix, "fatal": p.fatal} for p in problems],
                }
                for name, summary, problems in found
            ]
        )
        return
    screen.out().print(screen.backends_table(found))
