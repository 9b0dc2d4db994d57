"""Jobs that go on from the checkpoints of another: one that a user resumes, one that a follower submits anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from backends.base import Backend, JobRef, Progress
from backends.container import max_hours
from launcher.data.check import DataReport
from launcher.errors import (
    CapacityError,
    ConfigError,
    CredentialsError,
    LaunchError,
    OverBudgetError,
    UnreachableError,
)
from launcher.observing import Patience, Trouble
from launcher.planning import LEAST_HOURS, Planned, choose, render
from launcher.spec import JobSpec
from launcher.store import JobRecord, Store

MOST_RESUBMITS = 3
"""Of a job that doesn't say `resources.resubmits`."""
LOOK_S = 0.5
"""Between two looks at a job that another launcher submits now."""


class Resuming:
    """`refresh` brings a record up to date; `submit` starts a plan."""

    def __init__(
        self, store: Store, backend: Callable[[str], Backend], refresh: Callable[[JobRecord], JobRecord],
        submit: Callable[[Planned, Progress], JobRecord],
    ) -> None:  # fmt: skip
        self._store = store
        self._backend = backend
        self._refresh = refresh
        self._submit = submit

    def planned(self, old: JobRecord) -> Planned:
        """A job that goes on from one that ended early, with the limits that the user wrote; sends nothing."""
        first = old
        while first.resubmits and (before := self._store.get(first.resumes or "")):
            first = before
        return self._going_on(old, first.job(), 0)

    def successor(self, old: JobRecord) -> str:
        """The id of the job that goes on from `old`. Raises ConfigError when another does already."""
        siblings = self._lineage(old.lineage)
        busy = [record for record in siblings if not self._refresh(record).over]
        if busy:
            raise ConfigError(f"{busy[0].id} already goes on from {old.lineage}", f"launch watch {busy[0].id}")
        return _next_token(old.lineage, [record.id for record in siblings])

    def latest(self, record: JobRecord) -> JobRecord:
        """The job itself, or the one that followers have put in its place by now."""
        while after := next((r for r in self._put_in_place_of(record) if r.ref), None):
            record = after
        return record

    def unwanted(self, record: JobRecord) -> JobRecord:
        """Note that the user wants the job no more, nor what followers put in its place; the last of them.

        Noted first and looked at then; a follower submits first and looks at the note then. So one of the two
        sees the other.
        """
        while True:
            self._store.update(record.id, unwanted=1)
            after = next((r for r in map(self._refresh, self._put_in_place_of(record)) if r.ref), None)
            if after is None:
                return record
            record = after

    def in_place_of(self, lost: JobRecord, watched: bool) -> Generator[Trouble, None, JobRecord | None]:
        """The job that goes on for one that lost its spot capacity, submitted unless it is there; None: none does.

        A job that nobody `watched` is gone on from only where a follower had begun to: looking at what is
        long over spends nothing. Of two followers, and after one that was killed, there is one job. One that
        the user cancels meanwhile is not submitted, or cancelled.
        """
        patience = Patience(self._backend(lost.backend).capabilities.poll_s)
        after = yield from self._found_or_submitted(lost, watched, patience)
        while after is not None and self._is_unwanted(lost) and not self._is_unwanted(after):
            assert after.ref is not None
            try:
                self._backend(after.backend).cancel(JobRef.parse(after.ref))
                self._store.update(after.id, unwanted=1)
            except (CredentialsError, UnreachableError) as exc:
                yield from patience.wait(exc)
        return after

    def _found_or_submitted(
        self, lost: JobRecord, watched: bool, patience: Patience
    ) -> Generator[Trouble, None, JobRecord | None]:
        while True:
            try:
                known = self._put_in_place_of(lost)
                # Not one that was refused: that is settled.
                begun = any(record.cut_short or not record.over for record in known)
                found = [self._refresh(record) for record in known]
                if submitted := next((record for record in found if record.ref), None):
                    return submitted
                if any(not record.over for record in found):
                    time.sleep(LOOK_S)
                elif not (watched or begun):
                    return None
                elif self._is_unwanted(lost):
                    self._note_not_again(lost, "launch cancel was called")
                    return None
                else:
                    anew = self._going_on(lost, what_is_left(lost), lost.resubmits + 1)
                    return self._submit(anew, lambda _: None)
            except (CredentialsError, UnreachableError) as exc:
                yield from patience.wait(exc)
            except LaunchError as exc:
                if any(record.ref or not record.over for record in self._put_in_place_of(lost)):
                    continue  # another follower was quicker
                self._note_not_again(lost, exc.message)
                return None

    def _note_not_again(self, lost: JobRecord, why: str) -> None:
        self._store.update(lost.id, reason=f"{lost.reason}; not submitted again: {why}")

    def _is_unwanted(self, record: JobRecord) -> bool:
        """As the record has it now: the user may have cancelled it from another terminal."""
        now = self._store.get(record.id)
        return now is not None and bool(now.unwanted)

    def _put_in_place_of(self, record: JobRecord) -> list[JobRecord]:
        found = self._lineage(record.lineage)
        return [other for other in found if other.resubmits and other.resumes == record.id]

    def _lineage(self, lineage: str) -> list[JobRecord]:
        return [record for record in self._store.find(lineage) if record.lineage == lineage]

    def _going_on(self, old: JobRecord, job: JobSpec, resubmits: int) -> Planned:
        """The plan of `job` on the checkpoints and with the bundle of `old`."""
        target = self._backend(old.backend)
        token = self.successor(old)
        assert old.ref is not None
        bundle = target.bundle(JobRef.parse(old.ref))
        choice = choose(target, job, machine=old.estimate.get("instance_type"))
        plan = render(target, choice, bundle, token, old.lineage)
        report = DataReport(**old.data) if old.data else None
        return Planned(plan=plan, data=report, resumes=old, resubmits=resubmits)


def most_resubmits(job: JobSpec) -> int:
    """How often the job may be submitted anew."""
    return MOST_RESUBMITS if job.resources.resubmits is None else job.resources.resubmits


def what_is_left(lost: JobRecord) -> JobSpec:
    """The job with what its lost machine has left of its hours and its budget.

    Raises CapacityError or OverBudgetError when that is nothing.
    """
    job = lost.job()
    if lost.resubmits >= most_resubmits(job):
        raise CapacityError(f"that was done {lost.resubmits} times, and resources.resubmits allows no more")
    ended = lost.ended or datetime.now(UTC)  # not said: what it has run can't be more
    # Two clocks may be at work here, or one that was set: nobody has run for less than nothing.
    used = max(0.0, (ended - lost.started).total_seconds() / 3600) if lost.started else 0.0
    hours = max_hours(job) - used
    if hours < LEAST_HOURS:
        raise OverBudgetError(f"it has run {used:.1f} of its {max_hours(job):g} hours")
    changes: dict[str, object] = {"resources": job.resources.model_copy(update={"max_hours": hours})}
    if job.budget is not None:
        left = job.budget - Decimal(lost.estimate.get("hourly") or 0) * Decimal(used)
        if left <= 0:
            raise OverBudgetError(f"the budget of ${job.budget} is used up")
        changes["budget"] = left
    return job.model_copy(update=changes)


def _next_token(lineage: str, taken: Sequence[str]) -> str:
    """LINEAGE-r2, -r3, ...: one above the highest that is taken."""
    numbers = [id.removeprefix(f"{lineage}-r") for id in taken]
    return f"{lineage}-r{max((int(n) for n in numbers if n.isdecimal()), default=1) + 1}"
