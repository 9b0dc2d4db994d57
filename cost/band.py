"""A figure that is not known exactly: a band with what it is made of, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Part:
    """One addend: its expected value, and the share by which it may be less or more."""

    value: float
    less: float = 0.0
    more: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Band:
    """low <= expected <= high, in the unit that the function which made it states."""

    low: float
    expected: float
    high: float
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the expected value consists of."""

    @classmethod
    def of(cls, parts: Mapping[str, Part]) -> Band:
        """The sum of `parts`. Their errors are added up, not averaged out: one cause often moves several.

        Example: 2.0 (-10 %, +20 %) and 1.0 (exact) make 2.8, 3.0, 3.4.
        """
        return cls(
            low=sum(p.value * (1 - p.less) for p in parts.values()),
            expected=sum(p.value for p in parts.values()),
            high=sum(p.value * (1 + p.more) for p in parts.values()),
            parts={name: p.value for name, p in parts.items()},
        )

    def scaled(self, factor: float) -> Band:
        """The same band in another unit or quantity; `factor` is not negative."""
        return Band(
            low=self.low * factor, expected=self.expected * factor, high=self.high * factor,
            parts={name: value * factor for name, value in self.parts.items()},
        )  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """No figure, because a figure would be made up."""

    reason: str
