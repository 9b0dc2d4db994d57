"""Jobs after the plan: sent through SkyPilot, looked at, stopped, fetched, removed; their machines taken down.

What the job says and leaves lies in the store, not on its machines: nothing is lost when those go.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from backends.base import Bundle, JobRef, JobState, JobStatus, LogLine, Machine, Plan, Progress, Site
from backends.skypilot import logs, places, states
from backends.skypilot.environment import SkyPilotEnvironment
from backends.skypilot.seen import Seen, look, told
from backends.skypilot.sender import Sender
from backends.skypilot.service import LAUNCH_S, START_S, SkyPilotService
from backends.skypilot.shared import SharedPath
from backends.skypilot.stores import JobStore
from backends.storage import ROOT
from launcher.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    JobNotFoundError,
    LaunchError,
)
from launcher.home import cache
from train_entry.failure import FAILURE

HERE = "here"
ASK_S = 5.0
"""SkyPilot is asked about one job this often at most."""
LAST_LINES = 3
HOST = re.compile(r"^\s*Host\s+([^\s*?]+)\s*$", re.IGNORECASE | re.MULTILINE)
LOGIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
JOBS = f"{ROOT}/skypilot/"
"""A file here for every job that was sent, named by its token: to list all that they left takes long."""


class SkyPilotJobs:
    """The half of the backend that talks to SkyPilot and to the store. Making one does no I/O."""

    name: str

    def __init__(self, home: Path) -> None:
        self._environment = SkyPilotEnvironment(cache(), home)
        self._service = SkyPilotService(self._environment)
        self._sender = Sender(home)
        self._asked: dict[JobRef, tuple[float, Mapping[str, Any]]] = {}
        self._stores: dict[str, JobStore] = {}

    def stage(self, plan: Plan, progress: Progress) -> None:
        store = self._store(scope_of(plan.site, plan.job.resources.region))
        store.put_bundle(plan.bundle, plan.token, progress)
        store.put_record(plan)
        if plan.request["managed"]:
            store.put(told(plan.token, "managed"), b"")
        store.put(told(plan.token, "staged"), b"")
        progress("asking SkyPilot (its server may take a minute to start)")
        self._service.ask("start", START_S)

    def submit(self, plan: Plan) -> JobRef:
        ref = JobRef(self.name, scope_of(plan.site, plan.job.resources.region), plan.token)
        store = self._store(ref.scope)
        if "staged" not in look(store, ref.id).has:
            raise BackendError(f"{ref.id} was not staged", "launch run")
        request = plan.request
        secrets = _secret_values(request["task"].get("secrets", ()))
        self._service.ask(
            "launch", LAUNCH_S, name=ref.id, task=request["task"], managed=request["managed"], secrets=secrets
        )
        self._note_submitted(store, ref.id)
        return ref

    def status(self, ref: JobRef) -> JobStatus:
        seen = self._seen(ref)
        if seen.final is not None:
            self._take_down(ref, seen)
            return _from_json(seen.final)
        status = self._status(ref, seen)
        if status.state.terminal:
            self._store(ref.scope).put(told(ref.id, "final.json"), _as_json(status).encode())
            self._take_down(ref, seen)
        return status

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        seen = self._seen(ref)
        over = seen.final is not None
        yield from logs.lines(self._store(ref.scope), seen.logs, over, cursor)

    def cancel(self, ref: JobRef) -> None:
        seen = self._seen(ref)
        status = self.status(ref)
        if status.state.terminal:
            return
        store = self._store(ref.scope)
        store.put(told(ref.id, "cancel"), b"")  # every node looks for it: the job checkpoints first
        if status.state != JobState.RUNNING:  # nothing to checkpoint, and nobody who looks: it waits, or was taken
            self._service.ask("down", name=ref.id, managed=seen.managed)

    def download(self, ref: JobRef, to: Path) -> None:
        self._seen(ref)
        self._store(ref.scope).bring_output(_key(ref.id, "output/"), to)

    def release(self, ref: JobRef) -> None:
        store = self._store(ref.scope)
        for token in (ref.id, *self._going_on_from(ref)):
            one = JobRef(self.name, ref.scope, token)
            if not self.status(one).state.terminal:
                raise ConfigError(f"{ref.id} can't be removed: {token} still runs", f"launch cancel {token}")
        with contextlib.suppress(BackendError):  # a record that is gone names no bundle
            store.drop_bundle(store.record(ref.id)["bundle_sha256"], ref.id)
        for what in ("output/", "checkpoints/", "model/"):
            store.remove(_key(ref.id, what))
        store.delete([f"{JOBS}{ref.id}", _key(ref.id, "record.json")])
        # What it told goes last: a removal that was interrupted can be repeated.
        store.remove(told(ref.id))
        store.remove(_key(ref.id, ""))

    def find(self, site: Site, token: str, region: str | None = None) -> JobRef | None:
        ref = JobRef(self.name, scope_of(site, region), token)
        store = self._store(ref.scope)
        seen = look(store, token)
        if "submitted" in seen.has:
            return ref
        if "staged" not in seen.has:
            return None
        asked = self._service.ask("look", name=token, managed=seen.managed, closely=False)
        if asked["phase"] == "none":
            return None
        self._note_submitted(store, token)
        return ref

    def discover(self, site: Site, region: str | None = None) -> Iterable[JobRef]:
        scope = scope_of(site, region)
        return [JobRef(self.name, scope, token) for token in self._tokens(scope, "")]

    def machines(self, site: Site) -> Iterable[Machine]:
        for one in self._service.ask("alive")["found"]:
            stop = f"{self._environment.sky()} {'jobs cancel -n' if one['managed'] else 'down'}"
            yield Machine(
                name=one["name"], what=f"{one['machine'] or 'machines'}, {one['state']}", hourly=one["hourly"],
                since=states.moment(one["since"]) if one["since"] else None, stop=f"{stop} {one['name']}",
            )  # fmt: skip

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        self._seen(ref)
        return self._store(ref.scope).record(ref.id)

    def bundle(self, ref: JobRef, to: Path | None = None) -> Bundle:
        self._seen(ref)
        return self._store(ref.scope).bring_bundle(ref.id, to)

    def _status(self, ref: JobRef, seen: Seen) -> JobStatus:
        """Of a job that was not over at the last look."""
        state = states.told(seen)
        if state is None:
            said = self._ask(ref, seen) if states.is_to_be_asked(seen) else {}
            if said.get("phase") in states.GONE:
                seen = self._seen(ref)  # what it has marked meanwhile counts more
                state = states.told(seen, said)
            if state is None:
                return states.status_of(seen, said)
        if seen.ending:
            return states.ending(seen)
        assert seen.end is not None
        return JobStatus(
            state=state, reason=self._reason(ref, seen, state), ended=states.moment(seen.end[2]),
            started=states.moment(seen.starts[0] if seen.starts else seen.end[2]),
            interruptions=max(0, len(seen.starts) - 1),
        )  # fmt: skip

    def _reason(self, ref: JobRef, seen: Seen, state: JobState) -> str | None:
        if state != JobState.FAILED:
            return "cancelled" if state == JobState.CANCELLED else None
        assert seen.end is not None
        kind, code, _ = seen.end
        store = self._store(ref.scope)
        with contextlib.suppress(LaunchError, ValueError, LookupError, TypeError):
            if kind == "end" and (found := store.get(_key(ref.id, f"output/{FAILURE}"))):
                return str(json.loads(found)["message"])
        if code == states.PREEMPTED:
            return states.STOPPED_ITSELF
        own = [part for part in seen.logs if part.node == seen.spokesman]
        said = (line.text for line in logs.lines(store, own, True, None) if line.text.strip())
        last = " | ".join(deque(said, LAST_LINES))
        return f"{'set-up' if kind == 'setup' else 'the job'} ended with {code}: {last}"

    def _ask(self, ref: JobRef, seen: Seen) -> Mapping[str, Any]:
        """SkyPilot's word on a job; the last one again when that is young."""
        at, said = self._asked.get(ref, (0.0, {}))
        if not said or time.monotonic() - at > ASK_S:
            closely = (seen.quiet_s or 0) >= states.QUIET_S
            said = self._service.ask("look", name=ref.id, managed=seen.managed, closely=closely)
            if said["phase"] == "none" and not self._mine(ref):
                said = {**said, "phase": "elsewhere", "detail": states.ELSEWHERE}
            self._asked[ref] = (time.monotonic(), said)
        return said

    def _take_down(self, ref: JobRef, seen: Seen) -> None:
        """Its machines, once: autostop would take minutes more, and some places have none."""
        if "down" in seen.has or not self._mine(ref):
            return
        with contextlib.suppress(LaunchError):  # at the next look again
            self._service.ask("down", name=ref.id, managed=seen.managed)
            self._store(ref.scope).put(told(ref.id, "down"), b"")

    def _seen(self, ref: JobRef) -> Seen:
        """Raises JobNotFoundError."""
        seen = look(self._store(ref.scope), ref.id)
        if "submitted" not in seen.has:
            raise JobNotFoundError(f"{unquote(ref.scope)} has no job {ref.id}", "launch list")
        return seen

    def _going_on_from(self, ref: JobRef) -> list[str]:
        """The jobs that have their checkpoints in this one's folder."""
        found = self._tokens(ref.scope, f"{ref.id}-r")
        return [t for t in found if self._store(ref.scope).record(t).get("lineage") == ref.id]

    def _tokens(self, scope: str, prefix: str) -> list[str]:
        """Of every job that was started, and begins so."""
        return [key.removeprefix(JOBS) for key, _ in self._store(scope).keys(f"{JOBS}{prefix}")]

    def _note_submitted(self, store: JobStore, token: str) -> None:
        """`submitted` comes last: without it `find` does both again."""
        store.put(f"{JOBS}{token}", b"")
        store.put(told(token, "submitted"), self._sender.id().encode())

    def _mine(self, ref: JobRef) -> bool:
        """Was it sent from here? Another machine's SkyPilot may not know it at all."""
        sent = self._store(ref.scope).get(told(ref.id, "submitted"))
        return not sent or sent.decode(errors="replace") == self._sender.id()

    def _store(self, scope: str) -> JobStore:
        found = self._stores.get(scope)
        if found is None:
            found = self._stores[scope] = opened(scope)
        return found


def opened(scope: str) -> JobStore:
    """The store of a reference's scope. Raises JobNotFoundError where that is none."""
    where, colon, root = unquote(scope).partition(":")
    # A reference may come from anywhere.
    if colon and root.startswith("/") and LOGIN.fullmatch(where):
        return SharedPath(root, None if where == HERE else where, cache() / "ssh")
    if places.BUCKET.fullmatch(f"{where}://{root}"):
        from backends.skypilot.buckets import BUCKETS  # what reads the buckets of two vendors, on use

        return BUCKETS[where](root)
    raise JobNotFoundError(f"{scope} is no store of a SkyPilot job", "launch list")


def scope_of(site: Site, region: str | None) -> str:
    """Where the job's files are, quoted as a reference has it: `LOGIN:ROOT` or `s3:BUCKET`. Raises ConfigError."""
    root = site.need("store").rstrip("/")
    if not root.startswith("/"):
        return quote(root.replace("://", ":", 1), safe=":")
    login = HERE if Path(root).is_dir() else _login(places.infra_of(region, site).text)
    return quote(f"{login}:{root}", safe=":")


def _login(infra: str | None) -> str:
    """Slurm's login node: the cluster that `infra` names, else the first of ~/.slurm/config."""
    cloud, cluster, *_ = [*(infra or "").split("/"), ""]
    if cloud.casefold() == "slurm" and cluster:
        return cluster
    with contextlib.suppress(OSError):
        text = Path("~/.slurm/config").expanduser().read_text(encoding="utf-8")
        if cloud.casefold() == "slurm" and (found := HOST.search(text)):
            return found.group(1)
    raise ConfigError(
        "site.skypilot.store: the path is not on this machine, and no Slurm cluster of ~/.slurm/config has it",
        "run launch where the path is mounted, or name the cluster: launch setup skypilot --infra slurm/CLUSTER",
    )


def _secret_values(names: Iterable[str]) -> dict[str, str]:
    """From the environment. Raises CredentialsError."""
    for name in names:
        if not os.environ.get(name):
            raise CredentialsError(f"secrets: {name} is not in the environment", f"export {name}=...")
    return {name: os.environ[name] for name in names}


def _key(token: str, what: str) -> str:
    return f"{ROOT}/jobs/{token}/{what}"


def _as_json(status: JobStatus) -> str:
    assert status.ended is not None
    return json.dumps(
        {"state": status.state, "reason": status.reason, "interruptions": status.interruptions,
         "started": status.started.isoformat() if status.started else None, "ended": status.ended.isoformat()}
    )  # fmt: skip


def _from_json(told: Mapping[str, Any]) -> JobStatus:
    started = told["started"]
    return JobStatus(
        state=JobState(told["state"]), reason=told["reason"], interruptions=told["interruptions"],
        started=datetime.fromisoformat(started) if started else None, ended=datetime.fromisoformat(told["ended"]),
    )  # fmt: skip
