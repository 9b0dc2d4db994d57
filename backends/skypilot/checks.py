"""`sky check` as problems with fixes and as whom SkyPilot speaks, and whether the store can be reached."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from backends.base import Plan, Problem, Site
from backends.skypilot import places
from backends.skypilot.environment import SkyPilotEnvironment
from backends.skypilot.jobs import JOBS, opened, scope_of
from backends.skypilot.service import SkyPilotService
from launcher.errors import CredentialsError, JobNotFoundError, LaunchError, UnreachableError

NAMES = {"k8s": "kubernetes", "lambda": "lambda"}
STORAGE = {"s3": "aws", "gs": "gcp"}
"""Scheme of a bucket -> the cloud that SkyPilot mounts it with."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PIP = re.compile(r"pip install .*skypilot\[|dependencies are not installed|tools are not installed", re.IGNORECASE)
"""SkyPilot's word for the SDK of a cloud that its environment lacks."""
ACCOUNT = re.compile(r"Activated account: (.+)")


def problems(
    service: SkyPilotService, environment: SkyPilotEnvironment, site: Site, plan: Plan | None
) -> list[Problem]:
    """What keeps the infra from running jobs; without a plan only where an account was set up."""
    if plan is None and not site.get("store"):
        return []
    region = plan.job.resources.region if plan else None
    found = list(_of_the_store(site, region)) if site.get("store") else []
    compute, storage = _wanted(site, region)
    told = service.ask("check", clouds=[cloud for cloud in dict.fromkeys((compute, storage)) if cloud])
    can = {name.casefold(): able for name, able in told["enabled"].items()}
    for cloud, what in ((compute, "compute"), (storage, "storage")):
        if (cloud is None and what == "compute" and not can) or (cloud and what not in can.get(cloud, ())):
            why = _reason(told["said"], cloud)
            found.append(
                Problem(
                    what=f"SkyPilot can't use {cloud or 'any cloud'}{' for buckets' * (what == 'storage')}: {why}",
                    fix=_fix(why, cloud, environment), kind="credentials",
                )
            )  # fmt: skip
    if "storage" in can.get("aws", ()):
        found += _of_the_keys(service, site, compute, storage)
    return found


def signed_in(service: SkyPilotService, environment: SkyPilotEnvironment, site: Site) -> str:
    """The clouds that SkyPilot can use of those that the account names, each with its identity."""
    compute, storage = _wanted(site, None)
    told = service.ask("check", clouds=[cloud for cloud in dict.fromkeys((compute, storage)) if cloud])
    if not told["enabled"]:
        why = _reason(told["said"], compute)
        raise CredentialsError(f"SkyPilot can use no cloud: {why}", _fix(why, compute, environment))
    who = _accounts(told["said"], told["enabled"])
    names = sorted(told["enabled"])
    return "SkyPilot: " + "; ".join(f"{n.casefold()} as {who[n]}" if n in who else n.casefold() for n in names)


def _wanted(site: Site, region: str | None) -> tuple[str | None, str | None]:
    """(the cloud of the infra, that of the bucket) as SkyPilot calls them; None: any, none."""
    cloud = places.infra_of(region, site).cloud
    return NAMES.get(cloud, cloud) if cloud else None, STORAGE.get(places.store(site).root.partition("://")[0])


def _of_the_store(site: Site, region: str | None) -> Iterator[Problem]:
    try:
        for _ in opened(scope_of(site, region)).keys(JOBS):
            break
    except JobNotFoundError:
        yield Problem(
            what=f"site.skypilot.store: there is no bucket {site.get('store')}",
            fix="make it, or name another: launch setup skypilot --store s3://BUCKET",
        )
    except LaunchError as exc:
        kinds: dict[type[LaunchError], Literal["unreachable", "credentials"]] = {
            UnreachableError: "unreachable", CredentialsError: "credentials"
        }  # fmt: skip
        yield Problem(
            what=exc.message, fix=exc.hint or "launch setup skypilot", kind=kinds.get(type(exc), "config")
        )


def _of_the_keys(
    service: SkyPilotService, site: Site, compute: str | None, storage: str | None
) -> Iterator[Problem]:
    """A bucket of AWS for another cloud's machines: single sign-on and roles do not reach those."""
    if storage != "aws" or compute in (None, "aws", *places.OWN) or service.ask("aws_keys")["travel"]:
        return
    yield Problem(
        what=f"machines of {compute} can't reach {site.get('store')}: SkyPilot gives them static AWS keys of the "
        "profile [default] alone, and yours are of another kind or profile",
        fix="static keys as [default] of ~/.aws/credentials, a gs:// store, or --infra aws",
        kind="credentials",
    )


def _fix(why: str, cloud: str | None, environment: SkyPilotEnvironment) -> str:
    if cloud and PIP.search(why):
        return f"launch setup skypilot --clouds {','.join([*environment.clouds(), cloud])}"
    return " ".join(filter(None, (environment.sky(), "check", cloud)))


def _accounts(said: str, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Cloud -> what stands as its account under `CLOUD: enabled` of `sky check -v`."""
    found: dict[str, str] = {}
    cloud: Any = None
    for line in _lines(said):
        head = line.partition(":")[0].casefold()
        cloud = next((name for name in names if head == name.casefold()), cloud)
        if cloud and (told := ACCOUNT.fullmatch(line)):
            found[cloud] = told[1]
    return found


def _reason(said: str, cloud: str | None) -> str:
    """The lines under `CLOUD: disabled` of `sky check`, as one."""
    lines = _lines(said)
    for at, line in enumerate(lines):
        if re.match(rf"{re.escape(cloud or '')}\w*: disabled", line, re.IGNORECASE):
            told = [one for one in lines[at + 1 : at + 8] if one]
            return " ".join(told) or "disabled"
    return "no cloud is enabled"


def _lines(said: str) -> list[str]:
    return [" ".join(line.split()) for line in COLOUR.sub("", said).splitlines()]
