"""What every backend must show, one behaviour a test."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from backends import registry
from backends.base import Backend, Capabilities, JobRef, JobState, LogLine, Plan, Problem
from launcher.errors import ConfigError, JobNotFoundError, LaunchError, UnsupportedError
from launcher.spec import JobSpec
from launcher.testing.jobs import GAVE_UP, ContractJobs, Ran, raised

MOST_CURSORS = 200
TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir", "socket.", "subprocess.", "sqlite3.")
"""Audit events of a constructor or a render that does more than compute."""

_watched: list[str] | None = None


class RenderContract(ContractJobs):
    """What a backend must show before anything is sent; all of it, for one that only plans."""

    def test_the_constructor_touches_nothing(self, tmp_path: Path) -> None:
        self.make_backend(tmp_path / "warm")  # imports read files
        with _touching() as touched:
            self.make_backend(tmp_path / "home")
        assert touched == []
        assert list(tmp_path.iterdir()) == []

    def test_its_name_is_in_the_registry_and_makes_this_class(self, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        assert backend.name in registry.names()
        assert type(registry.create(backend.name, tmp_path)) is type(backend)
        assert isinstance(backend.capabilities, Capabilities)

    def test_its_references_print_and_parse(self, tmp_path: Path) -> None:
        ref = JobRef(self.make_backend(tmp_path).name, "some-scope", "a-job-1")
        assert JobRef.parse(str(ref)) == ref

    def test_offers_fit_the_job_and_are_repeatable(self, planned: Plan, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        offers = list(backend.offers(planned.job.resources))
        assert offers
        assert offers == list(backend.offers(planned.job.resources))
        assert {offer.backend for offer in offers} == {backend.name}
        assert all(offer.nodes == planned.job.resources.nodes for offer in offers)
        assert all(offer.spot == planned.job.resources.spot for offer in offers)

    def test_of_equal_hardware_the_cheaper_offer_comes_first(self, planned: Plan, tmp_path: Path) -> None:
        last: dict[tuple[Any, ...], Any] = {}
        for offer in self.make_backend(tmp_path).offers(planned.job.resources):
            if offer.hourly is not None:
                kind = (offer.gpu, offer.gpus, offer.nodes, offer.region, offer.spot)
                assert last.get(kind, offer.hourly) <= offer.hourly
                last[kind] = offer.hourly

    def test_impossible_hardware_is_refused_with_a_way_out(self, tmp_path: Path) -> None:
        with pytest.raises(LaunchError) as refusal:
            list(self.make_backend(tmp_path).offers(self.impossible))
        assert refusal.value.hint

    def test_render_only_computes(self, planned: Plan, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path / "home")
        before = planned.job.model_dump_json()
        self._render(backend, planned)
        with _touching() as touched:
            self._render(backend, planned)
        assert touched == []
        assert planned.job.model_dump_json() == before

    def test_render_needs_no_vendor_sdk(self, planned: Plan, tmp_path: Path) -> None:
        with _without(self.sdk):
            assert self._render(self.make_backend(tmp_path), planned) == planned.request

    def test_requests_are_repeatable_json(self, planned: Plan, tmp_path: Path) -> None:
        request = self._render(self.make_backend(tmp_path), planned)
        assert request == planned.request
        assert json.loads(json.dumps(request)) == request

    def test_token_and_lineage_ride_in_the_request(self, planned: Plan) -> None:
        text = json.dumps(planned.request)
        assert planned.token in text
        assert planned.lineage != planned.token
        assert planned.lineage in text

    def test_a_rendered_request_is_valid_and_a_damaged_one_is_not(self, planned: Plan, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path)
        backend.validate(planned.request)
        for damaged in self.damaged(planned.request):
            with pytest.raises(ConfigError):
                backend.validate(damaged)

    def test_what_it_cannot_do_is_refused_by_name_before_anything_is_sent(
        self, planned: Plan, tmp_path: Path
    ) -> None:
        unsupported = self.unsupported_job(planned.job)
        if unsupported is None:
            pytest.skip("this backend can run every job")
        job, field = unsupported
        backend = self.make_backend(tmp_path / "home")
        with pytest.raises(UnsupportedError, match=field.replace(".", r"\.")) as refusal:
            self._render(backend, dataclasses.replace(planned, job=job))
        assert refusal.value.hint
        assert not (tmp_path / "home").exists()

    def test_check_names_a_fix_for_every_problem(self, tmp_path: Path) -> None:
        problems = self.make_backend(tmp_path).check(self.site())
        assert all(isinstance(problem, Problem) and problem.what and problem.fix for problem in problems)

    def _render(self, backend: Backend, plan: Plan) -> Any:
        return backend.render(plan.job, plan.offer, plan.bundle, plan.site, plan.token, plan.lineage)


class BackendContract(RenderContract):
    """Every test of the contract; the hooks stand in ContractJobs."""

    @pytest.mark.parametrize("what", ["status", "logs", "cancel", "download", "release", "recorded"])
    def test_an_unknown_job_is_not_found(self, what: str, tmp_path: Path) -> None:
        backend = self.make_backend(tmp_path / "home")
        ref = dataclasses.replace(self.unknown_ref(backend), id="never-was-0000")
        calls: dict[str, Callable[[], object]] = {
            "status": lambda: backend.status(ref),
            "logs": lambda: list(backend.logs(ref)),
            "cancel": lambda: backend.cancel(ref),
            "download": lambda: backend.download(ref, tmp_path / "to"),
            "release": lambda: backend.release(ref),
            "recorded": lambda: backend.recorded(ref),
        }
        with pytest.raises(JobNotFoundError):
            calls[what]()

    # A job that ends well

    def test_stage_goes_on_where_it_was_interrupted_and_skips_what_is_there(self, succeeded: Ran) -> None:
        half, whole, again = (succeeded.notes[k] for k in ("half", "whole", "again"))
        assert 0 < len(half) < len(whole)
        assert {path: whole[path] for path in half} == half
        assert again == whole

    def test_two_submits_with_one_token_are_one_job(self, succeeded: Ran) -> None:
        assert succeeded.notes["second"] == succeeded.ref
        assert succeeded.notes["known"].count(succeeded.ref) == 1
        runs = {event.run for event in succeeded.events}
        assert len(runs) == 1 + succeeded.last.interruptions

    def test_the_reference_carries_backend_and_token(self, succeeded: Ran, tmp_path: Path) -> None:
        assert succeeded.ref.backend == self.make_backend(tmp_path).name
        assert succeeded.ref.id == succeeded.plan.token
        assert JobRef.parse(str(succeeded.ref)) == succeeded.ref

    def test_it_succeeds_through_legal_states(self, succeeded: Ran, place: Path) -> None:
        assert succeeded.last.state == JobState.SUCCEEDED, [line.text for line in succeeded.lines[-20:]]
        _assert_legal(succeeded)
        assert self.make_backend(place / "home").status(succeeded.ref).state == JobState.SUCCEEDED

    def test_the_job_gets_its_environment_and_tells_its_events_through_the_log(self, succeeded: Ran) -> None:
        names = [event.name for event in succeeded.events]
        assert names[-1] == "done"
        assert {"phase", "data", "step", "eval"} <= set(names)
        for run in {event.run for event in succeeded.events}:
            numbers = [event.seq for event in succeeded.events if event.run == run]
            assert numbers == list(range(len(numbers)))

    def test_a_log_followed_live_is_the_log_read_afterwards(self, succeeded: Ran) -> None:
        assert [line.text for line in succeeded.live] == [line.text for line in succeeded.lines]
        assert not any("\n" in line.text for line in succeeded.lines)
        assert all(line.time is None or line.time.tzinfo for line in succeeded.lines)

    def test_a_log_resumes_at_every_cursor_without_loss_or_repeat(self, succeeded: Ran, place: Path) -> None:
        backend = self.make_backend(place / "home")
        lines = succeeded.lines
        assert len({line.cursor for line in lines}) == len(lines) > 1
        for index in range(0, len(lines), max(1, len(lines) // MOST_CURSORS)):
            rest = backend.logs(succeeded.ref, lines[index].cursor)
            assert _same_lines(rest, lines[index + 1 :])

    def test_a_download_is_what_the_job_vouched_for(self, succeeded: Ran, place: Path, tmp_path: Path) -> None:
        self.make_backend(place / "home").download(succeeded.ref, tmp_path / "to")
        vouched = _vouched(succeeded)
        assert vouched
        assert {path: _sha256(tmp_path / "to" / path) for path in vouched} == vouched

    def test_a_download_repairs_what_an_interrupted_one_left(
        self, succeeded: Ran, place: Path, tmp_path: Path
    ) -> None:
        backend, to = self.make_backend(place / "home"), tmp_path / "to"
        backend.download(succeeded.ref, to)
        vouched = _vouched(succeeded)
        first, second, *_ = sorted(vouched)
        whole = (to / first).read_bytes()
        (to / first).write_bytes(whole[: len(whole) // 2])
        (to / second).write_bytes(b"x" * (to / second).stat().st_size)
        backend.download(succeeded.ref, to)
        backend.download(succeeded.ref, to)
        assert {path: _sha256(to / path) for path in vouched} == vouched
        assert not list(to.rglob("*.part"))

    def test_a_lost_record_is_rebuilt_from_what_the_backend_knows(self, succeeded: Ran, place: Path) -> None:
        backend = self.make_backend(place / "home")
        assert succeeded.ref in list(backend.discover(succeeded.plan.site))
        recorded = backend.recorded(succeeded.ref)
        assert JobSpec.model_validate(recorded["job"]) == succeeded.plan.job
        assert recorded["token"] == succeeded.plan.token
        assert recorded["lineage"] == succeeded.plan.lineage
        assert recorded["bundle_sha256"] == succeeded.plan.bundle.sha256
        assert datetime.fromisoformat(recorded["created"]) <= datetime.now(UTC)

    def test_a_job_gives_its_bundle_back(self, succeeded: Ran, place: Path, tmp_path: Path) -> None:
        backend = self.make_backend(place / "home")
        given = {file.path: file.sha256 for file in succeeded.plan.bundle.files}
        known, brought = backend.bundle(succeeded.ref), backend.bundle(succeeded.ref, tmp_path / "given")
        assert known.sha256 == brought.sha256 == succeeded.plan.bundle.sha256
        assert {file.path: file.sha256 for file in known.files} == given
        assert {file.path: _sha256(file.source) for file in brought.files if file.source} == given

    def test_two_launchers_see_the_same_job(self, succeeded: Ran, place: Path) -> None:
        one, other = self.make_backend(place / "home"), self.make_backend(place / "home")
        assert one.status(succeeded.ref) == other.status(succeeded.ref)
        assert _same_lines(one.logs(succeeded.ref), list(other.logs(succeeded.ref)))

    def test_cancelling_a_job_that_is_over_changes_nothing(self, succeeded: Ran, place: Path) -> None:
        backend = self.make_backend(place / "home")
        before = backend.status(succeeded.ref)
        backend.cancel(succeeded.ref)
        assert backend.status(succeeded.ref) == before

    def test_the_job_has_its_secret_and_nobody_sees_it(
        self, succeeded: Ran, failed: Ran, secret_value: str, place: Path, tmp_path: Path
    ) -> None:
        assert any(line.text.startswith("value ***") for line in succeeded.lines)
        backend = self.make_backend(place / "home")
        for ran in (succeeded, failed):
            backend.download(ran.ref, tmp_path / ran.ref.id)
            seen = [
                json.dumps(ran.plan.request), json.dumps(dict(backend.recorded(ran.ref))), repr(ran.statuses),
                *(line.text for line in ran.lines),
            ]  # fmt: skip
            assert not [text for text in seen if secret_value in text]
        sources = [file.source for file in succeeded.plan.bundle.files if file.source]
        kept = [tmp_path, place / "home", *sources]
        assert not [path for path in _files(kept) if secret_value.encode() in path.read_bytes()]

    def test_only_launch_errors_leave_it(self, succeeded: Ran, place: Path, tmp_path: Path) -> None:
        backend = self.make_backend(place / "home")
        (tmp_path / "file").write_text("in the way")
        never = "never-staged-1"
        unstaged = dataclasses.replace(succeeded.plan, token=never, lineage=never)
        calls = {
            "a cursor of another log": lambda: list(backend.logs(succeeded.ref, "no cursor of ours")),
            "a download into a file": lambda: backend.download(succeeded.ref, tmp_path / "file" / "to"),
            "a submit of what was never staged": lambda: backend.submit(unstaged),
        }
        for what, call in calls.items():
            problem = raised(call)
            assert problem is None or isinstance(problem, LaunchError), f"{what}: {problem!r}"

    # A job that fails, and one that is cancelled and removed

    def test_a_failure_says_why_and_its_log_ends_with_it(self, failed: Ran) -> None:
        assert failed.last.state == JobState.FAILED
        assert GAVE_UP in (failed.last.reason or "")
        _assert_legal(failed)
        event = failed.events[-1]
        assert (event.name, GAVE_UP in event.fields["message"]) == ("failure", True)
        assert any(GAVE_UP in line.text for line in failed.lines[-20:])

    def test_cancel_stops_a_running_job_and_may_be_repeated(self, cancelled: Ran) -> None:
        assert cancelled.last.state == JobState.CANCELLED
        assert cancelled.notes["after_third"].state == JobState.CANCELLED
        _assert_legal(cancelled)

    def test_a_cancelled_job_checkpoints_first(self, cancelled: Ran) -> None:
        names = [event.name for event in cancelled.events]
        assert "done" not in names
        assert "checkpoint" in names[names.index("step") :]

    def test_a_running_job_is_not_removed(self, cancelled: Ran) -> None:
        assert isinstance(cancelled.notes["refusal"], LaunchError)
        assert cancelled.notes["refusal"].hint
        assert cancelled.notes["after_refusal"] == JobState.RUNNING

    def test_release_removes_the_job_and_no_other(self, cancelled: Ran) -> None:
        assert isinstance(cancelled.notes["after_release"], JobNotFoundError)
        assert cancelled.ref not in cancelled.notes["known"]
        assert cancelled.notes["known"] == cancelled.notes["beside"]

    def unknown_ref(self, backend: Backend) -> JobRef:
        """A well-formed reference; its id is replaced by one that no job has."""
        return JobRef(backend.name, "localhost", "any")


def _assert_legal(ran: Ran) -> None:
    """Terminal states are final, RUNNING goes back only with an interruption, times are in order."""
    order = {JobState.QUEUED: 0, JobState.STARTING: 1, JobState.RUNNING: 2}
    for before, after in zip(ran.statuses, ran.statuses[1:], strict=False):
        assert not before.state.terminal, f"{before.state} -> {after.state}"
        assert after.interruptions >= before.interruptions
        if before.state in order and after.state in order and after.interruptions == before.interruptions:
            assert order[after.state] >= order[before.state], f"{before.state} -> {after.state}"
    last = ran.last
    assert last.state.terminal
    assert last.started and last.ended and last.started.tzinfo and last.ended.tzinfo
    assert last.started <= last.ended <= datetime.now(UTC)
    assert bool(last.reason) == (last.state != JobState.SUCCEEDED)


def _vouched(ran: Ran) -> dict[str, str]:
    return {file["path"]: file["sha256"] for file in ran.events[-1].fields["files"]}


def _same_lines(some: Iterator[LogLine], others: Sequence[LogLine]) -> bool:
    return [(line.text, line.cursor) for line in some] == [(line.text, line.cursor) for line in others]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(roots: Sequence[Path]) -> list[Path]:
    return [p for root in roots for p in ([root] if root.is_file() else root.rglob("*")) if p.is_file()]


@contextlib.contextmanager
def _touching() -> Iterator[list[str]]:
    """What this process does to files, network and other processes inside the block."""
    global _watched
    if not getattr(sys, "_finelaunch_audited", False):  # a hook can't be removed: one is enough
        sys.addaudithook(_note_touch)
        sys._finelaunch_audited = True  # type: ignore[attr-defined]
    found: list[str] = []
    _watched = found
    try:
        yield found
    finally:
        _watched = None


def _note_touch(event: str, args: tuple[Any, ...]) -> None:
    if _watched is not None and event.startswith(TOUCHES):
        _watched.append(f"{event} {args[:1]}")


@contextlib.contextmanager
def _without(modules: Sequence[str]) -> Iterator[None]:
    """Inside the block these root modules are not imported and can't be."""
    hidden: dict[str, ModuleType] = {n: m for n, m in sys.modules.items() if n.split(".")[0] in modules}
    for name in hidden:
        del sys.modules[name]
    sys.modules.update(dict.fromkeys(modules))  # type: ignore[arg-type]  # None makes import fail
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
