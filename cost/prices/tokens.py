"""Fine-tuning that is billed by the token, not by the hour."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path

from cost.prices.files import price, source_day

BUNDLED = Path(__file__).with_name("tokens.csv")


@dataclass(frozen=True, kw_only=True)
class TokenPrice:
    """US dollars for a million training tokens, of models with so many billions of parameters.

    The band ends before `to_parameters_b`. `low` is the cheapest method that is published (LoRA), `high` the
    dearest.
    """

    provider: str
    from_parameters_b: float
    to_parameters_b: float
    low: Decimal
    high: Decimal
    as_of: date
    url: str
    note: str = ""


def bundled_tokens() -> list[TokenPrice]:
    """The snapshot that comes with the package."""
    return [
        TokenPrice(
            provider=line["provider"],
            from_parameters_b=float(line["from_parameters_b"]),
            to_parameters_b=float(line["to_parameters_b"]),
            low=price(line["low_usd_per_million_tokens"], "low_usd_per_million_tokens"),
            high=price(line["high_usd_per_million_tokens"], "high_usd_per_million_tokens"),
            as_of=source_day(line["as_of"], None),
            url=line["url"],
            note=line["note"],
        )
        for line in csv.DictReader(io.StringIO(BUNDLED.read_text(encoding="utf-8")))
    ]


def token_price(found: Sequence[TokenPrice], provider: str, parameters_b: float) -> TokenPrice | None:
    """The price of the band that holds a model of `parameters_b` billions; None where no band does."""
    for one in found:
        if one.provider == provider and one.from_parameters_b <= parameters_b < one.to_parameters_b:
            return one
    return None
