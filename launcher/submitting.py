"""A job's start: recorded before anything is sent, and looked up where the answer was lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import psutil

from backends.base import Backend, JobRef, JobState, Plan, Progress
from launcher.discovery import Discovery
from launcher.errors import JobNotFoundError, LaunchError, UnreachableError
from launcher.planning import Planned, estimate_json
from launcher.site import load_site
from launcher.store import SUBMITTING, JobRecord, Store


class Submitting:
    """Starts jobs, and knows again those whose launcher did not hear that they had started."""

    def __init__(self, store: Store, backend: Callable[[str], Backend], discovery: Discovery) -> None:
        self._store = store
        self._backend = backend
        self._discovery = discovery

    def submit(self, planned: Planned, progress: Progress) -> JobRecord:
        """Record the job, then put it in place and start it. The record is there before anything is sent."""
        plan, resumes = planned.plan, planned.resumes
        target = self._backend(plan.offer.backend)
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
                resubmits=planned.resubmits,
                submitter=_this_process(),
                owner=plan.site.owner,
            )
        )
        try:
            target.stage(plan, progress)
            ref = target.submit(plan)
        except BaseException as exc:
            runs = self._runs_all_the_same(plan, exc)
            if not (runs and isinstance(exc, LaunchError)):
                raise
        else:
            self._note_started(plan.token, ref)
        return self._again(plan.token)

    def looked_up(self, record: JobRecord) -> JobRecord:
        """A job without a reference: found at its backend, or said never to have run.

        Also one that was said so before: a vendor may show a job only some time after it was created.
        Raises what the backend does when it can't be asked.
        """
        if not record.over and record.submitter and _process_lives(record.submitter):
            return record
        job = record.job()
        site = load_site(record.backend, self._backend(record.backend).facts, job)
        if not self._discovery.adopt(job, record.backend, site, record.id):
            self._bury(record.id, record.backend, "the launcher was stopped before the job was started")
        return self._again(record.id)

    def _note_started(self, job_id: str, ref: JobRef) -> None:
        """Raises LaunchError where that can't be, with what the user has to know of a job that costs money."""
        try:
            self._store.adopt(job_id, str(ref))
        except LaunchError as exc:
            raise LaunchError(
                f"{job_id} was started, but that could not be noted: {exc.message}",
                f"{exc.hint or 'mend that'}; then launch show {job_id} finds it, launch cancel {job_id} stops it",
            ) from exc

    def _runs_all_the_same(self, plan: Plan, exc: BaseException) -> bool:
        """Whether the job runs though submit did not come to its end: that costs money, so it is looked up."""
        try:
            if self._discovery.adopt(plan.job, plan.offer.backend, plan.site, plan.token):
                return True
        except LaunchError:
            self._store.update(plan.token, submitter=None)  # not known: the next look at the job asks again
            return False
        if isinstance(exc, LaunchError) and not isinstance(exc, UnreachableError):
            self._store.update(
                plan.token,
                state=JobState.FAILED,
                reason=exc.message,
                ended=datetime.now(UTC),
                drained=1,
                submitter=None,
            )
        else:  # it may have been heard all the same
            self._bury(plan.token, plan.offer.backend, f"not submitted: {type(exc).__name__}")
        return False

    def _bury(self, job_id: str, backend: str, why: str) -> None:
        """Final as every end is, but for a job that its backend turns out to know (Store.adopt)."""
        reason = f"{why}; nothing runs that {backend} knows of now (launch show {job_id} asks again)"
        self._store.update(job_id, state=JobState.FAILED, reason=reason, ended=datetime.now(UTC), drained=1)

    def _again(self, job_id: str) -> JobRecord:
        record = self._store.get(job_id)
        if record is None:
            raise JobNotFoundError(f"{job_id} is no longer in the record", "launch list")
        return record


def _this_process() -> str:
    me = psutil.Process()
    return json.dumps({"pid": me.pid, "created": me.create_time()})


def _process_lives(note: str) -> bool:
    known = json.loads(note)
    try:
        return bool(abs(psutil.Process(known["pid"]).create_time() - known["created"]) < 1.0)
    except psutil.Error:
        return False
