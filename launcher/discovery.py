"""What a backend knows and the record does not: jobs whose launcher died or record is lost, machines left on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from backends import registry
from backends.base import Backend, JobRef, JobState, ListsMachines, Site
from launcher.errors import ConfigError, JobNotFoundError, LaunchError
from launcher.spec import JobSpec
from launcher.store import JobRecord, Store


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """Something alive that no job of the record owns. `hourly`: USD, None where nobody knows."""

    backend: str
    id: str
    what: str
    hourly: Decimal | None
    since: datetime | None
    stop: str


class Discovery:
    """Asks backends what they know of ours. `backend`, `site`: of a name."""

    def __init__(self, store: Store, backend: Callable[[str], Backend], site: Callable[[str], Site]) -> None:
        self._store = store
        self._backend = backend
        self._site = site

    def adopt(self, job: JobSpec, backend: str, site: Site, token: str) -> bool:
        """Record the reference of a job that its backend knows though its launcher did not hear so."""
        ref = self._backend(backend).find(site, token, job.resources.region)
        if ref is not None:
            self._store.adopt(token, str(ref))
        return ref is not None

    def rebuild_if_lost(self) -> None:
        """When the record's file is gone: take in what this machine's own backends know.

        Only those that answer without a network: a vendor is asked by `take_in`, when the user wants it.
        """
        if self._store.exists():
            return
        found: list[JobRecord] = []
        with contextlib.suppress(LaunchError):
            found = list(self._known_to("local"))
        if found:
            self._store.add_missing(found)

    def take_in(self, names: Iterable[str] = (), region: str | None = None) -> tuple[int, dict[str, str]]:
        """Record every job that the named backends (default: all that are set up) know.

        How many were new; backend -> why it can't be asked. `region`: another than the account's own. Raises what
        a named backend raises, ConfigError for one that has no regions.
        """
        asked = self._with_region(names, region)
        found: list[JobRecord] = []
        silent: dict[str, str] = {}
        for name in asked or registry.names():
            try:
                if asked or self.is_set_up(name):
                    found += self._known_to(name, region)
            except LaunchError as exc:
                if asked:
                    raise
                silent[name] = exc.message
        new = [record for record in found if self._store.get(record.id) is None]
        if new:
            self._store.add_missing(new)
        adopted = [
            record
            for record in found
            if self._is_lost(record.id) and self._store.adopt(record.id, str(record.ref))
        ]
        return len(new) + len(adopted), silent

    def orphans(self, names: Iterable[str] = (), region: str | None = None) -> tuple[list[Orphan], dict[str, str]]:
        """Jobs and machines that are alive and that no record owns; backend -> why it can't be asked.

        `region`: as for `take_in`.
        """
        found: list[Orphan] = []
        silent: dict[str, str] = {}
        asked = self._with_region(names, region)
        for name in asked or registry.names():
            try:
                if asked or self.is_set_up(name):
                    found += self._alive_at(name, region)
            except LaunchError as exc:
                silent[name] = exc.message
        return found, silent

    def _with_region(self, names: Iterable[str], region: str | None) -> list[str]:
        """The names. Raises ConfigError where `region` says nothing to them."""
        asked = list(names)
        if region is None:
            return asked
        if not asked:
            raise ConfigError(
                f"--region {region}: each vendor has regions of its own",
                "add --backend NAME",
            )
        for name in asked:
            if not self._backend(name).capabilities.regions:
                raise ConfigError(f"--region {region}: backend {name} has no regions", "leave --region out")
        return asked

    def _alive_at(self, name: str, region: str | None) -> Iterator[Orphan]:
        target, site = self._backend(name), self._site(name)
        there = f" --backend {name} --region {region}" if region else ""
        machines = {one.name: one for one in target.machines(site)} if isinstance(target, ListsMachines) else {}
        for ref in target.discover(site, region):
            if self._store.get(ref.id) is not None and not self._is_lost(ref.id):
                continue
            try:
                status = target.status(ref)
            except JobNotFoundError:  # gone since it was listed
                continue
            if status.state.terminal:
                continue
            machine, recorded = machines.pop(ref.id, None), {}
            with contextlib.suppress(LaunchError):
                recorded = dict(target.recorded(ref))
            hourly = recorded.get("hourly") or (machine and machine.hourly)
            yield Orphan(
                backend=name, id=ref.id, what=f"job, {status.state}", since=status.started,
                hourly=None if hourly is None else Decimal(str(hourly)),
                stop=f"launch list --discover{there}, then launch cancel {ref.id}",
            )  # fmt: skip
        for machine in machines.values():
            owner = self._store.get(machine.name)
            if owner is None or owner.over:
                yield Orphan(
                    backend=name, id=machine.name, what=machine.what, since=machine.since, stop=machine.stop,
                    hourly=None if machine.hourly is None else Decimal(str(machine.hourly)),
                )  # fmt: skip

    def _is_lost(self, job_id: str) -> bool:
        """Is it one that the record calls over since its backend did not show it when it was asked?"""
        known = self._store.get(job_id)
        return known is not None and known.never_started

    def is_set_up(self, name: str) -> bool:
        """Does the user's configuration have every fact that this backend must be told?"""
        target, site = self._backend(name), self._site(name)
        return all(site.get(fact.name) for fact in target.facts if fact.required)

    def _known_to(self, name: str, region: str | None = None) -> Iterable[JobRecord]:
        target = self._backend(name)
        if not self.is_set_up(name):
            raise ConfigError(f"backend {name} is not set up", f"launch setup {name}")
        for ref in target.discover(self._site(name), region):
            # A job whose own record is damaged is left out.
            with contextlib.suppress(LaunchError, LookupError, TypeError, ValueError):
                yield _from_backend(ref, target.recorded(ref))


def _from_backend(ref: JobRef, recorded: Mapping[str, Any]) -> JobRecord:
    spec = recorded["job"]
    spec["model"]["id"], spec["task"], spec["train"]["dry_run_steps"]  # what every list and page shows
    return JobRecord(
        id=ref.id,
        name=spec["name"],
        backend=ref.backend,
        ref=str(ref),
        state=JobState.UNKNOWN,
        created=datetime.fromisoformat(recorded["created"]),
        lineage=recorded["lineage"],
        resumes=recorded["lineage"] if recorded["lineage"] != ref.id else None,
        bundle_sha256=recorded["bundle_sha256"],
        spec=spec,
        owner=recorded.get("owner"),
        estimate={"hourly": recorded.get("hourly")},
    )
