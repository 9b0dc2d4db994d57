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


def estimate(offer: Offer, most_hours: float) -> CostEstimate:
    """The estimate of one job on `offer` that is stopped after `most_hours`. Your own machine is free.

    `high` is what the job can cost at most, 4 h at $2 an hour: $8; what it will take is not known here.
    """
    if offer.backend == "local":
        free = Decimal(0)
        return CostEstimate(
            low=free, expected=free, high=free, assumptions=("your own machine: electricity is not counted",)
        )
    if offer.hourly is None:
        return CostEstimate(low=None, expected=None, high=None, missing=("the price of this offer",))
    ceiling = round(offer.hourly * Decimal(most_hours), 2)
    return CostEstimate(
        low=None, expected=None, high=ceiling,
        assumptions=(f"at the hard stop after {most_hours:g} h, ${offer.hourly:.2f} an hour",),
        missing=("how long the job will take", "storage and transfer"),
    )  # fmt: skip
