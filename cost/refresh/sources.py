"""The price lists that can be read live, by the name that `launch prices refresh --source` takes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from cost.prices.files import Row
from cost.refresh import aws, azure, google, skypilot
from cost.refresh.fetch import Fetch, NotSetUp, RefreshError, fetcher
from launcher.errors import BackendNotInstalledError, LaunchError


def _nobody() -> Mapping[str, Any]:
    raise BackendNotInstalledError("SkyPilot's environment is not built", "launch setup skypilot --install")


REGION = re.compile(r"[a-z0-9-]{2,40}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a reading needs from outside. `base_url` stands for every vendor's address: a test's server."""

    today: date
    regions: tuple[str, ...] = ()
    base_url: str | None = None
    google_key: str | None = field(default=None, repr=False)
    ask_skypilot: Callable[[], Mapping[str, Any]] = _nobody
    """Answers {"rows": [...], "failed": {cloud: why}}. Raises LaunchError."""
    pause: Callable[[float], None] = time.sleep


@dataclass(frozen=True, kw_only=True)
class Readout:
    """What a source answered; `regions`: those that it was asked for (none: all that it knows).

    `missing`: providers that it could not say anything of this time.
    """

    rows: tuple[Row, ...]
    regions: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def replaces(self, row: Row) -> bool:
        """Whether a row of an earlier reading is out of date now."""
        return (not self.regions or row.region in self.regions) and row.provider not in self.missing


@dataclass(frozen=True)
class Source:
    """A price list: what it prices, how it is read; one that is not `usual` is read when asked for by name."""

    what: str
    read: Callable[[Settings], Readout]
    usual: bool = True


def read_source(name: str, settings: Settings) -> Readout:
    """Read a source now. Raises RefreshError in words when it can't be read or holds no price of use."""
    for region in settings.regions:
        if not REGION.fullmatch(region):
            raise RefreshError(f"{region!r} is no region's name")
    found = SOURCES[name].read(settings)
    if not found.rows:
        raise RefreshError("it answered, but with no price of a machine with GPUs")
    return found


def _sagemaker(settings: Settings) -> Readout:
    return _by_region(settings, aws.read_sagemaker, ("us-east-1", "us-west-2"))


def _ec2(settings: Settings) -> Readout:
    return _by_region(settings, aws.read_ec2, ("us-east-1",))


def _by_region(
    settings: Settings, read: Callable[[Fetch, str, date, str], list[Row]], usual: Sequence[str]
) -> Readout:
    regions = settings.regions or tuple(usual)
    with fetcher(settings.pause) as fetch:
        rows = [row for region in regions for row in read(fetch, region, settings.today, _base(settings, aws.URL))]
    return Readout(rows=tuple(rows), regions=regions)


def _azure(settings: Settings) -> Readout:
    with fetcher(settings.pause) as fetch:
        rows = azure.read_azure(fetch, settings.regions, settings.today, _base(settings, azure.URL))
    return Readout(rows=tuple(rows), regions=settings.regions)


def _google(settings: Settings) -> Readout:
    if not settings.google_key:
        raise NotSetUp(f"it needs an API key: set {GOOGLE_KEY}")
    with fetcher(settings.pause) as fetch:
        rows = google.read_google(fetch, settings.google_key, settings.today, _base(settings, google.URL))
    return Readout(rows=tuple(rows))


def _skypilot(settings: Settings) -> Readout:
    try:
        answer = settings.ask_skypilot()
    except BackendNotInstalledError as exc:
        raise NotSetUp(f"{exc.message}: {exc.hint}") from exc
    except LaunchError as exc:
        raise RefreshError(exc.message) from exc
    failed = answer["failed"]
    notes = tuple(f"{cloud} is missing: {why}" for cloud, why in sorted(failed.items()))
    if not answer["rows"]:
        raise RefreshError("; ".join(notes) or "SkyPilot's catalogue is empty")
    rows = skypilot.parse_catalogue(answer["rows"], settings.today)
    return Readout(rows=tuple(rows), missing=tuple(failed), notes=notes)


def _base(settings: Settings, url: str) -> str:
    return (settings.base_url or url).rstrip("/")


GOOGLE_KEY = "LAUNCH_GOOGLE_API_KEY"
SOURCES: dict[str, Source] = {
    "sagemaker": Source("Amazon SageMaker training, from AWS's price list", _sagemaker),
    "ec2": Source("Amazon EC2, from AWS's price list (hundreds of MB a region)", _ec2, usual=False),
    "azure": Source("Azure's virtual machines, from the Retail Prices API", _azure),
    "google": Source(f"Compute Engine, from the Cloud Billing Catalog ({GOOGLE_KEY})", _google),
    "skypilot": Source("every cloud of SkyPilot's catalogue, through its own environment", _skypilot),
}
