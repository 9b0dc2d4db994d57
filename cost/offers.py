"""A priced choice of hardware, and where its price comes from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal


@dataclass(frozen=True, kw_only=True)
class PriceSource:
    """Where and when a price was read."""

    as_of: date
    url: str


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Hardware that a backend would run the job on. `hourly` is US dollars for all nodes together."""

    backend: str
    instance_type: str
    region: str | None = None
    gpu: str | None = None
    gpus: int = 0
    nodes: int = 1
    gpu_memory_gib: float | None = None
    spot: bool = False
    flex: bool = False
    """Waits for capacity and is not interrupted then, at a price of its own (Vertex AI's FLEX_START)."""
    hourly: Decimal | None = None
    price_source: PriceSource | None = None
    note: str | None = None
