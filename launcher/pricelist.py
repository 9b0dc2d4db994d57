"""What `launch prices show` shows: a line a list, a line an offer, the same fields in the table and in JSON."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from rich.table import Table

from cost.prices import Price, Prices, Row, TokenPrice, Unpriced
from cost.prices.files import EVERYWHERE
from cost.prices.markets import MARKETS
from cost.prices.overlay import Rule
from launcher.errors import ConfigError
from launcher.screen import WIDE

MOST_REMARKS = 8


def summary(prices: Prices) -> Iterator[dict[str, Any]]:
    """One line a provider and origin: how many machines and regions, from when."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in prices.rows:
        quote = row.on_demand or row.spot
        assert quote is not None
        groups.setdefault((row.provider, quote.origin), []).append(row)
    for (provider, origin), rows in sorted(groups.items()):
        days = [quote.as_of for row in rows for quote in (row.on_demand, row.spot) if quote]
        yield {
            "provider": provider,
            "backends": _backends_of(provider),
            "prices": len(rows),
            "spot_prices": sum(row.spot is not None for row in rows),
            "regions": sorted({row.region for row in rows}),
            "newest": max(days),
            "oldest": min(days),
            "origin": origin,
        }


def _backends_of(provider: str) -> list[str]:
    return [name for name, market in MARKETS.items() if provider in market.providers]


def offers(prices: Prices, backend: str | None, gpu: str | None, region: str | None) -> Iterator[dict[str, Any]]:
    """The offers of a backend, or of every one, as stable fields. Raises ConfigError for unknown names."""
    in_markets = {provider for market in MARKETS.values() for provider in market.providers}
    alone = sorted({row.provider for row in prices.rows} - in_markets)
    names = (*MARKETS, *alone) if backend is None else (backend,)
    rows = [(name, row) for name in names for row in prices.rows_of(name) if region in (None, row.region)]
    if not rows and backend not in (None, "local", *{one.provider for one in prices.tokens}):
        _refuse("backend", backend, sorted({*MARKETS, *(row.provider for row in prices.rows)}))
    wanted, _, count = (gpu or "").casefold().partition(":")
    fitting = [
        (name, row)
        for name, row in rows
        if (not wanted or row.gpu.casefold() == wanted or row.gpu.casefold().startswith(f"{wanted}-"))
        and (not count or str(row.gpus) == count)
    ]
    if gpu and rows and not fitting:
        _refuse("gpu", gpu, sorted({row.gpu for _, row in rows}))
    for name, row in fitting:
        yield _fields(name, row, prices.listed(row, name, False), prices.listed(row, name, True))


def _refuse(option: str, value: Any, known: list[str]) -> None:
    close = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
    guess = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"--{option}: no price of {value} is known", f"{guess}there are: {', '.join(known)}")


def _fields(backend: str, row: Row, on_demand: Price | Unpriced, spot: Price | Unpriced) -> dict[str, Any]:
    first = on_demand if isinstance(on_demand, Price) else None
    second = spot if isinstance(spot, Price) else None
    known = first or second
    return {
        "backend": backend,
        "provider": row.provider,
        "instance_type": row.instance_type,
        "region": row.region,
        "gpu": row.gpu,
        "gpus": row.gpus,
        "gpu_memory_gib": row.gpu_memory_gib,
        "hourly": first.hourly if first else None,
        "spot_hourly": second.hourly if second else None,
        "spot_low": second.low if second else None,
        "spot_high": second.high if second else None,
        "components": [{"what": one.what, "hourly": one.hourly} for one in known.components] if known else [],
        "as_of": known.as_of if known else None,
        "url": known.url if known else None,
        "origin": known.origin if known else None,
        "note": known.note if known else getattr(on_demand, "reason", ""),
    }


def yours(prices: Prices, path: str) -> dict[str, Any]:
    """The user's own rates and discounts, and where they stand or would."""
    overlay = prices.overlay
    rates = [
        {**_rule_fields(rate), "hourly": rate.hourly, "per_gpu": rate.per_gpu, "as_of": rate.as_of}
        for rate in overlay.rates
    ]
    discounts = [{**_rule_fields(discount), "percent": discount.percent} for discount in overlay.discounts]
    return {"path": path, "rates": rates, "discounts": discounts}


def yours_lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for a person."""
    if not (found["rates"] or found["discounts"]):
        yield f"yours: none; {found['path']} would win over every list"
        return
    yield f"yours, in {found['path']}:"
    for one in found["rates"]:
        unit = "a GPU-hour" if one["per_gpu"] else "an hour"
        yield f"  {_rule_words(one)}: ${one['hourly']:f} {unit}"
    for one in found["discounts"]:
        yield f"  {_rule_words(one)}: {one['percent']:f} % off the list"


def _rule_fields(rule: Rule) -> dict[str, Any]:
    fields = ("where", "backend", "instance_type", "region", "spot", "note")
    return {name: getattr(rule, name) for name in fields}


def _rule_words(rule: dict[str, Any]) -> str:
    words = [rule["backend"], *(rule[name] for name in ("instance_type", "region") if rule[name] != "*")]
    return " ".join([*words, *(["spot"] if rule["spot"] else [])])


def tokens_line(one: TokenPrice) -> str:
    band = f"{one.from_parameters_b:g}-{one.to_parameters_b:g}B"
    return f"{one.provider}, {band}: ${one.low}-{one.high} for 1M tokens, read {one.as_of}"


def token_fields(one: TokenPrice) -> dict[str, Any]:
    return {
        "provider": one.provider,
        "from_parameters_b": one.from_parameters_b,
        "to_parameters_b": one.to_parameters_b,
        "low": one.low,
        "high": one.high,
        "as_of": one.as_of,
        "url": one.url,
        "note": one.note,
    }


def summary_table(found: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("PROVIDER", no_wrap=True)
    table.add_column("FOR", overflow="fold")
    for name in ("PRICES", "REGIONS"):
        table.add_column(name, no_wrap=True, justify="right")
    for name in ("READ", "FROM"):
        table.add_column(name, no_wrap=True)
    for one in found:
        newest, oldest = one["newest"], one["oldest"]
        read = f"{newest}" if newest == oldest else f"{oldest} to {newest}"
        regions = "all" if EVERYWHERE in one["regions"] else str(len(one["regions"]))
        backends = ", ".join(one["backends"]) or "-"
        table.add_row(one["provider"], backends, str(one["prices"]), regions, read, one["origin"])
    return table


def offers_table(found: list[dict[str, Any]], width: int) -> Table:
    """A line an offer; the dates are left out where `width` columns have no room for them."""
    wide = width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("BACKEND", "INSTANCE", "REGION", "GPU"):
        table.add_column(name, overflow="fold")
    table.add_column("$/h", justify="right", no_wrap=True)
    table.add_column("SPOT $/h", justify="right", no_wrap=True)
    if wide:
        table.add_column("READ", no_wrap=True, style="dim")
    for one in found:
        where = f"skypilot/{one['provider']}" if one["backend"] == "skypilot" else one["backend"]
        spot = _money(one["spot_hourly"])
        if one["spot_hourly"] is None and one["spot_high"] is not None:
            spot = f"{_money(one['spot_low'])}-{_money(one['spot_high'])}"
        read = [_read(one)] if wide else []
        gpus = f"{one['gpus']} x {one['gpu']}"
        table.add_row(where, one["instance_type"], one["region"], gpus, _money(one["hourly"]), spot, *read)
    return table


def remarks(found: list[dict[str, Any]]) -> list[str]:
    """When the prices were read, and what the lists say about them, each once."""
    days = sorted({_read(one) for one in found})
    read = [f"read {days[0]}" if len(days) == 1 else f"read {days[0]} to {days[-1]}"] if days else []
    return read + list(dict.fromkeys(one["note"] for one in found if one["note"]))[:MOST_REMARKS]


def _read(one: dict[str, Any]) -> str:
    return "yours" if one["origin"] == "yours" else str(one["as_of"])


def _money(value: Decimal | None) -> str:
    """Four places where a hundredth of a cent counts, else cents; unknown is a word."""
    if value is None:
        return "unknown"
    return f"{value:.4f}" if value < 10 else f"{value:.2f}"
