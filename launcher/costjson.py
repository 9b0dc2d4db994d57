"""An estimate as JSON, under names that stay: what `launch cost --json` and `launch plan --json` print."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from cost.band import Band
from cost.bill import Item, Money
from cost.phases import Hours
from cost.preview import ByTokens, Line, Preview
from cost.prices.table import Price


def as_json(preview: Preview) -> dict[str, Any]:
    """Every offer in the table's order. Money is US dollars, unknown is null, never 0."""
    work, chosen = preview.estimator.work, preview.chosen
    return {
        "job": work.job.name,
        "model": work.job.model.id,
        "tokens": {
            "an_epoch": work.tokens,
            "epochs": work.epochs,
            "trained": round(work.trained_tokens),
            "rows": work.count,
            "held_out_rows": work.held_out_count,
            "error": work.error,
        },
        "reason": preview.reason,
        "total": _money(chosen.estimate.total) if chosen else None,
        "offers": [*(_line(line) for line in preview.lines), *(_by_tokens(one) for one in preview.by_tokens)],
        "assumptions": list(preview.assumptions),
        "missing": list(preview.missing),
    }


def _line(line: Line) -> dict[str, Any]:
    found = line.estimate
    offer, price, hardware = found.offer, found.price, found.hardware
    priced = price if isinstance(price, Price) else None
    return {
        "backend": offer.backend,
        "instance_type": offer.instance_type,
        "region": offer.region or (priced.region if priced else None),
        "gpu": offer.gpu,
        "gpus": offer.gpus,
        "nodes": offer.nodes,
        "spot": offer.spot,
        "flex_start": offer.flex,
        "hourly": _number(found.hourly),
        "hourly_low": _number(priced.low * offer.nodes) if priced else None,
        "hourly_high": _number(priced.high * offer.nodes) if priced else None,
        "fits": None if hardware.fit is None else hardware.fit != "no",
        "fit": hardware.fit,
        "needed_gib": _gib(hardware.needed),
        "needed_high_gib": round(hardware.needed.high, 2) if hardware.needed else None,
        "available_gib": hardware.available_gib,
        "hours": hours_json(hardware.hours),
        "packing": hardware.hours.way if hardware.hours else None,
        "phases": _phases(hardware.hours),
        "total": _money(found.total),
        "at_least": bool(found.missing),
        "items": [_item(item) for item in found.items],
        "missing": list(found.missing),
        "why_unpriced": found.why_unpriced,
        "price_as_of": priced.as_of.isoformat() if priced and priced.as_of else None,
        "price_url": priced.url if priced else None,
        "chosen": line.chosen,
        "can_run": line.candidate.can_run,
        "against": line.against,
        "change": _change(line),
    }


def _change(line: Line) -> dict[str, Any] | None:
    change = line.change
    if change is None:
        return None
    return {"what": change.what, "set": list(change.settings), "difference": _number(change.difference)}


def _by_tokens(one: ByTokens) -> dict[str, Any]:
    """A place that bills tokens, under the same names."""
    unknown = ("region", "gpu", "hourly", "hourly_low", "hourly_high", "fits", "fit", "needed_gib",
               "needed_high_gib", "available_gib", "hours", "packing", "why_unpriced", "against",
               "change")  # fmt: skip
    return {
        "backend": one.price.provider,
        "instance_type": "by the token",
        **dict.fromkeys(unknown),
        "gpus": 0,
        "nodes": 0,
        "spot": False,
        "flex_start": False,
        "phases": {},
        "total": {"low": float(one.low), "expected": None, "high": float(one.high)},
        "at_least": False,
        "items": [],
        "missing": [],
        "price_as_of": one.price.as_of.isoformat(),
        "price_url": one.price.url,
        "chosen": False,
        "can_run": False,
    }


def hours_json(hours: Hours | None) -> dict[str, float] | None:
    """Billed hours of each machine."""
    if hours is None:
        return None
    return {name: round(getattr(hours, name), 4) for name in ("low", "expected", "high")}


def _phases(hours: Hours | None) -> dict[str, float]:
    return {name: round(value, 4) for name, value in hours.phases.items()} if hours else {}


def _item(item: Item) -> dict[str, Any]:
    figures = {name: _number(getattr(item, name), 4) for name in ("low", "expected", "high")}
    return {"what": item.what, **figures}


def _money(total: Money | None) -> dict[str, float | None] | None:
    if total is None:
        return None
    return {"low": _number(total.low), "expected": _number(total.expected), "high": _number(total.high)}


def _number(value: Decimal | None, places: int = 6) -> float | None:
    return None if value is None else float(round(value, places))


def _gib(band: Band | None) -> float | None:
    return None if band is None else round(band.expected, 2)
