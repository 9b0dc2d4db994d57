"""launch doctor: is this machine ready?"""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Build what is missing: the training environment, SkyPilot's.")
@options.as_json
def command(fix: bool, as_json: bool) -> None:
    """Check this machine and every backend; each problem with its fix.

    Exit code 1 when this machine, or a backend that is set up, can't run jobs.
    """
    import platform

    from launcher import __version__, screen
    from launcher.home import cache, home

    client = options.make_client()
    if fix:
        console = screen.err()
        client.repair(screen.ProgressLines(console))
    found = client.check_backends()
    wrong = [(one.name, p) for one in found for p in one.problems]
    machine = {
        "finelaunch": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "record": str(home()),
        "cache": str(cache()),
    }
    if as_json:
        screen.print_json(
            {
                **machine,
                "signed_in": {one.name: one.signed_in for one in found if one.signed_in},
                "problems": [{"backend": n, "what": p.what, "fix": p.fix, "fatal": p.fatal} for n, p in wrong],
            }
        )
    else:
        console = screen.out()
        console.print(screen.facts(machine.items()))
        console.print(screen.backends_table(found))
    if any(one.set_up and not one.ready for one in found):
        raise click.exceptions.Exit(1)
