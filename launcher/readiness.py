"""Whether the backends can run jobs, and as whom: what each finds itself, and what it has not been told."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from backends import registry
from backends.base import Backend, Problem, SaysWho, Site
from backends.registry import BUILTIN
from launcher.errors import BackendNotInstalledError, CredentialsError, LaunchError
from launcher.site import how_to_set, load_site


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What is known of one backend. `asked`: did it look itself, over the network if its vendor is elsewhere?"""

    name: str
    summary: str
    problems: tuple[Problem, ...]
    set_up: bool
    """Has it every fact that it must be told?"""
    asked: bool
    signed_in: str | None = None
    """As whom it speaks to its vendor, in words; None where nobody was asked or can tell."""

    @property
    def ready(self) -> bool:
        """True when nothing is known that keeps it from running a job."""
        return not any(problem.fatal for problem in self.problems)


def readiness(backend: Callable[[str], Backend], ask: Collection[str] | None = None) -> list[Readiness]:
    """Every backend that is known here.

    `ask`: those that may use the network (None: every one that is set up); of the others only what is known on
    this machine is told. Raises BackendNotFoundError for a name that is nobody's.
    """
    for name in ask or ():
        if name not in registry.names():
            backend(name)
    return [_of(name, backend, ask is None or name in ask) for name in registry.names()]


def _of(name: str, backend: Callable[[str], Backend], ask: bool) -> Readiness:
    summary = BUILTIN[name].summary if name in BUILTIN else "installed plugin"
    problems: list[Problem] = []
    set_up, asked, who = True, False, None
    try:
        target = backend(name)
        site = load_site(name, target.facts)
        required = [fact.name for fact in target.facts if fact.required]
        unset = [fact for fact in required if not site.get(fact)]
        set_up = not unset
        if unset:
            problems.append(Problem(what=f"not set up: {', '.join(unset)}", fix=how_to_set(name, unset)))
        # A backend that needs no fact of an account, or lacks one, looks at nothing but this machine.
        asked = ask or not required
        if asked or len(unset) == len(required):
            problems += target.check(site)
        who = _who(target, site, problems) if ask and not unset else None
    except LaunchError as exc:
        fatal = isinstance(exc, BackendNotInstalledError | CredentialsError)
        problems.append(Problem(what=exc.message, fix=exc.hint or "launch doctor --debug", fatal=fatal))
    return Readiness(
        name=name, summary=summary, problems=tuple(problems), set_up=set_up, asked=asked, signed_in=who
    )


def _who(target: Backend, site: Site, problems: list[Problem]) -> str | None:
    """As whom it speaks; why that is not known is one of `problems`, once."""
    if not isinstance(target, SaysWho) or any(problem.kind == "credentials" for problem in problems):
        return None
    return target.signed_in(site)
