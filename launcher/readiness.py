"""Whether the backends can run jobs: what each finds itself, and what it has not been told."""

from __future__ import annotations

from collections.abc import Callable

from backends import registry
from backends.base import Backend, Problem
from backends.registry import BUILTIN
from launcher.errors import LaunchError
from launcher.site import how_to_set, load_site


def readiness(backend: Callable[[str], Backend]) -> list[tuple[str, str, list[Problem]]]:
    """(name, what it is, problems) of every backend that is known here."""
    found = []
    for name in registry.names():
        summary = BUILTIN[name].summary if name in BUILTIN else "installed plugin"
        try:
            problems = _problems(backend(name))
        except LaunchError as exc:
            problems = [Problem(what=exc.message, fix=exc.hint or "launch doctor --debug", fatal=False)]
        found.append((name, summary, problems))
    return found


def _problems(target: Backend) -> list[Problem]:
    site = load_site(target.name, target.facts)
    unset = [fact.name for fact in target.facts if fact.required and not site.get(fact.name)]
    problems = []
    if unset:
        what = f"not set up: {', '.join(unset)}"
        problems.append(Problem(what=what, fix=how_to_set(target.name, unset)))
    return [*problems, *target.check(site)]
