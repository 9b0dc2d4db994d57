"""launch rehearse: a job inside a vendor's container contract, on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands import options


@click.command("rehearse")
@options.job_file
@options.backend
@options.sets
@click.option("--preempt-after", type=click.IntRange(min=1), metavar="N", help="Interrupt it once, after N steps.")
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), help="Folder; default: in LAUNCH_HOME.")
@options.as_json
def command(
    job_file: Path,
    backend: str | None,
    sets: tuple[str, ...],
    preempt_after: int | None,
    to: Path | None,
    as_json: bool,
) -> None:
    """Run JOB_FILE on this machine as --backend would: its container's environment, files and folders.

    Nothing is sent and nothing costs. With --preempt-after the machine is taken away once, and the job must go
    on from its checkpoint on a new one.
    """
    from launcher import screen
    from launcher.figures import figures_table
    from launcher.load import load_job

    client = options.make_client()
    planned = client.plan(load_job(job_file, sets), job_file.absolute().parent, backend)
    console = screen.err()
    seen = client.rehearse(planned.plan, preempt_after, to, screen.ProgressLines(console))
    shown = {
        "backend": planned.plan.offer.backend,
        "starts": seen.starts,
        "interrupted_at": seen.interrupted_at,
        "resumed_at": seen.resumed_at,
        "output": str(seen.output),
        "evaluation": seen.evaluation,
    }
    if as_json:
        screen.print_json(shown)
        return
    out = screen.out()
    rows = [("rehearsed", f"as {shown['backend']} would run it, in {seen.starts} starts")]
    if seen.interrupted_at is not None:
        rows.append(("interrupted", f"after step {seen.interrupted_at}; it went on from step {seen.resumed_at}"))
    rows.append(("output", str(seen.output)))
    out.print(screen.facts(rows))
    judged = figures_table(seen.evaluation)
    if judged is not None:
        out.print(judged)
