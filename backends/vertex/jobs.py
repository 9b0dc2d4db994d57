"""Custom jobs after the plan: sent, looked at, stopped, their output fetched, what they left removed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from backends.base import Bundle, JobRef, JobState, JobStatus, LogLine, Plan, Progress, Site
from backends.storage import ROOT
from backends.vertex import logs
from backends.vertex.checks import PARENT, parsed
from backends.vertex.google import CALL_S, Google, is_passing, patience
from backends.vertex.places import JOB_LABEL, LINEAGE_LABEL
from backends.vertex.states import is_ending, state_of, status_of, was_thrown_back
from backends.vertex.storage import Storage
from launcher.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    JobNotFoundError,
    LaunchError,
    UnreachableError,
)
from train_entry.failure import FAILURE

SEE_LOG = "To find out more about why your job exited"
"""With which Vertex ends the reason of a failure: a page's address, of the log that `launch logs` shows."""
STOCKOUT, WAY_OUT = "Resources are insufficient", "resources.max_wait_hours waits longer for them (flex-start)"
"""https://cloud.google.com/vertex-ai/docs/training/understanding-training-service (2026-11-30)"""
CONSOLE = "https://console.cloud.google.com/agent-platform/locations/{region}/training/{number}?project={project}"
WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Between two tries to create a job; in between it is looked for."""
LOOKS_S = (1.0, 2.0, 3.0, 4.0)
"""Between two looks for a job that was just made, perhaps: the list may show it some seconds later only."""
STOPPED_ITSELF = "stopped before it was done (a signal or its time limit); launch resume goes on"
ERROR_LINES = 3
REMOVED_S = 120.0
REMOVAL_POLL_S = 1.0
LATER = "the same command again, later"


class VertexJobs:
    """The half of the backend that talks to Google. Making one does no I/O."""

    name: str

    def __init__(self, home: Path) -> None:
        self._googles: dict[str, Google] = {}
        self._names: dict[JobRef, str] = {}
        self._made: dict[JobRef, tuple[str, datetime]] = {}
        self._starts: dict[JobRef, tuple[int, int]] = {}
        self._interruptions: dict[JobRef, int] = {}
        self._unsent: set[str] = set()
        """Tokens whose job, as this process knows, was not made: nobody need wait for it to be listed."""

    def stage(self, plan: Plan, progress: Progress) -> None:
        google = self._google(scope_of(plan.request["parent"]))
        storage = Storage(google, plan.site.need("bucket"), plan.site.get("kms_key"))
        self._unsent.add(plan.token)
        storage.put_bundle(plan.bundle, plan.token, progress)
        storage.put_record(plan)

    def submit(self, plan: Plan) -> JobRef:
        parent = plan.request["parent"]
        ref = JobRef(self.name, scope_of(parent), plan.token)
        google, job = self._google(ref.scope), parsed(plan.request["customJob"])
        with google.errors(f"starting {plan.token}"):
            for tries, wait in enumerate((*WAITS_S, None)):
                # Vertex takes no token of the client's: an answer that was lost is told by the label alone.
                found, created = self._look_up(ref), tries
                if found is None:
                    self._unsent.discard(plan.token)
                    try:
                        found = google.jobs().create_custom_job(parent=parent, custom_job=job, timeout=CALL_S)
                    except Exception as exc:
                        passing = is_passing(exc)
                        if not passing and tries == 0:  # a refusal
                            self._unsent.add(plan.token)
                        if wait is None or not passing:
                            raise
                        time.sleep(wait)
                        continue
                    self._names[ref], created = found.name, tries + 1
                if created > 1:
                    self._keep_one(ref, found)
                break
        return ref

    def _keep_one(self, ref: JobRef, made: Any) -> None:
        """Stop all but the oldest of the jobs that tries without an answer have made, beside `made`."""
        for wait in (0.0, *LOOKS_S):
            time.sleep(wait)
            found = self._all(ref, made)
            if len(found) > 1:
                break
        oldest, *others = found
        self._names[ref] = oldest.name
        for job in others:
            self._stop(ref, job)

    def status(self, ref: JobRef) -> JobStatus:
        job = self._job(ref)
        google, number = self._google(ref.scope), _number(job)
        url = CONSOLE.format(region=google.region, number=number, project=google.project)
        starts = self._count_starts(ref, job) if job.start_time is not None else 0
        if was_thrown_back(job):  # a start that was counted may have begun after the job was read
            job = self._job(ref)
        status = status_of(job, url, starts, self._reason(ref, job))
        # The bucket may show a start later than Vertex does: what was once seen stays.
        seen = self._interruptions[ref] = max(self._interruptions.get(ref, 0), status.interruptions)
        return dataclasses.replace(status, interruptions=seen)

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        if ref not in self._made:
            self._job(ref)
        number, since = self._made[ref]
        yield from logs.lines(self._google(ref.scope), number, since, cursor)

    def cancel(self, ref: JobRef) -> None:
        for job in self._all(ref, self._job(ref)):
            self._stop(ref, job)

    def _stop(self, ref: JobRef, job: Any) -> None:
        from google.api_core.exceptions import BadRequest

        google = self._google(ref.scope)
        if is_ending(job):
            return
        with google.errors(f"stopping {ref.id}"):
            try:
                google.jobs().cancel_custom_job(name=job.name, retry=patience(), timeout=CALL_S)
            except BadRequest:  # it ended by itself meanwhile, or somebody else stops it
                if not is_ending(google.jobs().get_custom_job(name=job.name, retry=patience(), timeout=CALL_S)):
                    raise

    def download(self, ref: JobRef, to: Path) -> None:
        self._storage_of(ref, self._job(ref)).bring_output(_output_key(ref.id), to)

    def release(self, ref: JobRef) -> None:
        job = self._job(ref)
        google = self._google(ref.scope)
        own = self._all(ref, job)
        kin = list(own)
        if job.labels.get(LINEAGE_LABEL) == ref.id:  # its checkpoints are those of the jobs that go on from it
            kin += self._list(google, f'labels.{LINEAGE_LABEL}="{ref.id}"')
        for one in kin:
            if not state_of(one).terminal:
                raise ConfigError(
                    f"{ref.id} can't be removed: {one.display_name} still runs",
                    f"launch cancel {one.display_name}",
                )
        storage = self._storage_of(ref, job)
        with contextlib.suppress(BackendError):  # a record that is gone names no bundle
            storage.drop_bundle(storage.record(ref.id)["bundle_sha256"], ref.id)
        storage.remove(f"{ROOT}/jobs/{ref.id}/")
        # The job itself goes last: a removal that was interrupted can be repeated.
        for one in own:
            self._delete(google, one.name, ref)

    def find(self, site: Site, token: str, region: str | None = None) -> JobRef | None:
        scope = f"{region or site.need('region')}.{site.need('project')}"
        ref = JobRef(self.name, scope, token)
        with self._google(scope).errors(f"looking for {token}"):
            for wait in (0.0, *(() if token in self._unsent else LOOKS_S)):
                time.sleep(wait)
                if self._look_up(ref) is not None:
                    return ref
        return None

    def discover(self, site: Site, region: str | None = None) -> Iterable[JobRef]:
        scope = f"{region or site.need('region')}.{site.need('project')}"
        tokens = [job.labels[JOB_LABEL] for job in self._list(self._google(scope), f"labels.{JOB_LABEL}:*")]
        for token in dict.fromkeys(tokens):
            yield JobRef(self.name, scope, token)

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        return self._storage_of(ref, self._job(ref)).record(ref.id)

    def bundle(self, ref: JobRef, to: Path | None = None) -> Bundle:
        return self._storage_of(ref, self._job(ref)).bring_bundle(ref.id, to)

    def put_secret(self, site: Site, name: str, value: str) -> str:
        from google.api_core.exceptions import Conflict

        project = site.get("project")
        if project is None:
            raise ConfigError("backend vertex is not set up: project", "launch setup vertex --project ...")
        google = self._google(f"{site.get('region') or 'global'}.{project}")
        doing, home = f"storing {name} in Secret Manager", f"v1/projects/{project}/secrets"
        try:
            google.ask("secretmanager", f"{home}/{name}", doing)
        except JobNotFoundError:
            made = {"replication": {"automatic": {}}, "labels": {"finelaunch": "secret"}}
            try:
                google.ask("secretmanager", f"{home}?secretId={name}", doing, made)
            except BackendError as exc:
                if not isinstance(exc.__cause__, Conflict):  # made by a try whose answer was lost
                    raise
        payload = {"payload": {"data": b64encode(value.encode()).decode()}}
        google.ask("secretmanager", f"{home}/{name}:addVersion", doing, payload)
        return f"Secret Manager of {project}, {name}"

    def _google(self, scope: str) -> Google:
        region, _, project = scope.partition(".")
        return self._googles.setdefault(scope, Google(project, region))

    def _storage_of(self, ref: JobRef, job: Any) -> Storage:
        """The bucket that a job was given."""
        uri = job.job_spec.base_output_directory.output_uri_prefix
        bucket = uri.removeprefix("gs://").partition("/")[0]
        return Storage(self._google(ref.scope), bucket, job.encryption_spec.kms_key_name or None)

    def _job(self, ref: JobRef) -> Any:
        """The CustomJob message. Raises JobNotFoundError."""
        from google.api_core.exceptions import NotFound

        google = self._google(ref.scope)
        with google.errors(f"looking at {ref.id}"):
            if ref not in self._names:
                found = self._look_up(ref)
            else:
                try:
                    found = google.jobs().get_custom_job(name=self._names[ref], retry=patience(), timeout=CALL_S)
                except NotFound:
                    del self._names[ref]
                    raise
        if found is None:
            raise JobNotFoundError(f"{google.parent} has no job {ref.id}", "launch list")
        self._made[ref] = (_number(found), found.create_time)
        return found

    def _look_up(self, ref: JobRef) -> Any | None:
        """The job with the token's label; of several, the oldest."""
        found = min(self._labelled(ref), key=_age, default=None)
        if found is not None:
            self._names[ref] = found.name
        return found

    def _all(self, ref: JobRef, known: Any) -> list[Any]:
        """The token's jobs, oldest first; `known` is one that the list may not show yet."""
        return sorted(({known.name: known} | {job.name: job for job in self._labelled(ref)}).values(), key=_age)

    def _labelled(self, ref: JobRef) -> list[Any]:
        return self._list(self._google(ref.scope), f'labels.{JOB_LABEL}="{ref.id}"')

    def _list(self, google: Google, wanted: str) -> list[Any]:
        """https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.customJobs/list"""
        with google.errors("looking for our jobs"):
            asked = {"parent": google.parent, "filter": wanted, "page_size": 100}
            return list(google.jobs().list_custom_jobs(request=asked, retry=patience(), timeout=CALL_S))

    def _count_starts(self, ref: JobRef, job: Any) -> int:
        """How often the entrypoint began, as its events in the bucket say: Vertex keeps no count."""
        storage, key = self._storage_of(ref, job), f"{_output_key(ref.id)}events.jsonl"
        known = self._starts.get(ref)
        try:
            version = storage.version(key)
            if version is None:
                return 0
            if known is None or known[0] != version:
                known = self._starts[ref] = (version, _runs(storage.get(key) or b""))
        except UnreachableError:
            raise
        except BackendError:  # the job's state is worth more than this count
            pass
        return known[1] if known is not None else 0

    def _reason(self, ref: JobRef, job: Any) -> str | None:
        """Why it ended: what the job says itself, else Vertex's words and the last errors of its log."""
        state = state_of(job)
        if state == JobState.CANCELLED:
            return "cancelled"
        if state != JobState.FAILED:
            return None
        storage, said = self._storage_of(ref, job), _in_one_line(job.error.message) or "failed; see the log"
        try:
            if told := storage.get(f"{_output_key(ref.id)}{FAILURE}"):
                return str(json.loads(told)["message"])
            if _stopped_itself(storage.get(f"{_output_key(ref.id)}state.json")):
                return STOPPED_ITSELF
            google = self._google(ref.scope)
            errors = logs.last_errors(google, _number(job), job.create_time, ERROR_LINES)
        except (UnreachableError, CredentialsError):  # the next look knows more, and this word is the last
            raise
        except (LaunchError, ValueError, LookupError, TypeError):  # its words are enough
            return said
        return " | ".join([said, *errors, *([WAY_OUT] if said.startswith(STOCKOUT) else [])])

    def _delete(self, google: Google, name: str, ref: JobRef) -> None:
        """Delete the job and wait for it: the REST client would look for the operation at another address."""
        doing = f"removing {ref.id}"
        with google.errors(doing):
            operation = google.jobs().delete_custom_job(name=name, retry=patience(), timeout=CALL_S).operation
        done, error = operation.done, operation.error.message
        until = time.monotonic() + REMOVED_S
        while not done:
            if time.monotonic() > until:
                raise BackendError(f"{doing}: Google has not done it after {REMOVED_S} s", LATER)
            time.sleep(REMOVAL_POLL_S)
            found = google.ask("vertex", f"v1/{operation.name}", doing)
            done, error = found.get("done"), found.get("error", {}).get("message")
        if error:
            raise BackendError(f"{doing}: Google could not do it: {error}", LATER)
        self._names.pop(ref, None)


def scope_of(parent: str) -> str:
    """`projects/P/locations/R` -> `R.P`: a region has no dot, a project may have some."""
    match = PARENT.fullmatch(parent)
    if match is None:
        raise ConfigError(f"parent: {parent!r} is not projects/PROJECT/locations/REGION", "launch setup vertex")
    return f"{match.group(2)}.{match.group(1)}"


def _output_key(token: str) -> str:
    return f"{ROOT}/jobs/{token}/output/"


def _runs(events: bytes) -> int:
    """Of an events.jsonl: how many starts have got anywhere.

    One that finds a failure that no start can mend says so again and gives up: nothing was interrupted.
    """
    found = set()
    for line in events.splitlines():
        with contextlib.suppress(ValueError, LookupError, TypeError):  # torn by a crash
            event = json.loads(line)
            if event["event"] != "failure":
                found.add(event["run"])
    return len(found)


def _in_one_line(said: str) -> str:
    """Vertex's words for a failure without the address of its log."""
    return " ".join(said.partition(SEE_LOG)[0].split())


def _age(job: Any) -> tuple[datetime, str]:
    return job.create_time, job.name


def _stopped_itself(state: bytes | None) -> bool:
    try:
        return bool(json.loads(state or b"{}").get("state") == "stopped")
    except (ValueError, AttributeError):
        return False


def _number(job: Any) -> str:
    return str(job.name).rpartition("/")[2]
