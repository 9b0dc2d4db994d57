"""From a job to a plan: hardware chosen, request rendered and checked, nothing sent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from backends.base import Backend, Bundle, Plan, placeholders
from cost.estimate import estimate
from launcher.data.check import DataReport
from launcher.errors import (
    BackendNotInstalledError,
    ConfigError,
    CredentialsError,
    LaunchError,
    QuotaError,
    UnreachableError,
)
from launcher.site import load_site
from launcher.spec import JobSpec

DRY_RUN_STEPS = 5
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


def render(target: Backend, job: JobSpec, bundle: Bundle, token: str, lineage: str) -> Plan:
    """The job's plan on the backend's best offer."""
    site = load_site(target.name, target.facts, job)
    offer = next(iter(target.offers(job.resources)))
    return Plan(
        job=job, offer=offer, bundle=bundle, site=site, token=token, lineage=lineage,
        request=target.render(job, offer, bundle, site, token, lineage), estimate=estimate(offer),
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
    return {**money, "assumptions": list(values["assumptions"]), "missing": list(values["missing"])}
