"""launch run: check, plan, submit, follow."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands import options, starting


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
@options.detach
@click.option("--even-if-too-small", is_flag=True, help="Also on a GPU with less memory than the job needs.")
@options.yes_to_money
@options.as_json
def command(
    job_file: Path,
    backend: str | None,
    sets: tuple[str, ...],
    budget: str | None,
    dry_run: bool,
    from_checkpoint: str | None,
    detach: bool,
    even_if_too_small: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Train what JOB_FILE (default: launch.yaml) says, and stay until it is done."""
    from launcher import screen
    from launcher.load import load_job
    from launcher.planning import too_small

    client = options.make_client()
    progress = screen.ProgressLines(screen.err())
    job, folder = load_job(job_file, (*sets, *options.budget_set(budget))), job_file.absolute().parent
    planned = client.plan(job, folder, backend, dry_run, progress, from_checkpoint)
    if (refusal := too_small(planned.choice)) and not even_if_too_small:
        raise refusal
    starting.start(client, planned, detach=detach, yes=yes, as_json=as_json)
