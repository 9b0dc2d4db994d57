"""What a job costs on every backend: its rows counted, its model looked up, the backends' offers gathered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backends import registry
from backends.base import Backend, RunsInSomePlaces, Site
from cost.estimate import Calibrations, Estimator
from cost.gpus import find_gpu
from cost.model_files import find_files
from cost.offers import Offer
from cost.preview import Candidate, Limits, Preview, Sort, by_clouds, compare
from cost.prices.table import Prices
from cost.shapes import ModelShape, known_shape, shape_from_config
from cost.tokens import TokenCount, count
from cost.work import work_of
from launcher.errors import BackendNotInstalledError, CapacityError, ConfigError, UnsupportedError
from launcher.home import cache
from launcher.prices import known_prices
from launcher.site import load_site
from launcher.spec import JobSpec, Resources

CONFIG = "config.json"
WAIT_HOURS = 24
"""How long a flexible start waits where the job names no hours: Vertex AI's own default."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Offers of several backends, and (backend, why) where there is none."""

    candidates: tuple[Candidate, ...]
    not_offered: tuple[tuple[str, str], ...]


def estimator_of(job: JobSpec, folder: Path, home: Path) -> Estimator:
    """What estimates `job`, whose paths are relative to `folder`; finished jobs under `home` calibrate it.

    Raises ConfigError for data that can't be read here and for a model that nobody knows.
    """
    shape = shape_of(job, folder)
    counted = count(job, folder=folder, cache=cache())
    return Estimator(
        work=work_of(job, shape, counted), prices=known_prices(),
        calibrations=_calibrations(home / "record.db", job, counted),
    )  # fmt: skip


def estimator_or_why(job: JobSpec, folder: Path, home: Path) -> Estimator | str:
    """The same, or why there is none: the model or the data are known only where the job runs.

    Raises ConfigError for data that the training would refuse.
    """
    if "://" in job.data.train:
        return f"the tokens of {job.data.train} are counted where the job runs"
    try:
        shape_of(job, folder)
    except ConfigError as exc:
        return exc.message
    return estimator_of(job, folder, home)


def _calibrations(record: Path, job: JobSpec, counted: TokenCount) -> Calibrations:
    """What the record's finished jobs say of this one; nothing is asked of a backend."""
    if not record.exists():
        return lambda gpu, kind, stack: None
    from launcher.ledger import calibrations_of, entries_of, trained
    from launcher.store import Store

    store = Store(record)
    rows = trained(job.model_dump(mode="json"), counted.rows, counted.total)
    return calibrations_of(entries_of(store.find(""), store.events), rows)


def shape_of(job: JobSpec, folder: Path) -> ModelShape:
    """The model's shape: from a local folder, the table of common models, or the hub. Raises ConfigError."""
    path = folder / job.model.id / CONFIG
    if not path.is_file():
        try:
            return known_shape(job.model.id)
        except ConfigError as exc:
            found = find_files(job.model, [CONFIG], folder=folder, cache=cache())
            if CONFIG not in found.files:
                raise ConfigError(f"{exc.message}; {found.why_not}", exc.hint) from exc
            path = found.files[CONFIG]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path} can't be read: {exc}", "it needs the model's whole folder") from exc
    return shape_from_config(config, job.model.id)


def preview(
    job: JobSpec, folder: Path, home: Path, names: Sequence[str] = (), *, sort: Sort = "total",
    limits: Limits | None = None,
) -> Preview:  # fmt: skip
    """The job on every offer of the named backends (default: of all); needs neither credentials nor network."""
    estimator = estimator_of(job, folder, home)
    gathered = gather(job, [registry.create(name, home) for name in names] or _every(home), estimator)
    if job.resources.gpu and not any(c.offer.gpu for c in gathered.candidates):
        find_gpu(job.resources.gpu)  # its did-you-mean says more than every backend's own
    return compare(
        estimator, gathered.candidates, sort=sort, limits=limits or Limits(budget=job.budget),
        not_offered=gathered.not_offered,
    )  # fmt: skip


def gather(job: JobSpec, targets: Iterable[Backend | tuple[str, str]], estimator: Estimator) -> Gathered:
    """What the backends would run the job on; a (name, why) stands for one that is not there."""
    candidates: list[Candidate] = []
    not_offered: list[tuple[str, str]] = []
    for target in targets:
        if isinstance(target, tuple):
            not_offered.append(target)
            continue
        try:
            candidates += candidates_of(target, job, estimator)
        except (CapacityError, UnsupportedError) as exc:
            not_offered.append((target.name, exc.message))
    return Gathered(candidates=tuple(candidates), not_offered=tuple(not_offered))


def candidates_of(target: Backend, job: JobSpec, estimator: Estimator, apart: bool = True) -> list[Candidate]:
    """One backend's offers in the place that the job or its account names; `apart`: SkyPilot's clouds one by one;
    else what a budget has to be enough for.

    Raises CapacityError or UnsupportedError where it has none.
    """
    wanted, can = job.resources, target.capabilities
    if wanted.nodes > 1 and not can.multi_node:
        raise UnsupportedError(f"resources.nodes: {target.name} runs on one machine")
    if wanted.spot and not can.spot and can.regions:
        raise UnsupportedError(f"resources.spot: {target.name} has none")
    offers = list(target.offers(wanted.model_copy(update={"spot": wanted.spot and can.spot})))
    if wanted.spot and apart:
        offers += _beside_spot(target, wanted)
    site = load_site(target.name, target.facts, job)
    dearest = not apart and job.budget is not None
    seen: set[tuple[str | None, str | None]] = set()
    found = []
    for offer in offers:
        placed = replace(offer, region=place_of(target, site, estimator.prices, offer, dearest))
        for one in by_clouds(estimator, placed) if apart else [placed]:
            key = (one.gpu, one.region)
            found.append(Candidate(offer=one, can_run=_runs(target, one.region, site), first=key not in seen))
            seen.add(key)
    return found


def _beside_spot(target: Backend, wanted: Resources) -> list[Offer]:
    """What waits for capacity and is not interrupted then: to compare with spot, for it takes another setting."""
    waiting = {"spot": False, "max_wait_hours": WAIT_HOURS}
    try:
        found = [one for one in target.offers(wanted.model_copy(update=waiting)) if one.flex]
    except (CapacityError, UnsupportedError):
        return []
    how = f"flex-start: --set resources.spot=false --set resources.max_wait_hours={WAIT_HOURS}"
    return [replace(one, note=how) for one in found]


def place_of(target: Backend, site: Site, prices: Prices, offer: Offer, dearest: bool = False) -> str | None:
    """Where an offer is priced: the job's region, the account's region or infra.

    `dearest`: where that leaves SkyPilot a choice, the place that costs most.
    """
    if not target.capabilities.regions:
        return offer.region
    place = offer.region or site.get("region") or site.get("infra")
    return (dearest and prices.dearest_place(replace(offer, region=place))) or place


def _runs(target: Backend, region: str | None, site: Site) -> bool:
    return not isinstance(target, RunsInSomePlaces) or target.obstacle(region, site) is None


def _every(home: Path) -> Iterator[Backend | tuple[str, str]]:
    """Every backend that is known here, or why one can't be loaded."""
    for name in registry.names():
        try:
            yield registry.create(name, home)
        except BackendNotInstalledError as exc:
            yield name, f"{exc.message}: {exc.hint}"
