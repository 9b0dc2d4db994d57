"""What a backend can't do is refused by name, before anything is sent."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from backends.base import Capabilities
from launcher.errors import ConfigError, UnsupportedError
from launcher.spec import JobSpec


def refuse_unsupported(job: JobSpec, backend: str, can: Capabilities) -> None:
    """Raise UnsupportedError naming the field when the job asks for what `backend` can't do."""
    wanted = job.resources
    asks = (
        ("resources.spot", wanted.spot, can.spot, "false"),
        ("resources.nodes", wanted.nodes > 1, can.multi_node, "1"),
        ("resources.region", wanted.region is not None, can.regions, "null"),
        ("resources.max_wait_hours", wanted.max_wait_hours is not None, can.wait_for_capacity, "null"),
        ("resources.resubmits", wanted.resubmits is not None, can.resubmits, "null"),
        ("resources.fallback", bool(wanted.fallback), can.fallback, "[]"),
        ("resources.image", wanted.image is not None, can.image, "null"),
        ("resources.offline", wanted.offline, can.offline, "false"),
        ("secrets", bool(job.secrets), can.secrets, "[]"),
    )
    for field, asked, able, off in asks:
        if asked and not able:
            raise UnsupportedError(
                f"{field}: backend {backend} can't do that", f"choose another backend, or --set {field}={off}"
            )


def known_options(job: JobSpec, backend: str, known: Iterable[str]) -> Mapping[str, Any]:
    """The job's backend_options for `backend`. Raises ConfigError for a name that it does not know."""
    options = job.backend_options.get(backend, {})
    names = list(known)
    for name in options:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise ConfigError(
                f"backend_options.{backend}.{name}: unknown option",
                f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}",
            )
    return options
