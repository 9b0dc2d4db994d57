"""launch prices: what is known about prices, how old, from where; and reading the vendors' lists anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from launcher.commands import options

if TYPE_CHECKING:
    from launcher.prices import Outcome

SOURCES = ("sagemaker", "ec2", "azure", "google", "skypilot")
"""The names of cost.refresh.SOURCES; here so that --help needs no more than click."""


@click.group("prices")
def command() -> None:
    """What machines cost: show what is known, refresh it from the vendors' own lists."""


@command.command("show")
@click.option("--backend", "-b", metavar="NAME", help="Only this backend's offers, or a provider's (aws, lambda).")
@click.option("--gpu", metavar="GPU[:N]", help="Only machines with this GPU, with N of them.")
@click.option("--region", metavar="REGION", help="Only this region.")
@options.as_json
def show(backend: str | None, gpu: str | None, region: str | None, as_json: bool) -> None:
    """What is known, how old, from where; with your own prices.yaml.

    Without an option: a summary. Prices are US dollars an hour for a whole machine, without tax.
    """
    from launcher import pricelist, screen
    from launcher.prices import known_prices, user_file

    prices = known_prices()
    offers = list(pricelist.offers(prices, backend, gpu, region))
    summary = list(pricelist.summary(prices))
    yours = pricelist.yours(prices, str(user_file()))
    tokens = [one for one in prices.tokens if backend in (None, one.provider)]
    if as_json:
        fields = [pricelist.token_fields(one) for one in tokens]
        screen.print_json({"sources": summary, "yours": yours, "prices": offers, "tokens": fields})
        return
    console = screen.out()
    if not (backend or gpu or region):
        console.print(pricelist.summary_table(summary))
    elif offers:
        console.print(pricelist.offers_table(offers, console.width))
    elif backend == "local":
        console.print(getattr(prices.lookup("local", "this machine"), "note", ""))
    for one in tokens if not (gpu or region) else ():
        console.print(pricelist.tokens_line(one))
    for remark in pricelist.remarks(offers) if backend or gpu or region else ():
        console.print(f"* {remark}", style="dim")
    for line in pricelist.yours_lines(yours):
        console.print(line)
    if not (backend or gpu or region):
        console.print(screen.commands(
            ("launch prices show --backend vertex --gpu H100", "the prices themselves"),
            ("launch prices refresh", "read the vendors' lists anew"),
        ))  # fmt: skip


@command.command("refresh")
@click.option(
    "--source", "sources", multiple=True, type=click.Choice(SOURCES),
    help="Only this list; again for more. ec2 is read when named: it is hundreds of MB.",
)  # fmt: skip
@click.option("--region", "regions", multiple=True, metavar="REGION", help="Regions of sagemaker, ec2 and azure.")
@options.as_json
def refresh(sources: tuple[str, ...], regions: tuple[str, ...], as_json: bool) -> None:
    """Read the vendors' price lists anew. A list that can't be read leaves what was known before."""
    from launcher import prices, screen
    from launcher.errors import LaunchError

    outcomes = []
    for outcome in prices.refresh(sources, regions, _ask_skypilot):
        outcomes.append(outcome)
        if not as_json:
            screen.out().print(_outcome_line(outcome))
    if as_json:
        screen.print_json([_outcome_fields(outcome) for outcome in outcomes])
    failed = [one.source for one in outcomes if one.error and not one.skipped]
    if failed:
        raise LaunchError(
            f"{len(failed)} of {len(outcomes)} price lists could not be read: {', '.join(failed)}",
            "what was known before stays in force: launch prices show",
        )


def _ask_skypilot() -> Mapping[str, Any]:
    from backends import registry
    from backends.base import ListsPrices
    from launcher.home import home

    target = registry.create("skypilot", home())
    assert isinstance(target, ListsPrices)
    return target.list_prices()


def _outcome_line(outcome: Outcome) -> str:
    stays = f"; the list of {outcome.kept} stays" if outcome.kept else "; the bundled prices stay"
    if outcome.error:
        line = f"{outcome.source}: {'skipped' if outcome.skipped else 'failed'}: {outcome.error}{stays}"
    else:
        line = f"{outcome.source}: {outcome.rows} prices in {outcome.regions} regions"
    return "\n".join([line, *(f"  {note}" for note in outcome.notes)])


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    return {
        "source": outcome.source,
        "ok": outcome.error is None,
        "skipped": outcome.skipped,
        "prices": outcome.rows,
        "regions": outcome.regions,
        "error": outcome.error,
        "kept_as_of": outcome.kept if outcome.error else None,
        "notes": list(outcome.notes),
    }
