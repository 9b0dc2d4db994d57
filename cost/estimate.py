"""What a job is expected to cost: a band, what it assumes and what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from cost.offers import Offer


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """US dollars, low to high; None is unknown, never zero."""

    low: Decimal | None
    expected: Decimal | None
    high: Decimal | None
    assumptions: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def estimate(offer: Offer) -> CostEstimate:
    """The estimate of one job on `offer`. Your own machine is free; other prices are not known here."""
    if offer.backend == "local":
        free = Decimal(0)
        return CostEstimate(
            low=free, expected=free, high=free, assumptions=("your own machine: electricity is not counted",)
        )
    return CostEstimate(low=None, expected=None, high=None, missing=("the price of this offer",))
