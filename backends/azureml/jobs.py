"""Jobs after the plan: sent, looked at, stopped, their output fetched, what they left removed."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from backends.azureml import states
from backends.azureml.azure import VAULT_SCOPE, Azure, workspace_path
from backends.azureml.checks import API_VERSION
from backends.azureml.logs import lines
from backends.azureml.places import DEFAULT_DATASTORE, JOB_TAG, LINEAGE_TAG, OUTPUT, vault_name
from backends.azureml.storage import Storage
from backends.base import Bundle, JobRef, JobState, JobStatus, LogLine, Plan, Progress, Site
from backends.storage import ROOT
from launcher.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    JobNotFoundError,
    LaunchError,
    UnreachableError,
)

STUDIO = "https://ml.azure.com/runs/{job}?wsid={workspace}"
VAULT = "https://{vault}.vault.azure.net"
VAULT_VERSION = "7.4"
BUNDLE = re.compile(rf"/{ROOT}/bundles/([0-9a-f]{{64}})/?$")
DATASTORE = re.compile(r"datastores/([^/]+)/paths/")
BEFORE_RUNNING = (JobState.QUEUED, JobState.STARTING)
REMOVAL_S = 120
"""How long release waits for a job to be gone."""
SETTLED_S = 30.0
"""So long after the end a line without a newline is taken for whole. Followers read on for longer (drain_s)."""


class AzureMLJobs:
    """The half of the backend that talks to Azure. Making one does no I/O."""

    name: str

    def __init__(self, home: Path) -> None:
        self._azure = Azure()
        self._stores: dict[tuple[str, str], Storage] = {}
        self._histories: dict[str, str] = {}
        self._interrupted: dict[JobRef, int] = {}
        self._events: dict[JobRef, tuple[int, int]] = {}
        """Size of the events' file when it was read, and how many starts were in it."""

    def stage(self, plan: Plan, progress: Progress) -> None:
        storage = self._storage(scope_of(plan.site), plan.site.get("datastore") or DEFAULT_DATASTORE)
        storage.put_bundle(plan.bundle, plan.token, progress)
        storage.put_record(plan)
        if environment := plan.request.get("environment"):
            self._put_environment(environment)

    def submit(self, plan: Plan) -> JobRef:
        ref = JobRef(self.name, scope_of(plan.site), plan.token)
        if (known := self._look(ref)) is None:
            body = {"properties": plan.request["job"]["properties"]}
            try:
                self._azure.call(
                    "PUT", plan.request["job"]["id"], f"starting {plan.token}", version=API_VERSION, body=body
                )
                return ref
            except BackendError:
                # The answer to an earlier try of this very request was lost.
                if (known := self._look(ref)) is None or not _is(known, plan):
                    raise
        if not _is(known, plan):
            raise BackendError(f"the workspace has another job named {plan.token}", "launch run starts a new one")
        return ref

    def status(self, ref: JobRef) -> JobStatus:
        job = self._get(ref)
        word = str(job["properties"].get("status") or "Unknown")
        # After the status: of a job that is over it knows the end.
        run = self._details(ref) or {}
        state, started = states.state_of(word), states.time_of(run.get("startTimeUtc"))
        ended = states.time_of(run.get("endTimeUtc")) if state.terminal else None
        error = states.error_of(run)
        left: Mapping[str, Any] = {}
        stopped: Mapping[str, Any] = {}
        if state == JobState.FAILED or (state == JobState.CANCELLED and states.names_preemption(error)):
            left, stopped = self._left(job, "failure.json"), self._left(job, "state.json")
        preempted = states.was_preempted(state, error, left, stopped) and self._may_be_taken(ref, job, state)
        if preempted:
            state = JobState.FAILED
        workspace = workspace_path(ref.scope)
        return JobStatus(
            state=state,
            detail=states.detail_of(word),
            reason=states.reason_of(state, error, left, stopped.get("exit"), preempted),
            started=started,
            ended=ended,
            interruptions=self._interruptions(ref, job, state, started is not None),
            url=STUDIO.format(job=ref.id, workspace=quote(workspace, safe="/")),
            preempted=preempted,
        )

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        run = self._details(ref)
        if run is None:
            self._get(ref)  # a job without details may be none at all
            return
        over, ended = states.state_of(str(run.get("status"))).terminal, states.time_of(run.get("endTimeUtc"))
        # The log's last bytes may come after the job's end.
        over = over and (ended is None or (datetime.now(UTC) - ended).total_seconds() > SETTLED_S)
        yield from lines(self._azure, ref.id, run.get("logFiles") or {}, over, cursor)

    def cancel(self, ref: JobRef) -> None:
        job = self._get(ref)
        if states.state_of(str(job["properties"].get("status"))).terminal:
            return
        try:
            self._azure.call("POST", f"{_path(ref)}/cancel", f"stopping {ref.id}", version=API_VERSION)
        except BackendError:
            # It ended by itself meanwhile, or somebody else has asked.
            now = str(self._get(ref)["properties"].get("status"))
            if now != "CancelRequested" and not states.state_of(now).terminal:
                raise
        with contextlib.suppress(LaunchError):  # it only tells this cancellation from a lost cluster's
            self._storage_of(ref, job).put(_cancelled(ref.id), b"")

    def download(self, ref: JobRef, to: Path) -> None:
        self._storage_of(ref, self._get(ref)).bring_output(_output(ref.id), to)

    def release(self, ref: JobRef) -> None:
        job = self._get(ref)
        for kin in self._kin(ref, job):
            if not states.state_of(str(kin["properties"].get("status"))).terminal:
                name = kin["name"]
                raise ConfigError(f"{ref.id} can't be removed: {name} still runs", f"launch cancel {name}")
        storage = self._storage_of(ref, job)
        if sha256 := _bundle_of(job):
            storage.drop_bundle(sha256, ref.id)
        storage.remove(f"{ROOT}/jobs/{ref.id}/")
        # The job itself goes last: a removal that was interrupted can be repeated.
        self._azure.call("DELETE", _path(ref), f"removing {ref.id}", version=API_VERSION)
        until = time.monotonic() + REMOVAL_S
        while self._look(ref) is not None:
            if time.monotonic() > until:
                raise BackendError(
                    f"Azure ML still removes {ref.id} after {REMOVAL_S} s; its files are gone",
                    f"launch release {ref.id} again, later",
                )
            time.sleep(0.5)

    def find(self, site: Site, token: str, region: str | None = None) -> JobRef | None:
        ref = JobRef(self.name, scope_of(site), token)
        return ref if self._look(ref) is not None else None

    def discover(self, site: Site, region: str | None = None) -> Iterable[JobRef]:
        here = region is None or region == site.get("region")
        for scope in [scope_of(site)] if here else self._workspaces(site, str(region)):
            for job in self._tagged(scope, JOB_TAG):
                yield JobRef(self.name, scope, job["name"])

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        return self._storage_of(ref, self._get(ref)).record(ref.id)

    def bundle(self, ref: JobRef, to: Path | None = None) -> Bundle:
        return self._storage_of(ref, self._get(ref)).bring_bundle(ref.id, to)

    def put_secret(self, site: Site, name: str, value: str) -> str:
        vault = site.get("key_vault")
        if vault is None:
            raise ConfigError("backend azureml is not set up: key_vault", "launch setup azureml --key-vault ...")
        url = f"{VAULT.format(vault=vault)}/secrets/{vault_name(name)}"
        body = {"value": value, "tags": {"finelaunch_secret": name}}
        doing = f"storing {name} in Key Vault {vault}"
        try:
            self._azure.call("PUT", url, doing, version=VAULT_VERSION, body=body, scope=VAULT_SCOPE)
        except BackendError as exc:
            if "deleted but recoverable" not in exc.message:
                raise
            raise BackendError(
                f"{doing}: a secret of that name was deleted there and can still be recovered",
                f"az keyvault secret recover --vault-name {vault} --name {vault_name(name)}, "
                "then the same command again",
            ) from exc
        return f"Key Vault {vault}, {vault_name(name)}"

    def _put_environment(self, environment: Mapping[str, Any]) -> None:
        """Its version is that of its content: what is there is the same."""
        doing = "registering the job's image with the workspace"
        try:
            self._azure.call("GET", environment["id"], doing, version=API_VERSION)
        except JobNotFoundError:
            body = {"properties": environment["properties"]}
            self._azure.call("PUT", environment["id"], doing, version=API_VERSION, body=body)

    def _storage(self, scope: str, datastore: str) -> Storage:
        made = Storage(self._azure, workspace_path(scope), datastore)
        return self._stores.setdefault((scope, datastore), made)

    def _storage_of(self, ref: JobRef, job: Mapping[str, Any]) -> Storage:
        """The datastore that a job was given."""
        output = (job["properties"].get("outputs") or {}).get(OUTPUT) or {}
        found = DATASTORE.search(str(output.get("uri")))
        return self._storage(ref.scope, found[1] if found else DEFAULT_DATASTORE)

    def _get(self, ref: JobRef) -> dict[str, Any]:
        return self._azure.call("GET", _path(ref), f"looking at {ref.id}", version=API_VERSION)

    def _look(self, ref: JobRef) -> dict[str, Any] | None:
        try:
            return self._get(ref)
        except JobNotFoundError:
            return None

    def _details(self, ref: JobRef) -> dict[str, Any] | None:
        """What the run history has: times, error, the log's files. None while it has nothing.

        Its address is in the workspace's discovery document; azure-ai-ml 1.35.2 asks the same.
        """
        path = workspace_path(ref.scope)
        if ref.scope not in self._histories:
            doing = f"looking at workspace {path.rpartition('/')[2]}"
            told = self._azure.call("GET", path, doing, version="2024-10-01")
            if not (discovery := told.get("properties", {}).get("discoveryUrl")):
                raise BackendError(f"{doing}: Azure does not say where its run history is", "see the workspace")
            found = self._azure.call("GET", str(discovery), doing, scope=None)
            # The sign-in goes there: nowhere but to Azure.
            host = urlsplit(str(found.get("api"))).hostname or ""
            if not host.endswith(".azureml.ms"):
                raise BackendError(f"{doing}: its service is at {host or 'no address'}", "see the workspace")
            self._histories[ref.scope] = f"https://{host}"
        url = f"{self._histories[ref.scope]}/history/v1.0{path}/runs/{ref.id}/details"
        with contextlib.suppress(JobNotFoundError):
            return self._azure.call("GET", url, f"looking at the run of {ref.id}")
        return None

    def _left(self, job: Mapping[str, Any], name: str) -> dict[str, Any]:
        """A file that the job left in its output folder; empty where there is none to read."""
        ref = JobRef(self.name, _scope(job["id"]), job["name"])
        try:
            found = json.loads(self._storage_of(ref, job).get(f"{_output(ref.id)}{name}") or b"{}")
        except (UnreachableError, CredentialsError):  # the next look may read it
            raise
        except (LaunchError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _may_be_taken(self, ref: JobRef, job: Mapping[str, Any], state: JobState) -> bool:
        """Is the job on spot, serverless or on a low-priority cluster, and has nobody cancelled it with launch?"""
        properties = job["properties"]
        if state == JobState.CANCELLED and self._storage_of(ref, job).get(_cancelled(ref.id)) is not None:
            return False
        if not (compute := properties.get("computeId")):
            return bool((properties.get("queueSettings") or {}).get("jobTier") == "Spot")
        try:
            told = self._azure.call("GET", compute, f"looking at the compute of {ref.id}", version="2024-10-01")
        except JobNotFoundError:
            return False
        return bool((told.get("properties", {}).get("properties") or {}).get("vmPriority") == "LowPriority")

    def _interruptions(self, ref: JobRef, job: Mapping[str, Any], state: JobState, has_run: bool) -> int:
        """How often a spot job was thrown back. Azure ML does not count: its starts are in its events.

        The newest event may be on its way, so what was seen once holds.
        """
        properties = job["properties"]
        spot = (properties.get("queueSettings") or {}).get("jobTier") == "Spot" or properties.get("computeId")
        if not has_run or not spot:  # a cluster's priority is not the job's to say
            return self._interrupted.get(ref, 0)
        count = max(self._starts(ref, job), 1) - (0 if state in BEFORE_RUNNING else 1)
        self._interrupted[ref] = max(count, self._interrupted.get(ref, 0))
        return self._interrupted[ref]

    def _starts(self, ref: JobRef, job: Mapping[str, Any]) -> int:
        """How often the entrypoint has begun, by its events in the output folder; read when they have changed."""
        key = f"{_output(ref.id)}events.jsonl"
        known = self._events.get(ref, (0, 0))
        with contextlib.suppress(LaunchError):
            storage = self._storage_of(ref, job)
            size = dict(storage.keys(key)).get(key, 0)
            if size != known[0]:
                runs = re.findall(rb'^\{"run": "([^"]+)"', storage.get(key) or b"", re.MULTILINE)
                known = self._events[ref] = (size, len(set(runs)))
        return known[1]

    def _kin(self, ref: JobRef, job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The job and, where its checkpoints are those of a lineage, the others that go on from them."""
        tags = job["properties"].get("tags") or {}
        if tags.get(LINEAGE_TAG) != ref.id:
            return [job]
        return [job, *(j for j in self._tagged(ref.scope, LINEAGE_TAG) if _tag(j, LINEAGE_TAG) == ref.id)]

    def _workspaces(self, site: Site, region: str) -> list[str]:
        """The subscription's workspaces in a region, as scopes: a workspace has one region."""
        url = f"/subscriptions/{site.need('subscription')}/providers/Microsoft.MachineLearningServices/workspaces"
        found = self._azure.pages(url, "listing workspaces", "2024-10-01")
        return [_scope(space["id"]) for space in found if space.get("location") == region]

    def _tagged(self, scope: str, tag: str) -> Iterator[dict[str, Any]]:
        """The workspace's jobs that have the tag. https://learn.microsoft.com/rest/api/azureml/jobs/list"""
        url, doing = f"{workspace_path(scope)}/jobs", "looking for our jobs"
        for job in self._azure.pages(url, doing, API_VERSION, {"tag": tag}):
            if _tag(job, tag) is not None:
                yield job


def scope_of(site: Site) -> str:
    """The workspace as references have it."""
    return ":".join(site.need(name) for name in ("subscription", "resource_group", "workspace"))


def _scope(job_id: str) -> str:
    part = job_id.strip("/").split("/")
    return f"{part[1]}:{part[3]}:{part[7]}"


def _path(ref: JobRef) -> str:
    return f"{workspace_path(ref.scope)}/jobs/{quote(ref.id, safe='')}"


def _output(token: str) -> str:
    return f"{ROOT}/jobs/{token}/output/"


def _cancelled(token: str) -> str:
    """The mark of a job that launch has cancelled."""
    return f"{ROOT}/jobs/{token}/cancelled"


def _tag(job: Mapping[str, Any], tag: str) -> str | None:
    return (job["properties"].get("tags") or {}).get(tag)


def _bundle_of(job: Mapping[str, Any]) -> str | None:
    uri = (job["properties"].get("inputs") or {}).get("bundle", {}).get("uri", "")
    found = BUNDLE.search(str(uri))
    return found[1] if found else None


def _is(job: Mapping[str, Any], plan: Plan) -> bool:
    """Is it the very job of the plan?"""
    return _tag(job, JOB_TAG) == plan.token and _bundle_of(job) == plan.bundle.sha256
