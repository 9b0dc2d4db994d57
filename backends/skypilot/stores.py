"""What SkyPilot jobs need of their store beside bundles: a look at what lies there, and how old it is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from backends.storage import BundleStore

AT_ONCE = 16
"""Files that are fetched at a time: they are small, and a bucket answers after tens of milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One file of the store, and the seconds since it was written."""

    key: str
    size: int
    age_s: float


class JobStore(BundleStore):
    """A bundle store that tells the age of what it has."""

    @abstractmethod
    def look(self, prefix: str) -> Iterable[Kept]:
        """Everything below `prefix`, a folder with its `/`."""

    def read_all(self, wanted: Sequence[tuple[str, int]]) -> Iterator[bytes]:
        """The files (key, first byte) one after the other, in pieces."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for at in range(0, len(wanted), AT_ONCE):
                yield from pool.map(lambda one: b"".join(self.read_from(*one)), wanted[at : at + AT_ONCE])
