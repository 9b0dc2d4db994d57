"""What goes wrong with a vendor, on purpose: calls refused, unanswered, cut or late; machines taken away."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

FAULTS = ("throttle", "error", "unavailable", "drop", "lose", "cut", "slow")


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the next `times` calls that match, after `skip` that don't."""

    kind: str
    operation: str = "*"
    """`CreateTrainingJob`, `s3:PutObject`, `logs:*`; case matters."""
    times: int = 1
    skip: int = 0
    seconds: float = 0

    def takes(self, service: str, operation: str) -> bool:
        """Is this call one of them? Counts it."""
        wanted = self.operation if ":" in self.operation else f"*:{self.operation}"
        if self.times <= 0 or not fnmatch.fnmatchcase(f"{service}:{operation}", wanted):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(kw_only=True)
class Interruption:
    """The end of one attempt: after some seconds of training, or `count` log lines that match.

    kind: `spot` (the instances are taken away) or `host` (an instance breaks: InternalServerError).
    notice: SIGTERM and the grace period first; without, whatever was not yet synced is lost.
    """

    job: str | None = None
    kind: str = "spot"
    after_s: float | None = None
    after_line: str | None = None
    count: int = 1
    notice: bool = True
    only: str | None = None
    """The host that gets the notice, where not all do."""

    def due(self, seconds: float, lines: list[str]) -> bool:
        if self.after_line is not None:
            pattern = re.compile(self.after_line)
            return sum(bool(pattern.search(line)) for line in lines) >= self.count
        return seconds >= (self.after_s or 0)
