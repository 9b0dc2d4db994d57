"""launch cost accuracy: what was estimated for each job against what it took."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("accuracy", short_help="Estimates against what finished jobs took.")
@click.option("--all", "-a", "everything", is_flag=True, help="Not only the newest 20 jobs.")
@options.as_json
def accuracy(everything: bool, as_json: bool) -> None:
    """Estimate against actual for every finished job, and what later estimates are multiplied by.

    An error of +25 % is an estimate a quarter above what the job took. The calibration of a GPU, a kind of tuning
    and a code path is measured over modelled time of an optimizer step.
    """
    from cost.ledger import calibrations
    from launcher import accuracy as view
    from launcher import screen
    from launcher.ledger import entries_of

    client = options.make_client()
    entries = entries_of(client.jobs(), client.events)
    known = calibrations(entries)
    if as_json:
        screen.print_json(view.as_json(entries, known))
        return
    finished = [entry for entry in entries if entry.hours is not None][::-1]
    if not finished:
        screen.err().print("no job has come to its end yet; launch cost estimates one, launch run starts it")
    else:
        screen.out().print(view.table(finished if everything else finished[:20]))
        screen.out().print(view.summary(finished), soft_wrap=True)
        if len(finished) > 20 and not everything:
            screen.err().print(f"{len(finished) - 20} older ones: launch cost accuracy --all", style="dim")
    if known:
        screen.out().print(view.calibration_table(known))
