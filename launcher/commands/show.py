"""launch show: everything about one job."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command("show")
@options.job_or_newest
@options.as_json
def command(job: str | None, as_json: bool) -> None:
    """Everything about JOB (default: the newest): figures before and after, cost, files."""
    from launcher import screen
    from launcher.outcome import capacity_rows, describe, print_result

    record, why = options.make_client().seen(job)
    if why:
        screen.tell_unasked(record, why)
    if as_json:
        screen.print_json(describe(record))
        return
    rows = [
        ("model", record.spec["model"]["id"]),
        ("backend", record.backend),
        ("owner", record.owner or "unknown"),
        ("created", record.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")),
        ("estimate", screen.money(record.estimate)),
    ]
    if record.reason:
        rows.append(("reason", record.reason))
    if record.resumes:
        again = f" (submitted anew, the {record.resubmits}. time)" if record.resubmits else ""
        rows.append(("resumes", f"{record.resumes}{again}"))
    if record.folder:
        rows.append(("folder", record.folder))
    if record.url and record.url.startswith("https:"):
        rows.append(("console", record.url))
    print_result(record, [*rows, *capacity_rows(record)])
    if record.artifacts:
        screen.out().print(screen.files_table(record.artifacts))
