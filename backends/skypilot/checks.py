"""`sky check` as problems with fixes, and what a plan needs that this version can't give."""

from __future__ import annotations

import re

from backends.base import Plan, Problem, Site
from backends.skypilot import places
from backends.skypilot.jobs import scope_of
from backends.skypilot.service import SkyPilotService
from launcher.errors import LaunchError

NAMES = {"k8s": "kubernetes", "lambda": "lambda"}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def problems(service: SkyPilotService, site: Site, plan: Plan | None) -> list[Problem]:
    """What keeps the infra from running jobs; without a plan only where an account was set up."""
    if plan is None and not site.get("store"):
        return []
    region = plan.job.resources.region if plan else None
    found = []
    if site.get("store"):
        try:
            scope_of(site, region)
        except LaunchError as exc:
            found.append(Problem(what=exc.message, fix=exc.hint or "launch setup skypilot"))
    cloud = places.infra_of(region, site).cloud
    wanted = [NAMES.get(cloud, cloud)] if cloud else []
    told = service.ask("check", clouds=wanted)
    enabled = {name.casefold() for name in told["enabled"]}
    if not enabled or (wanted and wanted[0] not in enabled):
        why = _reason(told["said"], wanted[0] if wanted else None)
        fix = f"sky check {wanted[0]}" if wanted else "sky check"
        found.append(
            Problem(what=f"SkyPilot can't use {cloud or 'any cloud'}: {why}", fix=fix, kind="credentials")
        )
    return found


def _reason(said: str, cloud: str | None) -> str:
    """The lines under `CLOUD: disabled` of `sky check`, as one."""
    lines = [" ".join(line.split()) for line in COLOUR.sub("", said).splitlines()]
    for at, line in enumerate(lines):
        if re.match(rf"{re.escape(cloud or '')}\w*: disabled", line, re.IGNORECASE):
            told = [one for one in lines[at + 1 : at + 8] if one]
            return " ".join(told) or "disabled"
    return "no cloud is enabled"
