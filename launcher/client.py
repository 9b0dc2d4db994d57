"""A job's life, once for all backends: plan, submit, follow, resume, fetch. No vendor's word stands here."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import psutil

from backends import registry
from backends.base import (
    Backend,
    JobRef,
    JobState,
    JobStatus,
    LogLine,
    Plan,
    Problem,
    Progress,
    RunsHere,
    Site,
)
from backends.registry import BUILTIN
from launcher.bundle import build_bundle, bundle_from_folder
from launcher.data.check import DataReport, check_data
from launcher.errors import (
    BackendError,
    ConfigError,
    JobNotFoundError,
    LaunchError,
    UnsupportedError,
)
from launcher.events import Event, from_line
from launcher.planning import Planned, check, estimate_json, refuse_unset_facts, render, with_dry_run
from launcher.site import load_site
from launcher.spec import JobSpec
from launcher.store import SUBMITTING, JobRecord, Store

POLL_S = 0.5


class Client:
    """Jobs of the record under `home`, on every backend. Making one does no I/O."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._store = Store(home / "record.db")
        self._backends: dict[str, Backend] = {}

    def plan(self, job: JobSpec, folder: Path, backend: str | None = None, dry_run: bool = False) -> Planned:
        """Check data and job, build the bundle, choose hardware and render the request; sends nothing."""
        name = backend or job.backend
        target = self._backend(name)
        if dry_run:
            if not target.capabilities.dry_run:
                raise UnsupportedError(
                    f"--dry-run: backend {name} can't run a few steps only",
                    f"launch plan --backend {name} shows the request; --backend local runs some steps here",
                )
            job = with_dry_run(job)
        report = check_data(job, folder)
        bundle = build_bundle(job, folder, self.home / "bundles")
        token = f"{job.name}-{secrets.token_hex(3)}"
        plan = render(target, job, bundle, token, token)
        return Planned(plan=plan, data=report, unchecked=check(target, plan))

    def can_submit(self, backend: str) -> bool:
        """False for a backend that only plans in this version."""
        return self._backend(backend).capabilities.submits

    def explain(self, plan: Plan) -> Sequence[tuple[str, str]]:
        """The backend's own account of the request, for a person."""
        return self._backend(plan.offer.backend).explain(plan)

    def refuse_unready(self, plan: Plan) -> None:
        """Raise LaunchError when the plan can't be submitted: unset facts, a missing extra, a planning backend."""
        target = self._backend(plan.offer.backend)
        if not target.capabilities.submits:
            raise UnsupportedError(
                f"backend {target.name}: this version shows the exact request and can't submit it",
                f"launch plan --backend {target.name} prints it; launch run --backend local trains here",
            )
        refuse_unset_facts(plan)
        target.validate(plan.request)

    def submit(self, planned: Planned, progress: Progress, resumes: JobRecord | None = None) -> JobRecord:
        """Record the job, then put it in place and start it. The record is there before anything is sent."""
        plan = planned.plan
        self.refuse_unready(plan)
        self._rebuild_if_lost()
        self._store.add(
            JobRecord(
                id=plan.token,
                name=plan.job.name,
                backend=plan.offer.backend,
                state=SUBMITTING,
                created=datetime.now(UTC),
                lineage=plan.lineage,
                bundle_sha256=plan.bundle.sha256,
                spec=plan.job.model_dump(mode="json"),
                data=planned.data.as_dict() if planned.data else {},
                estimate=estimate_json(plan),
                resumes=resumes.id if resumes else None,
                submitter=_this_process(),
            )
        )
        target = self._backend(plan.offer.backend)
        try:
            target.stage(plan, progress)
            ref = target.submit(plan)
        except BaseException as exc:
            with contextlib.suppress(LaunchError):
                if self._adopt(plan.offer.backend, plan.token):  # interrupted after the job had started
                    raise
            reason = exc.message if isinstance(exc, LaunchError) else f"not submitted: {type(exc).__name__}"
            self._store.update(plan.token, state=JobState.FAILED, reason=reason, ended=datetime.now(UTC))
            raise
        self._store.update(plan.token, state=JobState.STARTING, ref=str(ref))
        return self.get(plan.token)

    def get(self, key: str | None = None) -> JobRecord:
        """The job with this id, reference or unique beginning of an id (None: the newest), refreshed."""
        return self.refresh(self._look_up(key))

    def jobs(self) -> list[JobRecord]:
        """Every job, newest first, refreshed; a lost record is rebuilt from what the backends know.

        A job whose backend can't be asked now stands there as it was last seen.
        """
        self._rebuild_if_lost()
        found = []
        for record in self._store.find(""):
            try:
                found.append(self.refresh(record))
            except LaunchError:
                found.append(record)
        return found

    def refresh(self, record: JobRecord) -> JobRecord:
        """The record with the backend's newest events and status."""
        if record.over:
            return record
        if record.ref is None:
            return self._adopt_or_bury(record)
        try:
            self._look(record, record.cursor)
        except JobNotFoundError as exc:
            self._store.update(record.id, state=JobState.UNKNOWN, reason=exc.message)
        return self._again(record.id)

    def follow(self, job_id: str, from_start: bool = True) -> Iterator[LogLine | Event | JobStatus]:
        """What the job says and does, live, until it is over and its log is drained.

        Nothing twice, and nothing missed: what was recorded before this call comes only with from_start.
        """
        record = self._look_up(job_id)
        if record.ref is None:
            record = self.refresh(record)
        if record.ref is None:
            raise JobNotFoundError(
                f"{record.id} was never started: {record.reason}", "launch run starts a new one"
            )
        # Its own cursor: another launcher that looks at the job moves the recorded one.
        cursor = None if from_start else record.cursor
        state = record.state
        while True:
            items, status, cursor = self._look(record, cursor)
            yield from items
            if status.state != state or status.state.terminal:
                yield status
            if status.state.terminal:
                return
            state = status.state
            time.sleep(POLL_S)

    def events(self, job_id: str) -> list[Event]:
        """The recorded events, oldest first."""
        return self._store.events(job_id)

    def log_lines(self, job_id: str) -> Iterator[LogLine]:
        """Every whole line of the job's log so far."""
        record = self.get(job_id)
        if record.ref is None:
            return iter(())
        return self._backend(record.backend).logs(JobRef.parse(record.ref))

    def cancel(self, job_id: str) -> JobRecord:
        """Ask the job to checkpoint and stop; returns at once. Silent when it is over."""
        record = self.get(job_id)
        if record.ref is not None and not record.over:
            self._backend(record.backend).cancel(JobRef.parse(record.ref))
        return self.refresh(record)

    def resume(self, job_id: str, progress: Progress) -> JobRecord:
        """Start a new job that goes on from the checkpoints of a job that ended early."""
        old = self.get(job_id)
        if not old.over:
            raise ConfigError(f"{old.id} is {old.state}: it needs no resume", f"launch watch {old.id}")
        if old.state == JobState.SUCCEEDED:
            raise ConfigError(f"{old.id} is done: there is nothing to resume", f"launch show {old.id}")
        job = JobSpec.model_validate(old.spec)
        target = self._backend(old.backend)
        siblings = [r for r in self._store.find(old.lineage) if r.lineage == old.lineage]
        busy = [r for r in siblings if not self.refresh(r).over]
        if busy:
            raise ConfigError(f"{busy[0].id} already goes on from {old.lineage}", f"launch watch {busy[0].id}")
        token = _next_token(old.lineage, [r.id for r in siblings])
        bundle = bundle_from_folder(self._staged(old))
        plan = render(target, job, bundle, token, old.lineage)
        report = DataReport(**old.data) if old.data else None
        return self.submit(Planned(plan=plan, data=report), progress, resumes=old)

    def fetch(self, job_id: str, to: Path) -> Path:
        """Download the job's output to `to`, each file verified; safe to repeat after an interruption."""
        record = self.get(job_id)
        if record.ref is None:
            raise JobNotFoundError(f"{record.id} was never started", "launch run")
        self._backend(record.backend).download(JobRef.parse(record.ref), to)
        return to

    def set_evaluation(self, job_id: str, which: str, metrics: Mapping[str, Any]) -> None:
        """Keep an evaluation made after the job."""
        self._store.set_metrics(job_id, which, metrics)

    def here(self) -> RunsHere:
        """What runs the entrypoint's modules on this machine."""
        found = self._backend("local")
        assert isinstance(found, RunsHere)
        return found

    def check_backends(self) -> list[tuple[str, str, list[Problem]]]:
        """(name, what it is, problems) of every backend that is known here."""
        found = []
        for name in registry.names():
            summary = BUILTIN[name].summary if name in BUILTIN else "installed plugin"
            try:
                problems = self._check(self._backend(name))
            except LaunchError as exc:
                problems = [Problem(what=exc.message, fix=exc.hint or "launch doctor --debug", fatal=False)]
            found.append((name, summary, problems))
        return found

    def _site(self, backend: str) -> Site:
        return load_site(backend, self._backend(backend).facts)

    def _check(self, target: Backend) -> list[Problem]:
        """What the backend itself finds, and the facts that it has not been told."""
        site = self._site(target.name)
        unset = [fact.name for fact in target.facts if fact.required and not site.get(fact.name)]
        problems = []
        if unset:
            options = " ".join(f"--{name} ..." for name in unset)
            what = f"not set up: {', '.join(unset)}"
            problems.append(Problem(what=what, fix=f"launch setup {target.name} {options}"))
        return [*problems, *target.check(site)]

    def _look_up(self, key: str | None) -> JobRecord:
        self._rebuild_if_lost()
        if key is None:
            newest = self._store.find("")
            if not newest:
                raise JobNotFoundError("there are no jobs yet", "launch init, then launch run")
            return newest[0]
        wanted = JobRef.parse(key).id if "://" in key else key
        exact = self._store.get(wanted)
        found = [exact] if exact else self._store.find(wanted)
        if not found:
            raise JobNotFoundError(f"there is no job {key!r}", "launch list")
        if len(found) > 1:
            ids = ", ".join(record.id for record in found[:5])
            raise JobNotFoundError(f"{key!r} is the beginning of {len(found)} jobs: {ids}", "write more of it")
        return found[0]

    def _look(self, record: JobRecord, cursor: str | None) -> tuple[list[LogLine | Event], JobStatus, str | None]:
        """The lines and events after `cursor`, the status, the cursor behind them; events and status recorded."""
        assert record.ref is not None
        ref = JobRef.parse(record.ref)
        target = self._backend(record.backend)
        # Status before log: what the log holds after a final status is all there will ever be.
        status = target.status(ref)
        items: list[LogLine | Event] = []
        for line in target.logs(ref, cursor):
            items.append(from_line(line.text) or line)
            cursor = line.cursor
        self._store.add_events(record.id, [i for i in items if isinstance(i, Event)], cursor)
        self._store.update(
            record.id, state=status.state, reason=status.reason, started=status.started, ended=status.ended,
            interruptions=status.interruptions, folder=_local_path(status.url),
        )  # fmt: skip
        return items, status, cursor

    def _adopt_or_bury(self, record: JobRecord) -> JobRecord:
        """A job whose launcher ended before it noted the answer: find it at the backend, or say it never ran."""
        if record.submitter and _process_lives(record.submitter):
            return record
        if self._adopt(record.backend, record.id):
            return self.refresh(self._again(record.id))
        self._store.update(
            record.id,
            state=JobState.FAILED,
            reason="the launcher was stopped before the job was started; nothing runs",
            ended=datetime.now(UTC),
        )
        return self._again(record.id)

    def _adopt(self, backend: str, token: str) -> bool:
        """Record the reference of a job that its backend knows though its launcher did not hear so."""
        ref = next((r for r in self._backend(backend).discover(self._site(backend)) if r.id == token), None)
        if ref is not None:
            self._store.update(token, ref=str(ref), state=JobState.STARTING)
        return ref is not None

    def _rebuild_if_lost(self) -> None:
        """When the record's file is gone: take in every job that the built-in backends know.

        A backend that can't be asked, and a job whose own record is damaged, is left out.
        """
        if self._store.exists():
            return
        found = []
        for name in BUILTIN:
            with contextlib.suppress(LaunchError):
                target = self._backend(name)
                for ref in target.discover(self._site(name)):
                    with contextlib.suppress(LaunchError, KeyError, TypeError, ValueError):
                        found.append(_from_backend(ref, target.recorded(ref)))
        if found:
            self._store.add_missing(found)

    def _staged(self, record: JobRecord) -> Path:
        """The input folder of an earlier job on this machine."""
        if record.folder is None:
            raise BackendError(
                f"the files of {record.id} are not on this machine", "launch run with the job file instead"
            )
        return Path(record.folder).parent / "input"

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            self._backends[name] = registry.create(name, self.home)
        return self._backends[name]

    def _again(self, job_id: str) -> JobRecord:
        record = self._store.get(job_id)
        if record is None:
            raise JobNotFoundError(f"{job_id} is no longer in the record", "launch list")
        return record


def _next_token(lineage: str, taken: Sequence[str]) -> str:
    """LINEAGE-r2, -r3, ...: one above the highest that is taken."""
    numbers = [id.removeprefix(f"{lineage}-r") for id in taken]
    return f"{lineage}-r{max((int(n) for n in numbers if n.isdecimal()), default=1) + 1}"


def _from_backend(ref: JobRef, recorded: Mapping[str, Any]) -> JobRecord:
    return JobRecord(
        id=ref.id,
        name=recorded["job"]["name"],
        backend=ref.backend,
        ref=str(ref),
        state=JobState.UNKNOWN,
        created=datetime.fromisoformat(recorded["created"]),
        lineage=recorded["lineage"],
        resumes=recorded["lineage"] if recorded["lineage"] != ref.id else None,
        bundle_sha256=recorded["bundle_sha256"],
        spec=recorded["job"],
    )


def _local_path(url: str | None) -> str | None:
    """The path of a file:// URL, None for any other."""
    parts = urlsplit(url or "")
    return url2pathname(parts.path) if parts.scheme == "file" else None


def _this_process() -> str:
    me = psutil.Process()
    return json.dumps({"pid": me.pid, "created": me.create_time()})


def _process_lives(note: str) -> bool:
    known = json.loads(note)
    try:
        return bool(abs(psutil.Process(known["pid"]).create_time() - known["created"]) < 1.0)
    except psutil.Error:
        return False
