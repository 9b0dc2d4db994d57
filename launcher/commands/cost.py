"""launch cost: what the job costs everywhere, before it runs."""

from __future__ import annotations

from pathlib import Path

import click
from click_default_group import DefaultGroup

from launcher.commands import options
from launcher.commands.cost_accuracy import accuracy


@click.command("preview", short_help="The job on every backend's offers.")
@options.job_file
@click.option(
    "--backend", "-b", "backends", multiple=True, metavar="NAME", shell_complete=options.complete_backend,
    help="Only this backend; again for more. Default: all of them.",
)  # fmt: skip
@options.sets
@click.option("--all", "everything", is_flag=True, help="Every offer that is priced, not the best ones only.")
@click.option("--sort", type=click.Choice(["total", "time", "price"]), default="total", help="What comes first.")
@click.option("--spot/--no-spot", default=None, help="Spot capacity or on demand. Default: as the job file says.")
@click.option("--region", metavar="REGION", help="Only there; for skypilot also a cloud.")
@click.option("--gpu", metavar="GPU", help="Only this GPU.")
@click.option("--max-hours", type=click.FloatRange(min=0, min_open=True), metavar="H", help="Nothing slower.")
@click.option("--probe", is_flag=True, help="First run a few real steps here, and calibrate with what they took.")
@options.budget
@options.as_json
def preview(
    job_file: Path,
    backends: tuple[str, ...],
    sets: tuple[str, ...],
    everything: bool,
    sort: str,
    spot: bool | None,
    region: str | None,
    gpu: str | None,
    max_hours: float | None,
    probe: bool,
    budget: str | None,
    as_json: bool,
) -> None:
    """What JOB_FILE (default: launch.yaml) costs on every backend: fit, time, total, and how they come about.

    Needs no credentials and no network. Unknown is a word, never 0.
    """
    import gc
    from typing import cast

    gc.disable()  # what a second's work makes stays to its end, and looking for garbage takes a tenth of it
    from cost.preview import Limits, Sort
    from cost.prices.files import latest_day
    from launcher import costing, screen
    from launcher.home import home
    from launcher.load import load_job

    asked = {"spot": None if spot is None else str(spot).lower(), "region": region, "gpu": gpu}
    extra = tuple(f"resources.{name}={value}" for name, value in asked.items() if value is not None)
    job = load_job(job_file, (*sets, *extra, *options.budget_set(budget)))
    limits = Limits(budget=job.budget, max_hours=max_hours)
    folder = job_file.absolute().parent
    if probe:
        from launcher.probing import probe as measure

        progress = screen.ProgressLines(screen.err())
        progress(measure(options.make_client(), load_job(job_file, sets), folder, progress))
    found = costing.preview(job, folder, home(), backends, sort=cast(Sort, sort), limits=limits)
    if as_json:
        from launcher import costjson

        screen.print_json(costjson.as_json(found))
        return
    from launcher import costview

    console = screen.out()
    console.print(costview.view(found, console.width, latest_day(), everything), soft_wrap=False)


class _Cost(DefaultGroup):  # type: ignore[misc]
    """`launch cost JOB` means `launch cost preview JOB`, and its help is the one that is asked for."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        asked = click.Context(preview, info_name=ctx.info_name, parent=ctx.parent)
        preview.format_help(asked, formatter)
        self.format_commands(ctx, formatter)


command: click.Group = _Cost(
    "cost", help=preview.help, default="preview", default_if_no_args=True, commands=[preview, accuracy]
)
