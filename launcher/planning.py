"""From a job to a plan: hardware chosen, request rendered and checked, nothing sent."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from backends.base import Backend, Bundle, Plan, placeholders
from backends.container import GRACE_HOURS, hard_stop_s
from cost.estimate import estimate
from cost.offers import Offer, PriceSource
from cost.prices.table import Price
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
from launcher.site import load_site
from launcher.spec import JobSpec

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
    unchecked: str | None = None
    """How to install the vendor's model, where the request could not be checked against it."""


def choose(target: Backend, job: JobSpec) -> tuple[JobSpec, Offer]:
    """The backend's best offer with what it costs, and the job with its budget as a time limit.

    Raises CapacityError or UnsupportedError without an offer, OverBudgetError when the budget buys too little.
    """
    offer = next(iter(target.offers(job.resources)))
    if target.name == "local":
        return job, offer
    site = load_site(target.name, target.facts, job)
    found = known_prices().price(replace(offer, region=offer.region or site.get("region")))
    if isinstance(found, Price):
        rate = found.hourly if found.hourly is not None else found.high
        source = PriceSource(as_of=found.as_of, url=found.url) if found.as_of and found.url else None
        offer = replace(offer, hourly=None if rate is None else rate * offer.nodes, price_source=source)
    return _within_budget(job, offer), offer


def _within_budget(job: JobSpec, offer: Offer) -> JobSpec:
    """The budget becomes the job's time limit, so that the backend's own hard stop keeps it."""
    if job.budget is None:
        return job
    if offer.hourly is None:
        raise OverBudgetError(
            f"budget: ${job.budget} can't be kept: {offer.backend}'s price of {offer.instance_type} is not known",
            "launch prices refresh, or your own rate in prices.yaml (docs/prices.md), or take budget out",
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


def render(target: Backend, job: JobSpec, offer: Offer, bundle: Bundle, token: str, lineage: str) -> Plan:
    """The job's plan on this offer."""
    site = load_site(target.name, target.facts, job)
    return Plan(
        job=job, offer=offer, bundle=bundle, site=site, token=token, lineage=lineage,
        request=target.render(job, offer, bundle, site, token, lineage),
        estimate=estimate(offer, hard_stop_s(job) / 3600),
    )  # fmt: skip


def check(target: Backend, plan: Plan) -> str | None:
    """Validate the request; how to install what that needs, where it is not there."""
    try:
        target.validate(plan.request)
    except BackendNotInstalledError as exc:
        return exc.hint or exc.message
    return None


def refuse_problems(target: Backend, plan: Plan) -> None:
    """Raise what the backend's own check finds fatal, the first with its fix, before anything is sent."""
    fatal = [problem for problem in target.check(plan.site, plan) if problem.fatal]
    if fatal:
        first, *others = fatal
        raise PROBLEM_ERRORS[first.kind](
            "\n".join(
                [f"backend {target.name} is not ready: {first.what}", *(f"  and: {p.what}" for p in others)]
            ),
            "\n  -> ".join(problem.fix for problem in fatal),
        )


def refuse_unset_facts(plan: Plan) -> None:
    """Raise ConfigError when the request still holds a placeholder."""
    unset = [fact for _, fact in placeholders(plan.request)]
    if unset:
        backend = plan.offer.backend
        options = " ".join(f"--{name} ..." for name in unset)
        raise ConfigError(
            f"backend {backend} is not set up: {', '.join(unset)}", f"launch setup {backend} {options}"
        )


def with_dry_run(job: JobSpec) -> JobSpec:
    """The job, stopping after a few real steps."""
    data = job.model_dump(mode="json")
    data["train"]["dry_run_steps"] = data["train"]["dry_run_steps"] or DRY_RUN_STEPS
    return JobSpec.model_validate(data)


def estimate_json(plan: Plan) -> dict[str, Any]:
    """The estimate as the record keeps it: money as text."""
    values = asdict(plan.estimate)
    money: dict[str, Any] = {k: None if values[k] is None else str(values[k]) for k in ("low", "expected", "high")}
    hourly = plan.offer.hourly
    money["hourly"] = None if hourly is None else str(hourly)
    money["instance_type"] = plan.offer.instance_type
    found = plan.estimate
    money["hours"] = found.hours and {n: round(getattr(found.hours, n), 4) for n in ("low", "expected", "high")}
    money["training"] = found.training and found.training.as_json()
    return {**money, "assumptions": list(values["assumptions"]), "missing": list(values["missing"])}
