"""The bill of one job on one kind of hardware: its hours and extras once, then any price laid on them quickly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from cost.band import Band
from cost.extras import extras_of
from cost.phases import Hours
from cost.prices.table import Price
from cost.recipe import Recipe
from cost.work import Work

CENT = Decimal("0.01")
ZERO = Decimal(0)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One line of the bill; `expected` None: it lies between low and high, nobody knows where."""

    what: str
    low: Decimal
    expected: Decimal | None
    high: Decimal


class Money(NamedTuple):
    """US dollars in cents. `expected` is None where the vendor publishes no rate."""

    low: Decimal
    expected: Decimal | None
    high: Decimal

    @property
    def usual(self) -> Decimal:
        """What to sort and warn by: the expected sum, else the most it can be."""
        return self.high if self.expected is None else self.expected


FREE = Money(low=ZERO, expected=ZERO, high=ZERO)


@dataclass(frozen=True)
class _Span:
    """A band as decimals, for money."""

    low: Decimal
    expected: Decimal
    high: Decimal

    @classmethod
    def of(cls, band: Band | Hours) -> _Span:
        return cls(*(Decimal(f"{value:.9f}") for value in (band.low, band.expected, band.high)))


class Bill:
    """What hardware of `provider` is billed for. `missing`: what is billed too, at a price nobody knows here."""

    def __init__(self, work: Work, recipe: Recipe, hours: Hours, backend: str, provider: str) -> None:
        self._whole, self._useful, self._around, self._rework = (
            _Span.of(band) for band in (hours, hours.useful, hours.around, hours.rework)
        )
        self._uninterrupted = self._whole.high - self._rework.high
        found = list(extras_of(work, recipe, hours, backend, provider))
        self._extras = tuple(
            Item(what=one.what, low=_decimal(one.dollars * (1 - one.less)), expected=_decimal(one.dollars),
                 high=_decimal(one.dollars))
            for one in found if one.dollars is not None
        )  # fmt: skip
        self._extra_low = sum((item.low for item in self._extras), ZERO)
        self._extra = sum((item.high for item in self._extras), ZERO)
        self.missing = tuple(one.what for one in found if one.dollars is None)

    def total(self, price: Price, nodes: int) -> Money:
        """Hours x price and the extras. Where no price is published the high end is what it costs on demand."""
        low = price.low * nodes * self._whole.low + self._extra_low
        if price.hourly is None:
            high = price.high * nodes * self._uninterrupted + self._extra
            return Money(low=low.quantize(CENT), expected=None, high=high.quantize(CENT))
        rate = price.hourly * nodes
        return Money(
            low=low.quantize(CENT),
            expected=(rate * self._whole.expected + self._extra).quantize(CENT),
            high=(rate * self._whole.high + self._extra).quantize(CENT),
        )

    def items(self, price: Price, nodes: int) -> Iterator[Item]:
        """The same line by line: useful hours first, those around them, spot rework, a fee, the extras."""
        fees = price.components[1:]
        fee = sum((part.hourly for part in fees), ZERO) * nodes
        low, high = price.low * nodes - fee, price.high * nodes - fee
        usual = None if price.hourly is None else price.hourly * nodes - fee

        def item(what: str, of: _Span) -> Item:
            expected = None if usual is None else usual * of.expected
            return Item(what=what, low=low * of.low, expected=expected, high=high * of.high)

        yield item("training and judging", self._useful)
        yield item("start-up and download", self._around)
        if self._rework.high and usual is not None:
            yield item("spot rework", self._rework)
        if fee:
            whole = self._whole
            yield Item(
                what=fees[0].what, low=fee * whole.low, expected=fee * whole.expected, high=fee * whole.high
            )
        yield from self._extras


def _decimal(dollars: float) -> Decimal:
    return Decimal(f"{dollars:.6f}")
