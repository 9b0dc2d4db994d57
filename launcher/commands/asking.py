"""Questions before something is spent or removed: asked on a terminal, an error where nobody can answer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from launcher.store import JobRecord


def refuse_unasked(what: str, yes: bool, somebody: bool | None = None) -> None:
    """Raise ConfigError where `what` has to be agreed to, and nobody is there (`somebody`: on a terminal)."""
    from launcher.errors import ConfigError

    there = sys.stdin.isatty() if somebody is None else somebody
    if not (yes or there):
        raise ConfigError(f"{what} and nobody can be asked", "add --yes to agree")


def ask(question: str, yes: bool) -> None:
    """Go on when the user agrees; raise LaunchError otherwise."""
    from launcher.errors import LaunchError

    if not (yes or click.confirm(question, err=True)):
        raise LaunchError("nothing was done")


def anothers(record: JobRecord) -> str | None:
    """Who sent the job, where that was not this user."""
    from launcher.site import sent_by_another

    return record.owner if sent_by_another(record.owner) else None


def named(records: list[JobRecord]) -> str:
    """Jobs by their ids, those of others with their owner: 'demo-1, demo-2 (ben's)'."""
    owners = ((record.id, anothers(record)) for record in records)
    return ", ".join(f"{job} ({owner}'s)" if owner else job for job, owner in owners)
