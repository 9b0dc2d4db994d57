"""Finding a GPU by whatever name a user has for it, in a backend's table of machines."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from launcher.errors import CapacityError
from launcher.spec import Resources


class HasGpu(Protocol):
    """A row of a backend's table."""

    @property
    def gpu(self) -> str:
        """Our name of the GPU."""

    @property
    def names(self) -> Iterable[str]:
        """What else users, or the vendor, call it."""


Row = TypeVar("Row", bound=HasGpu)


def of_model(backend: str, gpu: str, table: Sequence[Row]) -> list[Row]:
    """The rows with this GPU, in the table's order. Raises CapacityError, with the closest name, without one."""
    if found := [row for row in table if _plain(gpu) in {_plain(name) for name in (row.gpu, *row.names)}]:
        return found
    known = list(dict.fromkeys(row.gpu for row in table))
    close = difflib.get_close_matches(gpu.upper(), known, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    raise CapacityError(
        f"resources.gpu: backend {backend} has no {gpu}", f"{guess}there are: {', '.join(known)}; or leave it out"
    )


def no_such_count(counts: Iterable[int], wanted: Resources) -> CapacityError:
    """No machine has exactly so many GPUs; the next number that one has."""
    there = sorted(set(counts))
    above = next((count for count in there if count > wanted.gpus), there[-1])
    return CapacityError(
        f"resources.gpus: no machine has {wanted.gpus} {wanted.gpu or 'GPUs'}; there are machines with "
        f"{', '.join(map(str, there))}",
        f"--set resources.gpus={above}, and resources.nodes for more machines",
    )


def _plain(name: str) -> str:
    """`NVIDIA_TESLA_A100`, `A100`, `a100-40gb` -> `a100`, `a100`, `a10040gb`."""
    return re.sub(r"nvidia|tesla|[^a-z0-9]", "", name.casefold())
