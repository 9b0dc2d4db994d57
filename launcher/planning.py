"""From a job to a plan: hardware chosen, request rendered and checked, nothing sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from backends.base import Backend, Bundle, Plan, Progress, placeholders
from backends.container import GRACE_HOURS, hard_stop_s
from cost.estimate import CostEstimate, Estimator, bounded, estimate
from cost.ledger import training_of
from cost.offers import Offer, PriceSource
from cost.preview import Limits, Line, Preview, cheapest_that_fits, compare
from cost.prices.table import Price
from launcher.costing import candidates_of, place_of
from launcher.data.check import DataReport
from launcher.errors import (
    BackendNotInstalledError,
    ConfigError,
    CredentialsError,
    LaunchError,
    OverBudgetError,
    QuotaError,
    UnreachableError,
)
from launcher.prices import known_prices
from launcher.site import how_to_set, load_site
from launcher.spec import JobSpec
from launcher.store import JobRecord
from train_entry.config import changes, misfits, train_part

NOT_ESTIMATED = "how much of it is left"
"""A job that goes on from its checkpoints: its estimate is that of the first."""
DRY_RUN_STEPS = 5
LEAST_HOURS = 0.25
"""Less than this is gone before the first step: an instance starts, an image and a model come down."""
PROBLEM_ERRORS: dict[str, type[LaunchError]] = {
    "config": ConfigError, "credentials": CredentialsError, "quota": QuotaError, "unreachable": UnreachableError,
}  # fmt: skip
"""Problem.kind -> what a fatal one is raised as."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A plan, and what the data check saw (None: the data is checked where it is)."""

    plan: Plan
    data: DataReport | None
    resumes: JobRecord | None = None
    """The job from whose checkpoints this one goes on, and what has changed since."""
    changed: tuple[str, ...] = ()
    resubmits: int = 0
    """The how-manieth time anew, for a job that lost its spot capacity."""
    choice: Choice | None = None
    unchecked: str | None = None
    """How to install the vendor's model, where the request could not be checked against it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The hardware a job gets on one backend, and the job with its budget as a time limit."""

    job: JobSpec
    offer: Offer
    may_get: tuple[Offer, ...]
    """The offer, and what of resources.fallback the vendor may give instead."""
    preview: Preview | None = None
    """The backend's offers beside each other; None where the job's time is not known."""
    line: Line | None = None
    """The offer in the preview."""
    why_unknown: str | None = None

    @property
    def dearest(self) -> Offer:
        return _dearest(self.may_get)


def choose(
    target: Backend, job: JobSpec, estimator: Estimator | str = NOT_ESTIMATED,
    everywhere: Callable[[], Preview] | None = None, machine: str | None = None,
) -> Choice:  # fmt: skip
    """The backend's best offer with what it costs: the cheapest that fits, else the backend's own first.

    `estimator`: or why there is none; then `machine` is taken where it is offered. `everywhere` is asked for the
    cheapest offer when the budget is not enough. Raises CapacityError or UnsupportedError without an offer,
    OverBudgetError when the budget buys too little.
    """
    if isinstance(estimator, str):
        offers = list(target.offers(job.resources))
        offer = _priced(target, job, next((o for o in offers if o.instance_type == machine), offers[0]))
        may_get = _may_get(target, job, offer)
        limited = _within_budget(job, _dearest(may_get))
        return Choice(job=limited, offer=offer, may_get=may_get, why_unknown=estimator)
    candidates = candidates_of(target, job, estimator, apart=False)
    own = [replace(one, can_run=True) for one in candidates]  # a plan is made for a backend that only plans, too
    preview = compare(estimator, own, limits=Limits())
    line = preview.chosen or next(line for line in preview.lines if line.candidate is own[0])
    total = line.estimate.total
    if job.budget is not None and total is not None and total.high > job.budget:
        preview = compare(estimator, own, limits=Limits(budget=job.budget))
        if preview.chosen is None:
            raise _over_budget(job.budget, line, everywhere)
        line = preview.chosen
    offer = replace(line.estimate.offer, region=job.resources.region)
    offer = _priced(target, job, offer)
    may_get = _may_get(target, job, offer)
    limited = _within_budget(job, _dearest(may_get))
    return Choice(job=limited, offer=offer, may_get=may_get, preview=preview, line=line)


def _over_budget(budget: Decimal, line: Line, everywhere: Callable[[], Preview] | None) -> OverBudgetError:
    """Nothing of this backend's stays within the budget: what it would take, and where it is cheapest."""
    total, offer = line.estimate.total, line.estimate.offer
    assert total is not None
    place = offer.region if offer.backend == "skypilot" else None
    there = f" in {place}, the dearest place it may be in," if place else ""
    takes = f"{offer.instance_type}{there} takes ${total.low} to {total.high}"
    message = f"budget: ${budget} is not enough on {offer.backend}: {takes}"
    everything = everywhere() if everywhere else None
    best = everything and (cheapest_that_fits(everything, budget) or cheapest_that_fits(everything))
    if not best:
        return OverBudgetError(message, "launch cost shows what it takes elsewhere")
    found = best.estimate
    assert found.total is not None
    within = "the cheapest that fits" if found.total.high <= budget else "no offer is within it, the cheapest"
    where = f"launch run --backend {found.offer.backend}"
    if found.offer.gpu and found.offer.backend != "local":
        where += f" --set resources.gpu={found.offer.gpu}"
    if found.offer.region and found.offer.backend == "skypilot":
        where += f" --set resources.region={found.offer.region}"
    return OverBudgetError(
        f"{message}; {within} is {found.offer.instance_type} on {found.offer.backend}, ${found.total.low} to "
        f"{found.total.high}",
        f"{where}, or a larger budget" if found.total.high <= budget else f"raise the budget, then {where}",
    )


def _priced(target: Backend, job: JobSpec, offer: Offer) -> Offer:
    """The offer with its price an hour, at most, for all nodes."""
    site = load_site(target.name, target.facts, job)
    prices = known_prices()
    place = place_of(target, site, prices, offer, dearest=job.budget is not None)
    found = prices.price(replace(offer, region=place))
    if not isinstance(found, Price) or not found.high:  # nobody knows, or it is free
        return offer
    rate = found.hourly if found.hourly is not None else found.high
    source = PriceSource(as_of=found.as_of, url=found.url) if found.as_of and found.url else None
    return replace(offer, hourly=rate * offer.nodes, price_source=source)


def _may_get(target: Backend, job: JobSpec, offer: Offer) -> tuple[Offer, ...]:
    """The offer, and the others of resources.fallback with their prices: the vendor takes any of them."""
    wanted = job.resources
    if not wanted.fallback or not target.capabilities.fallback:
        return (offer,)
    own = len(list(target.offers(wanted.model_copy(update={"fallback": ()}))))
    # Backends that offer the others put them behind their own; the rest is asked for by the machines' names.
    others = list(target.offers(wanted))[own:] or [
        replace(offer, instance_type=name, gpu=None, gpus=0, hourly=None, price_source=None)
        for name in wanted.fallback
    ]
    return (offer, *(_priced(target, job, replace(one, region=offer.region)) for one in others))


def _dearest(offers: Sequence[Offer]) -> Offer:
    """What costs most, or has no price."""
    return max(offers, key=lambda one: Decimal("Infinity") if one.hourly is None else one.hourly)


def _within_budget(job: JobSpec, offer: Offer) -> JobSpec:
    """The budget becomes the job's time limit, so that the backend's own hard stop keeps it."""
    if job.budget is None or (offer.backend == "local" and not offer.hourly):
        return job
    if offer.hourly is None:
        raise OverBudgetError(
            f"budget: ${job.budget} can't be kept: {offer.backend}'s price of {offer.instance_type} is not known",
            "launch prices refresh, or your own rate in prices.yaml (docs/prices.md), or take budget"
            + (" or resources.fallback out" if job.resources.fallback else " out"),
        )
    hours = float(job.budget / offer.hourly) - GRACE_HOURS
    if hours < LEAST_HOURS:
        minutes = (hours + GRACE_HOURS) * 60
        raise OverBudgetError(
            f"budget: ${job.budget} buys {minutes:.0f} min of {offer.instance_type} (${offer.hourly:.2f} an hour)",
            "raise the budget, or name another resources.gpu (launch prices show)",
        )
    limit = min(hours, job.resources.max_hours or hours)
    return job.model_copy(update={"resources": job.resources.model_copy(update={"max_hours": limit})})


def render(target: Backend, choice: Choice, bundle: Bundle, token: str, lineage: str) -> Plan:
    """The job's plan on the chosen offer."""
    job, offer = choice.job, choice.offer
    site = load_site(target.name, target.facts, job)
    return Plan(
        job=job, offer=offer, bundle=bundle, site=site, token=token, lineage=lineage,
        request=target.render(job, offer, bundle, site, token, lineage),
        estimate=_estimate(choice),
    )  # fmt: skip


def _estimate(choice: Choice) -> CostEstimate:
    """The band as far as it is known, below the hard stop; with what the ledger will compare."""
    dearest = choice.dearest
    ceiling = estimate(dearest, hard_stop_s(choice.job) / 3600)
    rates = {one.instance_type: one.hourly for one in choice.may_get if one.hourly is not None}
    ceiling = replace(ceiling, rates=rates if len(choice.may_get) > 1 else {})
    if dearest.hourly is None and dearest is not choice.offer:
        ceiling = replace(ceiling, missing=(f"the price of {dearest.instance_type}",))
    if choice.preview is None or choice.line is None:
        why = (choice.why_unknown,) if choice.why_unknown and choice.offer.backend != "local" else ()
        return replace(ceiling, missing=(*ceiling.missing, *why))
    work, found = choice.preview.estimator.work, choice.line.estimate
    training = training_of(found.hardware, work.job.tuning.kind)
    return replace(bounded(found, ceiling, work), training=training, rates=ceiling.rates)


def check(target: Backend, plan: Plan) -> str | None:
    """Validate the request; how to install what that needs, where it is not there."""
    try:
        target.validate(plan.request)
    except BackendNotInstalledError as exc:
        return exc.hint or exc.message
    return None


def refuse_problems(target: Backend, plan: Plan, progress: Progress) -> None:
    """Raise what the backend's own check finds fatal, the first with its fix, before anything is sent.

    `progress` gets the rest: what may be wrong, or could not be seen.
    """
    found = target.check(plan.site, plan)
    for note in found:
        if not note.fatal:
            progress(f"note: {note.what}\n  -> {note.fix}")
    fatal = [problem for problem in found if problem.fatal]
    if fatal:
        first, *others = fatal
        raise PROBLEM_ERRORS[first.kind](
            "\n".join(
                [f"backend {target.name} is not ready: {first.what}", *(f"  and: {p.what}" for p in others)]
            ),
            "\n  -> ".join(problem.fix for problem in fatal),
        )


def too_small(choice: Choice | None) -> ConfigError | None:
    """Why the job should not start there: its GPU lacks memory for it. Names the smallest change that fits.

    None also where fewer rows a pass are enough: a training that runs out of memory halves them by itself.
    """
    line = choice.line if choice else None
    hardware = line.estimate.hardware if line else None
    if line is None or hardware is None or hardware.fit != "no" or not (hardware.gpu and hardware.needed):
        return None
    change = line.change
    if change and all(setting.startswith("train.micro_batch=") for setting in change.settings):
        return None
    fix = "launch cost shows what fits"
    if change:
        fix = f"{change.what} fits: --set {' --set '.join(change.settings)}"
    return ConfigError(
        f"{line.estimate.offer.instance_type} is too small: the job needs about "
        f"{hardware.needed.expected:.1f} GiB on each {hardware.gpu.name}, which has {hardware.available_gib:.1f}",
        f"{fix}; launch run --even-if-too-small starts it as it is",
    )


def refuse_unset_facts(plan: Plan) -> None:
    """Raise ConfigError when the request still holds a placeholder."""
    unset = [fact for _, fact in placeholders(plan.request)]
    if unset:
        backend = plan.offer.backend
        raise ConfigError(f"backend {backend} is not set up: {', '.join(unset)}", how_to_set(backend, unset))


def refuse_misfit(old: JobRecord, job: JobSpec, backend: str) -> tuple[str, ...]:
    """What has changed from `old` to `job`. Raises ConfigError when its checkpoints can't be gone on from."""
    if not old.over:
        raise ConfigError(f"{old.id} is {old.state}: its checkpoints are its own", f"launch cancel {old.id}")
    if old.ref is None:
        raise ConfigError(f"{old.id} was never started: it has no checkpoint", "launch run starts a new one")
    if old.backend != backend:
        raise ConfigError(
            f"--from-checkpoint: {old.id} ran on {old.backend}, and its checkpoints are there",
            f"--backend {old.backend}",
        )
    specs = (old.job(), job)
    theirs, ours = (train_part(spec.model_dump(mode="json")).fingerprint_parts() for spec in specs)
    changed = changes(theirs, ours)
    if wrong := misfits(changed):
        raise ConfigError(
            f"--from-checkpoint: the weights of {old.id} don't fit this job ({'; '.join(wrong)})",
            "undo that, or leave --from-checkpoint out",
        )
    return changed


def with_dry_run(job: JobSpec) -> JobSpec:
    """The job, stopping after a few real steps."""
    data = job.model_dump(mode="json")
    data["train"]["dry_run_steps"] = data["train"]["dry_run_steps"] or DRY_RUN_STEPS
    return JobSpec.model_validate(data)


def estimate_json(plan: Plan) -> dict[str, Any]:
    """The estimate as the record keeps it: money as text."""
    found, hourly = plan.estimate, plan.offer.hourly
    money = {"low": found.low, "expected": found.expected, "high": found.high, "at_most": found.ceiling,
             "hourly": hourly}  # fmt: skip
    return {
        **{name: None if value is None else str(value) for name, value in money.items()},
        "instance_type": plan.offer.instance_type,
        "rates": {name: str(rate) for name, rate in found.rates.items()},
        "hours": found.hours and {n: round(getattr(found.hours, n), 4) for n in ("low", "expected", "high")},
        "tokens": None if found.tokens is None else round(found.tokens),
        "training": found.training and found.training.as_json(),
        "assumptions": list(found.assumptions),
        "missing": list(found.missing),
    }
