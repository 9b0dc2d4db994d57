"""Every offer for one job beside each other: which one to take and why, which can't be priced, what is assumed."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal, NamedTuple

from cost.assumptions import assumptions
from cost.bill import CENT
from cost.changes import Change, Changes
from cost.estimate import Estimator, OfferEstimate
from cost.offers import Offer
from cost.prices.markets import SKYPILOT_CLOUDS
from cost.prices.table import Price
from cost.prices.tokens import TokenPrice

Sort = Literal["total", "time", "price"]
SAID = 3
"""Lines that are named as passed over."""
WORST = Decimal("Infinity")
BEST = {"total": "cheapest", "time": "fastest", "price": "lowest price an hour"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An offer, and what stands against taking it beside its price."""

    offer: Offer
    can_run: bool = True
    """False where the backend only plans."""
    first: bool = True
    """Is it the machine that its backend takes first for this GPU and this number of them?"""


class Line(NamedTuple):
    """One offer in the table."""

    estimate: OfferEstimate
    candidate: Candidate
    change: Change | None = None
    chosen: bool = False
    against: str | None = None
    """Why it is not taken though it is priced: too dear, too slow, too little memory."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user sets to an offer; None: nothing."""

    budget: Decimal | None = None
    max_hours: float | None = None


@dataclass(frozen=True, kw_only=True)
class ByTokens:
    """A place that bills tokens, not hours: for comparison, no backend runs there."""

    price: TokenPrice
    low: Decimal
    high: Decimal


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the job costs everywhere. `lines` are in the order of `sort`, those that fit and are priced first."""

    estimator: Estimator
    lines: tuple[Line, ...]
    sort: Sort
    reason: str
    """Why the chosen line was chosen, or why none was."""
    by_tokens: tuple[ByTokens, ...] = ()
    assumptions: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """What is not priced, and why."""

    @property
    def chosen(self) -> Line | None:
        return next((line for line in self.lines if line.chosen), None)


def compare(
    estimator: Estimator,
    candidates: Iterable[Candidate],
    *,
    sort: Sort = "total",
    limits: Limits | None = None,
    not_offered: Iterable[tuple[str, str]] = (),
) -> Preview:
    """Estimate every candidate, choose one, say what could not be priced.

    `not_offered`: (backend, why it has nothing to offer for this job).
    """
    with _nothing_collected():
        return _compared(estimator, candidates, sort, limits or Limits(), not_offered)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Looking for garbage among 50,000 estimates that all stay takes as long as half of making them.

    Afterwards they count as old, as if that had been done.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()
        if collected:
            gc.enable()


def _compared(
    estimator: Estimator, candidates: Iterable[Candidate], sort: Sort, limits: Limits,
    not_offered: Iterable[tuple[str, str]],
) -> Preview:  # fmt: skip
    found = [(estimator(one.offer), one) for one in candidates]
    found.sort(key=lambda pair: _order(pair[0], sort))
    lines = [Line(estimate=e, candidate=c, against=against(e, limits)) for e, c in found]
    known = any(line.estimate.hardware.fit for line in lines)
    takeable = [line for line in lines if _takeable(line) and (line.estimate.hardware.fit or not known)]
    best = min(takeable, key=_rank, default=None)  # of the equal ones the first, and they are in order
    estimates = [line.estimate for line in lines]
    changes = Changes(estimator, estimates)
    return Preview(
        estimator=estimator,
        lines=tuple(_completed(line, line is best, changes) for line in lines),
        sort=sort,
        reason=_reason(best, lines, sort, limits),
        by_tokens=tuple(_by_tokens(estimator)),
        assumptions=tuple(assumptions(estimator.work, estimates)),
        missing=(*(f"{backend}: {why}" for backend, why in not_offered), *_unpriced(lines)),
    )


def _completed(line: Line, chosen: bool, changes: Changes) -> Line:
    if line.estimate.hardware.fit == "no":
        return line._replace(change=changes.smallest(line.estimate))
    return line._replace(chosen=True) if chosen else line


def against(found: OfferEstimate, limits: Limits) -> str | None:
    """Why this offer is not for this job: memory, the budget, the time; None when nothing is known against it."""
    hardware = found.hardware
    if hardware.fit == "no" and hardware.needed and hardware.available_gib is not None:
        return f"{hardware.needed.expected - hardware.available_gib:.1f} GiB short"
    if limits.budget is not None and found.total is not None and found.total.high > limits.budget:
        return f"over ${limits.budget} at its high end"
    if limits.max_hours is not None and hardware.hours and hardware.hours.expected > limits.max_hours:
        return f"longer than {limits.max_hours:g} h"
    return None


def _takeable(line: Line) -> bool:
    return (
        line.candidate.can_run
        and line.candidate.first
        and line.against is None
        and line.estimate.total is not None
    )


_FITS = {"yes": 0, "tight": 2}


def _rank(line: Line) -> int:
    """Surely before probably before unknown, and bfloat16 before float16."""
    hardware = line.estimate.hardware
    return _FITS.get(hardware.fit or "", 4) + bool(hardware.gpu and not hardware.gpu.bf16)


def _order(found: OfferEstimate, sort: Sort) -> tuple[object, ...]:
    """Those that may fit and have a total, those that don't fit, those that nobody can price."""
    group = 2 if found.total is None else 1 if found.hardware.fit == "no" else 0
    return group, _key(found, sort), found.offer.backend, found.offer.instance_type, found.offer.region or ""


def _key(found: OfferEstimate, sort: Sort) -> Decimal:
    if sort == "time":
        hours = found.hardware.hours
        return WORST if hours is None else Decimal(hours.expected)
    if sort == "price":
        price = found.price
        return price.high * found.offer.nodes if isinstance(price, Price) else WORST
    return WORST if found.total is None else found.total.usual


def _reason(best: Line | None, lines: Sequence[Line], sort: Sort, limits: Limits) -> str:
    """Why this line: what it is best in, and what was passed over for it."""
    if best is None:
        return _why_none(lines)
    hardware = best.estimate.hardware
    if hardware.fit is None:
        return "the only one that is priced; whether it fits and how long it takes is not known"
    least = _key(best.estimate, sort)
    before = itertools.takewhile(lambda line: line is not best, lines)  # they are in order
    passed = [line for line in before if _key(line.estimate, sort) < least]
    reason = BEST[sort] + (
        " that fits" if hardware.fit == "yes" else " of those that probably fit; none surely does"
    )
    said = list(dict.fromkeys(filter(None, (_passed_over(line) for line in passed))))
    more = f" and {len(said) - SAID} more" if len(said) > SAID else ""
    return reason + (f"; passed over: {', '.join(said[:SAID])}{more}" if said else "")


def _passed_over(line: Line) -> str | None:
    """What stands against a line that is better in what is sorted by."""
    found = line.estimate
    name = found.offer.backend if found.offer.backend == "local" else found.offer.instance_type
    if found.total is None or (line.against and "short" in line.against):
        return None
    if line.against:
        return f"{name} ({line.against})"
    if found.hardware.fit is None:
        return f"{name} (time unknown)"
    if not line.candidate.can_run:
        return f"{found.offer.backend} (this version only plans there)"
    if found.hardware.gpu and not found.hardware.gpu.bf16:
        return f"{found.hardware.gpu.name} (no bfloat16)"
    if found.hardware.fit == "tight":
        return f"{name} (tight)"
    return None if line.candidate.first else f"{name} ({found.offer.note or 'another of this GPU goes first'})"


def _why_none(lines: Sequence[Line]) -> str:
    if not lines:
        return "no backend offers this"
    if all(line.estimate.total is None for line in lines):
        return "nothing here can be priced"
    if all(line.estimate.hardware.fit == "no" for line in lines if line.estimate.total):
        return "nothing that is priced has enough memory"
    over = next((line.against for line in lines if line.against and "short" not in line.against), None)
    return f"nothing fits: {over}" if over else "no backend that can run it offers what fits"


def cheapest_that_fits(preview: Preview, budget: Decimal | None = None) -> Line | None:
    """The cheapest line that can be run and surely or probably fits, at its high end within `budget`."""
    fitting = [
        line
        for line in preview.lines
        if line.candidate.can_run
        and line.candidate.first
        and line.estimate.total is not None
        and line.estimate.hardware.fit in ("yes", "tight")
        and (budget is None or line.estimate.total.high <= budget)
    ]
    return min(fitting, key=lambda line: _key(line.estimate, "total"), default=None)


def _unpriced(lines: Sequence[Line]) -> Iterator[str]:
    """Each reason once, with the offers that it is about."""
    by_reason: dict[str, list[str]] = {}
    for line in lines:
        found = line.estimate
        if found.why_unpriced:
            name = found.offer.instance_type
            reason = found.why_unpriced.replace(f" of {name}", "")
            by_reason.setdefault(f"{found.offer.backend}: {reason}", []).append(name)
        elif found.hardware.why_not:
            by_reason.setdefault(f"{found.offer.backend}: time unknown: {found.hardware.why_not}", []).append(
                found.offer.instance_type
            )
        for what in found.missing:
            by_reason.setdefault(f"{found.offer.backend}: the price of {what} is unknown", []).append(
                found.offer.instance_type
            )
    for reason, names in by_reason.items():
        yield f"{reason} ({', '.join(dict.fromkeys(names))})"


def _by_tokens(estimator: Estimator) -> Iterator[ByTokens]:
    """Example: 15.4 M tokens at $0.48 to 1.35 a million: $7.39 to 20.79."""
    work = estimator.work
    for provider in dict.fromkeys(one.provider for one in estimator.prices.tokens):
        price = estimator.prices.tokens_price(provider, work.shape.params / 1e9)
        if price is not None:
            millions = Decimal(work.trained_tokens) / 1_000_000
            less, more = Decimal(1 - work.error), Decimal(1 + work.error)
            yield ByTokens(
                price=price,
                low=(price.low * millions * less).quantize(CENT),
                high=(price.high * millions * more).quantize(CENT),
            )


def by_clouds(estimator: Estimator, offer: Offer) -> list[Offer]:
    """SkyPilot's offer once for every cloud whose list has it; as it is where a place is named, or none has it."""
    if offer.backend != "skypilot" or offer.region is not None:
        return [offer]
    here = [replace(offer, region=cloud) for cloud in SKYPILOT_CLOUDS]
    known = [one for one in here if isinstance(estimator.prices.price(one), Price)]
    return known or [offer]
