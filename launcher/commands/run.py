"""launch run: check, plan, submit, follow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.commands import options

if TYPE_CHECKING:
    from launcher.planning import Planned


@click.command("run")
@options.job_file
@options.backend
@options.sets
@options.budget
@options.dry_run
@click.option(
    "--from-checkpoint",
    metavar="JOB",
    shell_complete=options.complete_job,
    help="Go on from the newest checkpoint of JOB, though the job file has changed since.",
)
@click.option("--detach", "-d", is_flag=True, help="Return when the job has started.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before spending money.")
@options.as_json
def command(
    job_file: Path,
    backend: str | None,
    sets: tuple[str, ...],
    budget: str | None,
    dry_run: bool,
    from_checkpoint: str | None,
    detach: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Train what JOB_FILE (default: launch.yaml) says, and stay until it is done."""
    from launcher import costview, screen
    from launcher.load import load_job
    from launcher.outcome import describe, stay, unfollowed

    client = options.make_client()
    console = screen.err()
    progress = screen.ProgressLines(console)
    job, folder = load_job(job_file, (*sets, *options.budget_set(budget))), job_file.absolute().parent
    planned = client.plan(job, folder, backend, dry_run, progress, from_checkpoint)
    if not as_json:
        console.print(screen.plan_facts(planned))
        if preview := costview.planned(planned, console.width):
            console.print(preview)
    for warning in planned.data.warnings if planned.data else ():
        console.print(f"note: {warning}", style="yellow")
    client.refuse_unready(planned.plan)  # before anybody is asked about money
    _confirm(planned, yes, as_json)
    record = client.submit(planned, progress)
    if as_json:
        print(json.dumps({"event": "submitted", "id": record.id, "ref": record.ref}), flush=True)
    if detach and client.needs_follower(record):
        console.print(unfollowed(record), soft_wrap=True)
    if not detach:
        stay(client, record.id, as_json)
    elif as_json:
        print(json.dumps({"event": "job", **describe(record)}, default=str), flush=True)
    else:
        screen.out().print(f"{record.id} started\n  launch watch {record.id}    follows it", soft_wrap=True)


def _confirm(planned: Planned, yes: bool, as_json: bool) -> None:
    """Ask before money is spent; a job that is known to be free is not asked about."""
    from launcher import screen
    from launcher.errors import ConfigError

    estimate = planned.plan.estimate
    if yes or estimate.high == 0:
        return
    price = screen.money({"low": estimate.low, "high": estimate.high})
    if as_json or not sys.stdin.isatty():
        raise ConfigError(f"this job costs money ({price}) and nobody can be asked", "add --yes to agree")
    click.confirm(f"Cost: {price}. Start?", abort=True, err=True)
