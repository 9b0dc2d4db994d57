"""launch plan: what would run, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import options

if TYPE_CHECKING:
    from launcher.client import Client
    from launcher.planning import Planned


@click.command("plan")
@options.job_file
@options.backend
@options.sets
@options.budget
@click.option("--diff", metavar="BACKEND", help="Show how another backend would run it instead.")
@options.as_json
def command(
    job_file: Path, backend: str | None, sets: tuple[str, ...], budget: str | None, diff: str | None, as_json: bool
) -> None:
    """Check JOB_FILE (default: launch.yaml) and its data, and show the exact request. Sends nothing."""
    from launcher import screen
    from launcher.load import load_job

    client = options.make_client()
    job, folder = load_job(job_file, (*sets, *options.budget_set(budget))), job_file.absolute().parent
    progress = screen.ProgressLines(screen.err())
    planned = client.plan(job, folder, backend, progress=progress)
    if diff is not None:
        _show_difference(client, planned, client.plan(job, folder, diff, progress=progress), as_json)
    elif as_json:
        screen.print_json(_describe(planned))
    else:
        _show(client, planned, options.as_typed(job_file, backend, sets, budget))


def _describe(planned: Planned) -> dict[str, Any]:
    from launcher.planning import estimate_json

    plan = planned.plan
    return {
        "backend": plan.offer.backend,
        "hardware": plan.offer.instance_type,
        "estimate": estimate_json(plan),
        "bundle": {
            "sha256": plan.bundle.sha256,
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in plan.bundle.files],
        },
        "data": planned.data.as_dict() if planned.data else None,
        "checked": planned.unchecked is None,
        "unset": _unset(planned),
        "request": plan.request,
        "job": plan.job.model_dump(mode="json"),
    }


def _show(client: Client, planned: Planned, typed: str) -> None:
    """`typed`: the words behind the verb, so that what is to be typed next is about the same job."""
    from launcher import costview, screen
    from launcher.planning import too_small
    from launcher.site import how_to_set

    console = screen.out()
    console.print(screen.plan_facts(planned))
    if preview := costview.planned(planned, console.width):
        console.print(preview)
    rows = client.explain(planned.plan)
    if rows:
        console.print(screen.facts(rows))
    for warning in planned.data.warnings if planned.data else ():
        console.print(f"note: {warning}", style="yellow")
    if planned.unchecked:
        hint = planned.unchecked
        console.print(f"not checked against the vendor's model: {hint}", style="yellow")
    name = planned.plan.offer.backend
    if unset := _unset(planned):
        console.print(f"not set yet: {', '.join(unset)}", style="yellow")
        console.print(f"  {how_to_set(name, unset)}", soft_wrap=True)
    elif why := client.obstacle(planned.plan):
        console.print(f"not sent by this version: {why}", style="yellow")
    elif small := too_small(planned.choice):
        console.print(f"{small.message}\n  -> {small.hint}", style="yellow")
    else:
        console.print(f"the job is good: launch run{typed} starts it", style="green", soft_wrap=True)
    console.print(f"the request itself: launch plan{typed} --json", style="dim", soft_wrap=True)


def _show_difference(client: Client, one: Planned, other: Planned, as_json: bool) -> None:
    """Both plans row by row; what is equal is shown once."""
    from launcher import screen

    names = [p.plan.offer.backend for p in (one, other)]
    if as_json:
        screen.print_json({name: _describe(p) for name, p in zip(names, (one, other), strict=True)})
        return
    sides = [dict([*screen.plan_rows(p), *client.explain(p.plan)]) for p in (one, other)]
    screen.out().print(screen.difference_table(names, sides))


def _unset(planned: Planned) -> list[str]:
    from backends.base import placeholders

    return [fact for _, fact in placeholders(planned.plan.request)]
