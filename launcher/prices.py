"""The prices this machine knows: the bundled snapshot, refreshed lists in the cache, the user's prices.yaml.

The user's file wins over the lists; of the lists the newest figure counts, and at equal age a vendor's own list
over SkyPilot's catalogue over the snapshot.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cost.prices.files import Row, bundled_rows, latest_day, read_rows, refusal, write_rows
from cost.prices.overlay import FIX, Overlay, parse_overlay
from cost.prices.table import Prices, merged
from cost.prices.tokens import bundled_tokens
from launcher.errors import ConfigError
from launcher.home import cache
from launcher.site import sites_file
from train_entry.failure import write_atomic

if TYPE_CHECKING:
    from cost.refresh import Settings

FILE = "prices.yaml"
TEST_URL = "LAUNCH_PRICES_URL"
"""Stands for every vendor's address; a server on this machine, so that no test and no key goes out."""
ORDER = ("skypilot", "sagemaker", "ec2", "azure", "google")
"""Refreshed lists, the ones that win last."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What refreshing a source came to. With `error`, the file of `kept` (None: there is none) stays in force."""

    source: str
    rows: int = 0
    regions: int = 0
    error: str | None = None
    skipped: bool = False
    kept: date | None = None
    notes: tuple[str, ...] = ()


def user_file() -> Path:
    """The user's own rates and discounts, beside sites.yaml."""
    return sites_file().with_name(FILE)


def refreshed_file(source: str) -> Path:
    """What was refreshed from a source; it can be made again, so it lies in the cache."""
    return cache() / "prices" / f"{source}.csv"


def known_prices() -> Prices:
    """Everything that is known now. Raises ConfigError for a file that is not as it must be."""
    today = latest_day()
    lists = [bundled_rows(), *(_refreshed(source, today) for source in ORDER)]
    return Prices(rows=merged(*lists), tokens=tuple(bundled_tokens()), overlay=_overlay(user_file(), today))


def refresh(
    sources: Sequence[str], regions: Sequence[str], ask_skypilot: Callable[[], Mapping[str, Any]]
) -> Iterator[Outcome]:
    """Read each source and put its file in place, whole; a source that fails leaves its file as it is.

    Without `sources`: the usual ones, those that are not set up skipped.
    """
    from cost.refresh import SOURCES, Settings
    from cost.refresh.sources import GOOGLE_KEY

    settings = Settings(
        today=latest_day(),
        regions=tuple(regions),
        base_url=_test_url(),
        google_key=os.environ.get(GOOGLE_KEY),
        ask_skypilot=ask_skypilot,
    )
    for source in sources or [name for name, one in SOURCES.items() if one.usual]:
        yield _refresh(source, settings, asked_for=bool(sources))


def _refresh(source: str, settings: Settings, asked_for: bool) -> Outcome:
    from cost.refresh import NotSetUp, RefreshError, read_source

    path = refreshed_file(source)
    notes: tuple[str, ...] = ()
    try:
        before = _refreshed(source, settings.today)
    except ConfigError as exc:
        before, notes = [], (f"the file before it could not be used: {exc.message}",)
    kept = max((quote.as_of for row in before for quote in (row.on_demand, row.spot) if quote), default=None)
    try:
        found = read_source(source, settings)
        rows = [*(row for row in before if not found.replaces(row)), *found.rows]
        text = write_rows(rows)
        read_rows(text, str(path), "refreshed", settings.today)  # what could not be read back is not written
        write_atomic(path, text.encode())
    except NotSetUp as exc:
        return Outcome(source=source, error=str(exc), skipped=not asked_for, kept=kept, notes=notes)
    except (RefreshError, ConfigError, OSError) as exc:
        return Outcome(source=source, error=str(exc), kept=kept, notes=notes)
    return Outcome(
        source=source,
        rows=len(found.rows),
        regions=len({row.region for row in found.rows}),
        kept=kept,
        notes=(*notes, *found.notes),
    )


def _refreshed(source: str, today: date) -> list[Row]:
    path = refreshed_file(source)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as exc:
        raise refusal([f"{path}:1: {exc}"]) from exc
    return read_rows(text, str(path), "refreshed", today)


def _overlay(path: Path, today: date) -> Overlay:
    """The user's file; an empty one where there is none. Raises ConfigError with the line of what is wrong."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return Overlay()
    except (OSError, UnicodeDecodeError) as exc:
        raise refusal([f"{path}:1: {exc}"], FIX) from exc
    from launcher.yamlfile import YamlError, parse_yaml

    try:
        document = parse_yaml(text)
    except YamlError as exc:
        raise refusal([f"{path}:{exc.line}: {exc.what}"], FIX) from exc
    if document.findings:
        raise refusal([f"{path}:{found.line}: {found.text}" for found in document.findings], FIX)
    return parse_overlay(document.value, document.lines, str(path), today)


def _test_url() -> str | None:
    """The address that stands for the vendors'. Raises ConfigError for one that is not of this machine."""
    url = os.environ.get(TEST_URL)
    if not url:
        return None
    host = urlsplit(url).hostname or ""
    try:
        here = host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        here = False
    if not here:
        raise ConfigError(f"{TEST_URL}: {url} is not on this machine", f"unset {TEST_URL}; it is for tests")
    return url
