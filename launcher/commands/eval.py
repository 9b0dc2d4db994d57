"""launch eval: judge a finished job's model again."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.commands import options


@click.command("eval")
@options.job_or_newest
@click.option("--data", type=click.Path(path_type=Path), help="Rows to judge on; default: the job's own.")
@click.option("--max-rows", type=click.IntRange(min=1), metavar="N", help="Rows at most; default: as in the job.")
@options.as_json
def command(job: str | None, data: Path | None, max_rows: int | None, as_json: bool) -> None:
    """Judge JOB (default: the newest), base model and tuned, here and again, also on other rows."""
    from launcher import screen
    from launcher.evaluation.again import judge_again
    from launcher.figures import confusion_table, figures_table

    client = options.make_client()
    job_id = client.get(job).id
    console = screen.err()
    metrics, predictions = judge_again(client, job_id, data, max_rows, screen.ProgressLines(console))
    if as_json:
        screen.print_json({"id": job_id, "evaluation": metrics, "predictions": str(predictions)})
        return
    console = screen.out()
    for table in (figures_table(metrics), confusion_table(metrics["tuned"] or {})):
        if table is not None:
            console.print(table)
    console.print(f"answers row by row: {predictions}", soft_wrap=True)
