"""The user's own prices: negotiated discounts and rates that win over every list (prices.yaml).

    discounts:                      # per cent off the list, the first that matches
      - backend: sagemaker          # or a provider: aws, gcp, azure, lambda, ...; `*` stands for anything
        instance_type: ml.p5*       # optional, like region
        percent: 12
    rates:                          # what you pay, whatever the list says; the first that matches
      - backend: vertex
        instance_type: a3-highgpu-8g
        hourly: 61.20
        unit: USD/instance-hour     # or USD/gpu-hour
        as_of: 2026-10-01
      - {backend: local, hourly: 0.35, unit: USD/gpu-hour, note: power and depreciation}

`spot: true` makes a rate that of spot capacity, and lets a discount count for spot too.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

from cost.prices.files import price, refusal, source_day

FIX = "correct it, or remove the file: launch prices show says what is known without it"
INSTANCE_HOUR, GPU_HOUR = "usd/instance-hour", "usd/gpu-hour"
ANY = "*"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which offers an entry of the user's file is about: patterns with `*`, and where it stands."""

    where: str
    backend: str
    instance_type: str = ANY
    region: str = ANY
    spot: bool = False
    note: str = ""

    def matches(self, backends: Sequence[str], instance_type: str, region: str | None) -> bool:
        """`backends`: the names that the offer goes by, its backend and its provider."""
        return (
            any(_like(name, self.backend) for name in backends)
            and _like(instance_type, self.instance_type)
            and (self.region == ANY or (region is not None and _like(region, self.region)))
        )


@dataclass(frozen=True, kw_only=True)
class Rate(Rule):
    """What the user pays: US dollars an hour, for the machine or for each of its GPUs."""

    hourly: Decimal
    per_gpu: bool
    as_of: date | None = None


@dataclass(frozen=True, kw_only=True)
class Discount(Rule):
    """Per cent off the list price; off spot prices too where `spot` is set."""

    percent: Decimal

    @property
    def factor(self) -> Decimal:
        return 1 - self.percent / 100


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Everything in the user's file; `name` is its path, empty where there is none."""

    name: str = ""
    rates: tuple[Rate, ...] = ()
    discounts: tuple[Discount, ...] = ()

    def rate(self, backends: Sequence[str], instance_type: str, region: str | None, spot: bool) -> Rate | None:
        """The user's own rate of an offer."""
        for rate in self.rates:
            if rate.spot == spot and rate.matches(backends, instance_type, region):
                return rate
        return None

    def discount(
        self, backends: Sequence[str], instance_type: str, region: str | None, spot: bool
    ) -> Discount | None:
        """The user's discount on an offer's list price."""
        for discount in self.discounts:
            if (discount.spot or not spot) and discount.matches(backends, instance_type, region):
                return discount
        return None


def parse_overlay(value: Any, lines: Mapping[Any, int], name: str, today: date) -> Overlay:
    """The user's file as plain data, scalars as text. Raises ConfigError with the line of each mistake.

    `lines`: path of keys and indices -> its line in the file `name`.
    """
    problems: list[tuple[int, str]] = []
    rates: list[Rate] = []
    discounts: list[Discount] = []
    for section, where, entry in _entries(value, lines, problems):
        try:
            if section == "rates":
                rates.append(_rate(entry, f"{name}:{lines[where]}", today))
            else:
                discounts.append(_discount(entry, f"{name}:{lines[where]}"))
        except _Wrong as exc:
            problems.append((lines.get((*where, exc.key), lines[where]), f"{_path(where)}{exc}"))
    if problems:
        raise refusal([f"{name}:{line}: {what}" for line, what in sorted(problems)], FIX)
    return Overlay(name=name, rates=tuple(rates), discounts=tuple(discounts))


class _Wrong(ValueError):
    """What is wrong with one entry; `key` where in it."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f".{key}: {what}" if key else f": {what}")
        self.key = key


_COMMON = ("backend", "instance_type", "region", "spot", "note")
_KEYS = {"rates": (*_COMMON, "hourly", "unit", "as_of"), "discounts": (*_COMMON, "percent")}


def _entries(
    value: Any, lines: Mapping[Any, int], problems: list[tuple[int, str]]
) -> Iterator[tuple[str, tuple[str, int], Mapping[str, Any]]]:
    """(section, path, entry) of everything that has the form of an entry."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        problems.append((1, "expected a mapping with rates and discounts"))
        return
    for section, entries in value.items():
        line = lines.get((section,), 1)
        if section not in _KEYS:
            problems.append((line, f"{section}: unknown{_meant(section, tuple(_KEYS))}"))
            continue
        if entries is None:  # every entry is commented out
            continue
        if not isinstance(entries, list):
            problems.append((line, f"{section}: expected a list, each entry after a dash"))
            continue
        for index, entry in enumerate(entries):
            where = (section, index)
            if isinstance(entry, Mapping):
                yield section, where, entry
            else:
                problems.append((lines.get(where, line), f"{_path(where)}: expected a mapping"))


def _rate(entry: Mapping[str, Any], where: str, today: date) -> Rate:
    common = _common(entry, "rates")
    hourly = _checked("hourly", _text(entry, "hourly"), lambda text: price(text, "hourly", free=True))
    as_of = _checked("as_of", _text(entry, "as_of", ""), lambda text: source_day(text, today))
    return Rate(where=where, **common, hourly=hourly, per_gpu=_per_gpu(entry), as_of=as_of)


def _discount(entry: Mapping[str, Any], where: str) -> Discount:
    common = _common(entry, "discounts")
    text = _text(entry, "percent")
    try:
        percent = Decimal(text.removesuffix("%").strip())
        possible = 0 <= percent <= 100
    except InvalidOperation:  # also what comparing NaN raises
        possible = False
    if not possible:
        raise _Wrong("percent", f"{text!r} is not a number from 0 to 100")
    return Discount(where=where, **common, percent=percent)


def _common(entry: Mapping[str, Any], section: str) -> dict[str, Any]:
    for key in entry:
        if key not in _KEYS[section]:
            raise _Wrong(str(key), f"unknown{_meant(str(key), _KEYS[section])}")
    spot = _text(entry, "spot", "false")
    if spot not in ("true", "false"):
        raise _Wrong("spot", f"{spot!r} is not true or false")
    return {
        "backend": _text(entry, "backend"),
        "instance_type": _text(entry, "instance_type", ANY),
        "region": _text(entry, "region", ANY),
        "spot": spot == "true",
        "note": _text(entry, "note", ""),
    }


def _per_gpu(entry: Mapping[str, Any]) -> bool:
    """True for a price of each GPU. Currency and unit are never guessed."""
    unit = _text(entry, "unit")
    if unit.casefold() not in (INSTANCE_HOUR, GPU_HOUR):
        raise _Wrong("unit", f"{unit!r} is not USD/instance-hour or USD/gpu-hour")
    return unit.casefold() == GPU_HOUR


def _text(entry: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = entry.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        example = {"unit": " (USD/instance-hour or USD/gpu-hour)"}.get(key, "")
        raise _Wrong(key, f"is missing{example}")
    if not isinstance(value, str):
        raise _Wrong(key, "expected one value")
    return value


def _checked(key: str, text: str, read: Any) -> Any:
    """`read(text)`, its ValueError naming the key; None for an empty text."""
    if not text:
        return None
    try:
        return read(text)
    except ValueError as exc:
        raise _Wrong(key, str(exc).removeprefix(f"{key}: ")) from None


def _like(text: str, pattern: str) -> bool:
    return pattern == ANY or fnmatch.fnmatchcase(text.casefold(), pattern.casefold())


def _path(where: tuple[str, int]) -> str:
    return f"{where[0]}[{where[1]}]"


def _meant(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}"
