"""A job's life, once for all backends: plan, submit, follow, resume, fetch. No vendor's word stands here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

from backends import registry
from backends.base import (
    Backend,
    Bundle,
    Installs,
    JobRef,
    JobState,
    LogLine,
    Plan,
    Progress,
    Rehearsable,
    RunsHere,
    RunsInSomePlaces,
    SaysWho,
    Site,
    Sweeps,
)
from backends.registry import BUILTIN
from launcher import wheelhouse
from launcher.bundle import build_bundle
from launcher.costing import estimator_or_why, preview
from launcher.data.check import check_data
from launcher.discovery import Discovery, Orphan
from launcher.errors import (
    ConfigError,
    CredentialsError,
    JobNotFoundError,
    LaunchError,
    UnreachableError,
    UnsupportedError,
)
from launcher.events import Event
from launcher.home import cache
from launcher.listing import bring_up_to_date
from launcher.observing import Heard, Observer, Resubmitted
from launcher.planning import (
    Planned,
    check,
    choose,
    refuse_misfit,
    refuse_problems,
    refuse_unset_facts,
    render,
    with_dry_run,
)
from launcher.readiness import Readiness, readiness
from launcher.rehearsal import Rehearsed, rehearse
from launcher.resuming import Resuming, most_resubmits
from launcher.site import load_site, sent_by_another
from launcher.spec import JobSpec
from launcher.store import JobRecord, Store
from launcher.submitting import Submitting


class Client:
    """Jobs of the record under `home`, on every backend. Making one does no I/O."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._store = Store(home / "record.db")
        self._backends: dict[str, Backend] = {}
        self._observer = Observer(self._store, self._backend)
        self._discovery = Discovery(self._store, self._backend, self._site)
        self._submitting = Submitting(self._store, self._backend, self._discovery)
        self._resuming = Resuming(self._store, self._backend, self.refresh, self.submit)

    def plan(
        self, job: JobSpec, folder: Path, backend: str | None = None, dry_run: bool = False,
        progress: Progress = lambda _: None, from_checkpoint: str | None = None,
    ) -> Planned:  # fmt: skip
        """Check data and job, build the bundle, choose hardware and render the request; sends nothing.

        `from_checkpoint`: a job from whose newest checkpoint this one goes on, though it has changed.
        """
        name = backend or job.backend
        target = self._backend(name)
        old = self.get(from_checkpoint) if from_checkpoint else None
        changed = refuse_misfit(old, job, name) if old else ()
        if old:
            job = job.model_copy(update={"env": {**job.env, "LAUNCH_FROM_CHECKPOINT": "1"}})
        if dry_run:
            if not target.capabilities.dry_run:
                raise UnsupportedError(
                    f"--dry-run: backend {name} can't run a few steps only",
                    f"launch plan --backend {name} shows the request; --backend local runs some steps here",
                )
            job = with_dry_run(job)
        report = check_data(job, folder)
        wanted = job
        choice = choose(
            target, job, estimator_or_why(job, folder, self.home), lambda: preview(wanted, folder, self.home)
        )
        job = choice.job
        bundle = build_bundle(job, folder, self.home / "bundles")
        token = self._resuming.successor(old) if old else f"{job.name}-{token_hex(3)}"
        lineage = old.lineage if old else token
        plan = render(target, choice, bundle, token, lineage)
        if wheelhouse.wanted(job):  # a second time: for what is refused at the first, nothing is downloaded
            wheels = wheelhouse.wheels(cache(), progress)
            bundle = build_bundle(job, folder, self.home / "bundles", wheels)
            plan = render(target, choice, bundle, token, lineage)
        return Planned(
            plan=plan, data=report, choice=choice, unchecked=check(target, plan), resumes=old, changed=changed
        )

    def obstacle(self, plan: Plan) -> str | None:
        """Why this version shows the plan's request and can't send it; None when it can."""
        target, region = self._backend(plan.offer.backend), plan.job.resources.region
        return target.obstacle(region, plan.site) if isinstance(target, RunsInSomePlaces) else None

    def explain(self, plan: Plan) -> Sequence[tuple[str, str]]:
        """The backend's own account of the request, for a person."""
        return self._backend(plan.offer.backend).explain(plan)

    def refuse_unready(self, plan: Plan) -> None:
        """Raise LaunchError when the plan can't be submitted: unset facts, a missing extra, no jobs there."""
        target = self._backend(plan.offer.backend)
        if why := self.obstacle(plan):
            raise UnsupportedError(
                f"backend {target.name}: {why}",
                f"launch plan --backend {target.name} prints the request; --backend local trains here",
            )
        refuse_unset_facts(plan)
        target.validate(plan.request)

    def submit(self, planned: Planned, progress: Progress) -> JobRecord:
        """Start the job. Raises before anything is recorded when it can't be."""
        plan = planned.plan
        target = self._backend(plan.offer.backend)
        self.refuse_unready(plan)
        refuse_problems(target, plan, progress)
        self._discovery.rebuild_if_lost()
        return self._submitting.submit(planned, progress)

    def discover(self, names: Sequence[str] = (), region: str | None = None) -> tuple[int, dict[str, str]]:
        """Record the jobs that the named backends (default: all that are set up) know; how many were new, who
        can't say.

        `region`: another than the account's own, of the named backends.
        """
        return self._discovery.take_in(names, region)

    def orphans(self, names: Sequence[str] = (), region: str | None = None) -> tuple[list[Orphan], dict[str, str]]:
        """What is alive at the named backends (default: all that are set up) and no record owns; who can't say."""
        return self._discovery.orphans(names, region)

    def unneeded(self, age: timedelta, backend: str | None = None) -> list[JobRecord]:
        """The recorded jobs, oldest first, that ended longer ago than `age` and may have something stored.

        Whoever's they are.
        """
        before = datetime.now(UTC) - age
        known = [record for record in self.listed(backend)[0] if record.ref]
        old = [record for record in known if record.over and (record.ended or record.created) < before]
        # With the first of a lineage go the checkpoints of those that go on from it.
        needed = {record.lineage for record in known if record not in old}
        return [record for record in reversed(old) if not record.released and record.id not in needed]

    def sharing(self, record: JobRecord) -> list[JobRecord]:
        """The jobs whose checkpoints go when this one is released: they go on from it, and may be gone on from."""
        found = self._store.find(record.id)
        return [r for r in found if r.lineage == record.id != r.id and r.ref and not r.released]

    def known(self, key: str) -> JobRecord:
        """The job with this id, reference or unique beginning of an id, as it was last seen: asks nobody."""
        return self._look_up(key)

    def sweep(self, age: timedelta, backend: str | None = None) -> Iterator[tuple[str, int, str | None]]:
        """(backend, how many things were removed, why it could not be asked): what belongs to no job, by age.

        Nothing of the last day is touched: somebody may be sending it.
        """
        before = datetime.now(UTC) - max(age, timedelta(days=1))
        for name in self.swept(backend):
            target = self._backend(name)
            assert isinstance(target, Sweeps)
            try:
                yield name, target.sweep(self._site(name), before), None
            except LaunchError as exc:
                yield name, 0, exc.message

    def swept(self, backend: str | None = None) -> list[str]:
        """The backends, or this one if it is such, that `sweep` asks."""
        names = [backend] if backend else BUILTIN
        return [n for n in names if isinstance(self._backend(n), Sweeps) and self._discovery.is_set_up(n)]

    def release(self, job_id: str) -> JobRecord:
        """Remove what the job left stored; it stays in the record."""
        record = self.get(job_id)
        if record.ref is not None:
            with contextlib.suppress(JobNotFoundError):  # the vendor has forgotten it already
                self._backend(record.backend).release(JobRef.parse(record.ref))
            self._store.update(record.id, released=1)
        return record

    def get(self, key: str | None = None) -> JobRecord:
        """The job with this id, reference or unique beginning of an id (None: the newest), refreshed."""
        record = self._look_up(key)
        try:
            return self.refresh(record)
        except LaunchError:
            if not record.never_started:
                raise
            return record  # it can be shown without its backend

    def seen(self, key: str | None = None) -> tuple[JobRecord, str | None]:
        """As `get`; where its backend can't be asked now, the job as it was last seen, and why."""
        record = self._look_up(key)
        try:
            return self.get(record.id), None
        except (CredentialsError, UnreachableError) as exc:
            return record, exc.message

    def jobs(self) -> list[JobRecord]:
        """Every job, newest first, refreshed; see `listed`."""
        return self.listed()[0]

    def listed(self, backend: str | None = None) -> tuple[list[JobRecord], dict[str, str]]:
        """Every job, or those of one backend, newest first and refreshed; backend -> why it can't be asked now.

        A lost record is rebuilt from what the backends know. A job whose backend can't be asked stands there as
        it was last seen, and so does one that was never seen to start: asking for each of those again is
        `discover`'s.
        """
        self._discovery.rebuild_if_lost()
        known = [record for record in self._store.find("") if backend in (None, record.backend)]
        silent = bring_up_to_date(known, self._looking)
        return [self._again(record.id) for record in known], silent

    def refresh(self, record: JobRecord) -> JobRecord:
        """The record with the backend's newest events and status."""
        if record.ref is None:
            record = self._submitting.looked_up(record)
        if record.ref is None:
            return record
        self._observer.refresh(record)
        return self._again(record.id)

    def follow(self, job_id: str, from_start: bool = True) -> Iterator[Heard]:
        """What the job says and does, live, until it is over and its log is drained.

        Nothing twice, and nothing missed: what was recorded before this call comes only with from_start. A job
        that ends because its spot capacity was taken is submitted anew and followed on, within its limits.
        """
        record = self._look_up(job_id)
        if record.ref is None:
            record = self.refresh(record)
        if record.ref is None:
            raise JobNotFoundError(
                f"{record.id} was never started: {record.reason}", "launch run starts a new one"
            )
        while True:
            watched = not record.over
            status = yield from self._observer.follow(record, from_start)
            # One that somebody else has sent is theirs to go on with, and to pay for.
            if not (status.preempted and record.wants_spot) or sent_by_another(record.owner):
                return
            after = yield from self._resuming.in_place_of(self._again(record.id), watched)
            if after is None:
                return
            yield Resubmitted(after.id, record.id, after.resubmits, most_resubmits(record.job()))
            record, from_start = after, True

    def latest(self, job_id: str) -> JobRecord:
        """The job, or the one that followers have put in its place."""
        return self.refresh(self._resuming.latest(self._look_up(job_id)))

    def recorded(self, job_id: str) -> JobRecord:
        """As `latest`, as it was last seen: asks nobody."""
        return self._resuming.latest(self._again(job_id))

    def needs_follower(self, record: JobRecord) -> bool:
        """True of a job that is submitted anew when it loses its machine, but only by somebody who follows it."""
        able = self._backend(record.backend).capabilities.resubmits
        forbidden = (record.spec.get("resources") or {}).get("resubmits") == 0
        return able and record.wants_spot and not forbidden and not sent_by_another(record.owner)

    def events(self, job_id: str, *names: str) -> list[Event]:
        """The recorded events, oldest first; with `names`: those alone."""
        return self._store.events(job_id, *names)

    def log_lines(self, job_id: str) -> Iterator[LogLine]:
        """Every whole line of the job's log so far."""
        record = self.get(job_id)
        if record.ref is None:
            return iter(())
        return self._backend(record.backend).logs(JobRef.parse(record.ref))

    def cancel(self, key: str) -> JobRecord:
        """Ask the job to checkpoint and stop; returns at once. Silent when it is over.

        The wish is noted also then: no follower submits it anew.
        """
        record = self._resuming.unwanted(self._look_up(key))
        if record.ref is None:
            record = self.refresh(record)
        else:
            with contextlib.suppress(LaunchError):  # what it says can wait, stopping it can't
                record = self.refresh(record)
        if record.ref is not None and not record.over:
            self._backend(record.backend).cancel(JobRef.parse(record.ref))
            with contextlib.suppress(LaunchError):
                record = self.refresh(record)
        return record

    def plan_resume(self, job_id: str) -> Planned:
        """The plan of a new job that goes on from the checkpoints of one that ended early; sends nothing."""
        old = self.get(job_id)
        if not old.over:
            raise ConfigError(f"{old.id} is {old.state}: it needs no resume", f"launch watch {old.id}")
        if old.state == JobState.SUCCEEDED:
            raise ConfigError(
                f"{old.id} is done: there is nothing to resume",
                f"launch show {old.id}; launch run --from-checkpoint {old.id} trains on with a changed job file",
            )
        if old.ref is None:
            raise ConfigError(f"{old.id} was never started: {old.reason}", "launch run starts a new one")
        return self._resuming.planned(old)

    def fetch(self, job_id: str, to: Path) -> Path:
        """Download the job's output to `to`, each file verified; safe to repeat after an interruption."""
        record = self.get(job_id)
        if record.ref is None:
            raise JobNotFoundError(f"{record.id} was never started", "launch run")
        self._backend(record.backend).download(JobRef.parse(record.ref), to)
        return to

    def bundle(self, record: JobRecord, to: Path) -> Bundle:
        """The bundle that the job was given, its files on this machine (brought to `to` where they are not)."""
        if record.ref is None:
            raise JobNotFoundError(f"{record.id} was never started", "launch run")
        return self._backend(record.backend).bundle(JobRef.parse(record.ref), to)

    def set_evaluation(self, job_id: str, which: str, metrics: Mapping[str, Any]) -> None:
        """Keep an evaluation made after the job."""
        self._store.set_metrics(job_id, which, metrics)

    def here(self) -> RunsHere:
        """What runs the entrypoint's modules on this machine."""
        found = self._backend("local")
        assert isinstance(found, RunsHere)
        return found

    def check_backends(self, ask: Collection[str] | None = None) -> list[Readiness]:
        """Every backend that is known here; `ask`: those that may use the network (None: all that are set up)."""
        return readiness(self._backend, ask)

    def signed_in(self, site: Site) -> str | None:
        """As whom this site's backend speaks to its vendor, where it can tell. Uses the network.

        Raises CredentialsError.
        """
        target = self._backend(site.backend)
        return target.signed_in(site) if isinstance(target, SaysWho) else None

    def repair(self, progress: Progress) -> None:
        """Build what is missing here: the training environment, and that of each vendor which is set up."""
        self.here().prepare(progress)
        for name in BUILTIN:
            target = self._backend(name)
            if isinstance(target, Installs) and self._discovery.is_set_up(name):
                target.install(progress)

    def rehearse(self, plan: Plan, preempt_after: int | None, to: Path | None, progress: Progress) -> Rehearsed:
        """Run the plan on this machine inside its backend's container contract; see launcher.rehearsal."""
        target = self._backend(plan.offer.backend)
        if not isinstance(target, Rehearsable):
            raise UnsupportedError(
                f"backend {target.name} has no container to rehearse",
                "launch run --backend local runs the job here",
            )
        here, root = self.here(), to or self.home / "rehearsals" / plan.token
        python, secrets = here.prepare(progress), here.secrets(plan.job.secrets)
        return rehearse(target, plan, root.absolute(), python, secrets, preempt_after, progress)

    @contextlib.contextmanager
    def _looking(self) -> Iterator[Callable[[JobRecord], object]]:
        """`refresh` for another thread: a connection to the record is one thread's alone."""
        other = Client(self.home)
        try:
            yield other.refresh
        finally:
            other._store.close()

    def _site(self, backend: str) -> Site:
        return load_site(backend, self._backend(backend).facts)

    def _look_up(self, key: str | None) -> JobRecord:
        self._discovery.rebuild_if_lost()
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

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            self._backends[name] = registry.create(name, self.home)
        return self._backends[name]

    def _again(self, job_id: str) -> JobRecord:
        record = self._store.get(job_id)
        if record is None:
            raise JobNotFoundError(f"{job_id} is no longer in the record", "launch list")
        return record
