"""launch plan: what would run, without running it."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands import options


@click.command("plan")
@options.job_file
@options.backend
@options.sets
@options.as_json
def command(job_file: Path, backend: str | None, sets: tuple[str, ...], as_json: bool) -> None:
    """Check JOB_FILE (default: launch.yaml) and its data, and show what would run. Sends nothing."""
    from launcher import screen
    from launcher.load import load_job

    planned = options.make_client().plan(load_job(job_file, sets), job_file.absolute().parent, backend)
    plan = planned.plan
    if as_json:
        screen.print_json(
            {
                "backend": plan.offer.backend,
                "hardware": plan.offer.instance_type,
                "estimate": {
                    "low": plan.estimate.low,
                    "expected": plan.estimate.expected,
                    "high": plan.estimate.high,
                },
                "bundle": {
                    "sha256": plan.bundle.sha256,
                    "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in plan.bundle.files],
                },
                "data": planned.data.as_dict() if planned.data else None,
                "request": plan.request,
                "job": plan.job.model_dump(mode="json"),
            }
        )
        return
    console = screen.out()
    console.print(screen.plan_facts(planned))
    for warning in planned.data.warnings if planned.data else ():
        console.print(f"note: {warning}", style="yellow")
    console.print("the job is good: launch run starts it", style="green")
