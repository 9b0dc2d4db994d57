"""The price file: CSV, one machine of one place a line, the unit in the column's name, read strictly.

The bundled snapshot (machines.csv) and what `launch prices refresh` writes have this one form. A price is US
dollars an hour for the whole machine, without tax. Region `*`: the same everywhere.
"""

from __future__ import annotations

import csv
import difflib
import functools
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

from launcher.errors import ConfigError

COLUMNS = (
    "provider", "instance_type", "region", "gpu", "gpus", "gpu_memory_gib", "vcpus", "memory_gib",
    "on_demand_usd_per_hour", "spot_usd_per_hour", "as_of", "url", "note",
)  # fmt: skip
BUNDLED = Path(__file__).with_name("machines.csv")
EVERYWHERE = "*"
MOST_USD_PER_HOUR = Decimal(10_000)
"""Above this a number is a mistake: the dearest machine of 2026 is listed at some 150 dollars an hour."""
SHOWN_PROBLEMS = 20

Origin = Literal["bundled", "refreshed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """One published price, in US dollars an hour for the machine: when and where it was read."""

    hourly: Decimal
    as_of: date
    url: str
    origin: Origin
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A machine in one region, and what it costs there; a price that is not known is None."""

    provider: str
    instance_type: str
    region: str
    gpu: str
    gpus: int
    gpu_memory_gib: float | None = None
    vcpus: int | None = None
    memory_gib: float | None = None
    on_demand: Quote | None = None
    spot: Quote | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What is listed once: provider, instance type, region."""
        return self.provider, self.instance_type.casefold(), self.region


def latest_day() -> date:
    """The day that it is here or in UTC, whichever is later: nobody's today is a future date."""
    return max(datetime.now(UTC).date(), datetime.now().astimezone().date())


def bundled_rows() -> list[Row]:
    """The snapshot that comes with the package."""
    return read_rows(BUNDLED.read_text(encoding="utf-8"), str(BUNDLED), "bundled", today=None)


def read_rows(text: str, name: str, origin: Origin, today: date | None) -> list[Row]:
    """The rows of a price file. Raises ConfigError with `name` and the line of everything that is wrong.

    `today`: dates after it are refused; None: not looked at.
    """
    reader = csv.reader(io.StringIO(text))
    try:
        header = next(reader, [])
        problems = [f"{name}:1: {what}" for what in _header_problems(header)]
        rows = [] if problems else list(_rows(reader, header, name, origin, today, problems))
    except csv.Error as exc:
        rows, problems = [], [f"{name}:{reader.line_num}: not CSV: {exc}"]
    if problems:
        raise refusal(problems)
    return rows


def refusal(problems: Sequence[str], fix: str | None = None) -> ConfigError:
    """A price file that can't be used: never passed over in silence, never half used."""
    more = [f"and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
    return ConfigError(
        f"the price file can't be used: {problems[0]}",
        fix or "correct it, or remove it: launch prices refresh makes its own anew",
        problems=[*problems[1:SHOWN_PROBLEMS], *more],
    )


def write_rows(rows: Iterable[Row]) -> str:
    """The price file of `rows`, which have one quote's date, address and note for both prices."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in sorted(rows, key=lambda row: row.key):
        quote = row.on_demand or row.spot
        assert quote is not None, row
        writer.writerow(
            [
                row.provider, row.instance_type, row.region, row.gpu, row.gpus, _cell(row.gpu_memory_gib),
                _cell(row.vcpus), _cell(row.memory_gib), _dollars(row.on_demand), _dollars(row.spot),
                quote.as_of.isoformat(), quote.url, quote.note,
            ]
        )  # fmt: skip
    return out.getvalue()


def _dollars(quote: Quote | None) -> str:
    return f"{quote.hourly:f}" if quote else ""


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _header_problems(header: Sequence[str]) -> Iterator[str]:
    for column in header:
        if column not in COLUMNS:
            close = difflib.get_close_matches(column, COLUMNS, n=1, cutoff=0.5)
            yield f"unknown column {column!r}" + (f"; did you mean {close[0]}?" if close else "")
    for column in COLUMNS:
        if column not in header:
            yield f"column {column} is missing" + ("; the unit is part of its name" if "usd" in column else "")
        elif header.count(column) > 1:
            yield f"column {column} stands twice"


def _rows(
    reader: Iterator[list[str]], header: Sequence[str], name: str, origin: Origin, today: date | None,
    problems: list[str],
) -> Iterator[Row]:  # fmt: skip
    order = [header.index(column) for column in COLUMNS]
    in_order = order == list(range(len(COLUMNS)))
    seen: dict[tuple[str, str, str], int] = {}
    line = 1
    for cells in reader:
        line = getattr(reader, "line_num", line + 1)
        if not any(cells):
            continue
        if len(cells) != len(COLUMNS):
            problems.append(f"{name}:{line}: {len(cells)} values, and there are {len(COLUMNS)} columns")
            continue
        try:
            row = _row(cells if in_order else [cells[i] for i in order], origin, today)
        except ValueError as exc:
            problems.append(f"{name}:{line}: {exc}")
            continue
        if (first := seen.setdefault(row.key, line)) != line:
            problems.append(f"{name}:{line}: {row.instance_type} in {row.region} stands on line {first} already")
        yield row


def _row(cells: Sequence[str], origin: Origin, today: date | None) -> Row:
    """One line in the order of COLUMNS. Raises ValueError saying what is wrong."""
    provider, kind, region, gpu, gpus, gpu_memory, vcpus, memory, on_demand, spot, as_of, url, note = cells
    for what, value in (("provider", provider), ("instance_type", kind), ("region", region), ("gpu", gpu)):
        if not value or value != value.strip():
            raise ValueError(f"{what}: {value!r} is empty or has spaces around it")
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"url: {url!r} is no address of a source")
    day = source_day(as_of, today)
    if not on_demand and not spot:
        raise ValueError("neither on_demand_usd_per_hour nor spot_usd_per_hour has a price")
    return Row(
        provider=provider,
        instance_type=kind,
        region=region,
        gpu=gpu,
        gpus=_count(gpus, "gpus"),
        gpu_memory_gib=_size(gpu_memory, "gpu_memory_gib"),
        vcpus=_count(vcpus, "vcpus") if vcpus else None,
        memory_gib=_size(memory, "memory_gib"),
        on_demand=_quote(on_demand, "on_demand_usd_per_hour", day, url, origin, note),
        spot=_quote(spot, "spot_usd_per_hour", day, url, origin, note),
    )


def _quote(text: str, what: str, day: date, url: str, origin: Origin, note: str) -> Quote | None:
    if not text:
        return None
    return Quote(hourly=price(text, what), as_of=day, url=url, origin=origin, note=note)


@functools.lru_cache(maxsize=65536)  # a file repeats most of its figures
def price(text: str, what: str, *, free: bool = False) -> Decimal:
    """US dollars: above zero (or zero where `free` may be), finite, possible. Raises ValueError."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{what}: {text!r} is not a number of US dollars") from None
    if not value.is_finite() or "_" in text:
        raise ValueError(f"{what}: {text!r} is not a number of US dollars")
    if value < 0 or (value == 0 and not free):
        raise ValueError(f"{what}: {text} is {'negative' if value < 0 else 'zero'}; a price is above 0")
    if value > MOST_USD_PER_HOUR:
        raise ValueError(f"{what}: {text} dollars an hour is above {MOST_USD_PER_HOUR}")
    return value


@functools.lru_cache(maxsize=1024)
def source_day(text: str, today: date | None) -> date:
    """An ISO date that is not after `today`. Raises ValueError."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"as_of: {text!r} is not a date like 2026-11-25") from None
    if today is not None and day > today:
        raise ValueError(f"as_of: {text} is in the future; today is {today}")
    return day


@functools.lru_cache(maxsize=4096)
def _count(text: str, what: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{what}: {text!r} is not a whole number above 0")
    return int(text)


@functools.lru_cache(maxsize=4096)
def _size(text: str, what: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise ValueError(f"{what}: {text!r} is not a size in GiB")
    return value
