"""launch backends: where jobs can run."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("backends")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=options.complete_backend)
@options.as_json
def command(names: tuple[str, ...], as_json: bool) -> None:
    """Where jobs can run, and what each still needs.

    Looks at this machine alone. With NAMEs, only these, and each vendor is asked: who is signed in, and whether
    the account lacks anything.
    """
    from launcher import screen

    found = [one for one in options.make_client().check_backends(names) if not names or one.name in names]
    if as_json:
        screen.print_json(
            [
                {
                    "name": one.name,
                    "summary": one.summary,
                    "ready": one.ready,
                    "asked": one.asked,
                    "signed_in": one.signed_in,
                    "problems": [{"what": p.what, "fix": p.fix, "fatal": p.fatal} for p in one.problems],
                }
                for one in found
            ]
        )
        return
    screen.out().print(screen.backends_table(found))
