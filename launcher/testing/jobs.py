"""The hooks of BackendContract, and the three jobs that it runs once a class and looks at from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets as random_text
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backends.base import Backend, JobRef, JobStatus, LogLine, Plan, Site
from cost.estimate import estimate
from launcher.bundle import build_bundle
from launcher.events import Event, from_line
from launcher.observing import LAST_EVENTS
from launcher.spec import JobSpec, Resources

GAVE_UP = "the scorer gave up on purpose"
"""What the failing job's scorer says; it must reach the user."""


@dataclass(kw_only=True)
class Ran:
    """One job as seen from outside: every status and line while it ran, then all its lines from the start."""

    plan: Plan
    ref: JobRef
    statuses: list[JobStatus] = field(default_factory=list)
    live: list[LogLine] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> JobStatus:
        return self.statuses[-1]

    @property
    def events(self) -> list[Event]:
        return [event for line in self.lines if (event := from_line(line.text))]


class ContractJobs:
    """The hooks come first; a subclass must give make_backend, in_place and model (or the job hooks)."""

    model: str = "example/model"
    """Base model of the three jobs: a path or id that is there where they run."""
    secret: str = "FINELAUNCH_CONTRACT_SECRET"  # noqa: S105 - a name
    """Name of the planted secret; `plant_secret` puts its value where the backend looks for secrets."""
    wait_s: float = 300
    """How long a job may take."""
    poll_s: float = 0.2
    sdk: Sequence[str] = ()
    """Root modules of the vendor's SDK; render and the constructor must do without them."""
    impossible: Resources = Resources(gpu="no-such-gpu-9000", gpus=4096)

    def make_backend(self, home: Path) -> Backend:
        raise NotImplementedError

    def site(self) -> Site:
        """The account facts; default: none."""
        return Site(backend=self.make_backend(Path("unused")).name)

    def plant_secret(self, value: str) -> contextlib.AbstractContextManager[None]:
        """Make `value` the planted secret for the class; default: an environment variable."""
        return _environment(self.secret, value)

    def job_that_succeeds(self, folder: Path) -> JobSpec:
        """Two steps; its scorer prints the planted secret, which must not be seen anywhere."""
        say = f"print('value', os.environ[{self.secret!r}])"
        scorer = f"import os\ndef score(rows, answers):\n    {say}\n    return {{}}\n"
        return self.job(folder, "ends-well", scorer, max_steps=2)

    def job_that_fails(self, folder: Path) -> JobSpec:
        """Its scorer raises while the base model is judged, with the planted secret in its message."""
        message = f"{GAVE_UP!r} + os.environ[{self.secret!r}]"
        scorer = f"import os\ndef score(rows, answers):\n    raise ValueError({message})\n"
        return self.job(folder, "fails", scorer, max_steps=2)

    def job_that_runs_long(self, folder: Path) -> JobSpec:
        """Far more steps than anyone waits for."""
        return self.job(folder, "runs-long", None, epochs=100_000.0, early_stopping=None)

    def unsupported_job(self, job: JobSpec) -> tuple[JobSpec, str] | None:
        """A job that the backend can't run, and the field at fault; None when it can run everything."""
        can = self.make_backend(Path("unused")).capabilities
        asks: tuple[tuple[bool, str, Any], ...] = (
            (can.multi_node, "nodes", 2), (can.spot, "spot", True), (can.regions, "region", "nowhere-1"),
            (can.wait_for_capacity, "max_wait_hours", 1.0),
        )  # fmt: skip
        for able, name, value in asks:
            if not able:
                wanted = job.resources.model_copy(update={name: value})
                return job.model_copy(update={"resources": wanted}), f"resources.{name}"
        return None

    def damaged(self, request: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        """Requests that validate must refuse; default: an empty one, and one with an unknown field."""
        return [{}, {**request, "noSuchField": 1}]

    def in_place(self, backend: Backend, plan: Plan) -> Mapping[str, object]:
        """What stage has put in place: path -> a mark that a second write of it would change."""
        raise NotImplementedError

    def job(self, folder: Path, name: str, scorer: str | None, **train: Any) -> JobSpec:
        """A classification job over 24 rows that it writes to `folder`."""
        rows = [
            {"prompt": f"{'my bill is wrong' if i % 2 else 'the app crashes'}, case {i}",
             "completion": "billing" if i % 2 else "technical"}
            for i in range(24)
        ]  # fmt: skip
        (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        judge: dict[str, Any] = {"max_rows": 2, "generation": False}
        if scorer is not None:
            (folder / "scorer.py").write_text(scorer, encoding="utf-8")
            judge["scorer"] = "scorer.py"
        return JobSpec.model_validate(
            {
                "name": name, "model": self.model, "task": "classification", "data": {"train": "train.jsonl"},
                "tuning": {"kind": "lora", "r": 2}, "train": {"batch_size": 4, **train}, "eval": judge,
                "secrets": [self.secret], "env": {"COLOUR": "blue", "LAUNCH_THREADS": "1"},
            }
        )  # fmt: skip

    # Fixtures: the three jobs run once a class.

    @pytest.fixture(scope="class")
    @classmethod
    def ready(cls) -> None:
        """Override, as a classmethod, with what the jobs need: a model, an emulator, an environment."""

    @pytest.fixture(scope="class")
    @classmethod
    def secret_value(cls) -> Iterator[str]:
        value = f"planted-{random_text.token_hex(12)}"
        with cls().plant_secret(value):
            yield value

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The class's folder: `home` of its backends, and a folder a job."""
        return tmp_path_factory.mktemp("contract")

    @pytest.fixture(scope="class")
    @classmethod
    def succeeded(cls, ready: None, place: Path, secret_value: str) -> Ran:
        self = cls()
        backend = self.make_backend(place / "home")
        plan = self.plan(backend, self.job_that_succeeds(made(place / "ends-well")), place / "ends-well")
        half = dataclasses.replace(plan.bundle, files=plan.bundle.files[: len(plan.bundle.files) // 2])
        said: list[str] = []
        backend.stage(dataclasses.replace(plan, bundle=half), said.append)
        before = dict(self.in_place(backend, plan))
        backend.stage(plan, said.append)
        whole = dict(self.in_place(backend, plan))
        backend.stage(plan, said.append)
        again = dict(self.in_place(backend, plan))
        ran = Ran(plan=plan, ref=backend.submit(plan))
        ran.notes = {
            "half": before, "whole": whole, "again": again, "said": said, "second": backend.submit(plan),
            "known": list(backend.discover(plan.site)),
        }  # fmt: skip
        return self.to_end(backend, ran)

    @pytest.fixture(scope="class")
    @classmethod
    def failed(cls, ready: None, place: Path, secret_value: str) -> Ran:
        self = cls()
        backend = self.make_backend(place / "home")
        plan = self.plan(backend, self.job_that_fails(made(place / "fails")), place / "fails")
        backend.stage(plan, lambda line: None)
        return self.to_end(backend, Ran(plan=plan, ref=backend.submit(plan)))

    @pytest.fixture(scope="class")
    @classmethod
    def cancelled(cls, ready: None, place: Path, secret_value: str) -> Ran:
        """Cancelled while it trains, then removed; `notes` hold what was seen on the way."""
        self = cls()
        backend = self.make_backend(place / "home")
        plan = self.plan(backend, self.job_that_runs_long(made(place / "runs-long")), place / "runs-long")
        backend.stage(plan, lambda line: None)
        ran = Ran(plan=plan, ref=backend.submit(plan))
        self.to_end(backend, ran, until=lambda: "step" in names(ran.live))
        ran.notes["refusal"] = raised(lambda: backend.release(ran.ref))
        ran.notes["after_refusal"] = backend.status(ran.ref).state
        backend.cancel(ran.ref)
        backend.cancel(ran.ref)
        self.to_end(backend, ran)
        backend.cancel(ran.ref)
        ran.notes["after_third"] = backend.status(ran.ref)
        ran.notes["beside"] = [s for s in backend.discover(plan.site) if s.id != ran.ref.id]
        backend.release(ran.ref)
        ran.notes["after_release"] = raised(lambda: backend.status(ran.ref))
        ran.notes["known"] = list(backend.discover(plan.site))
        return ran

    @pytest.fixture(scope="class")
    @classmethod
    def planned(cls, place: Path) -> Plan:
        """A plan that is never sent."""
        self = cls()
        folder = made(place / "planned")
        backend = self.make_backend(place / "untouched")
        spec = self.job(folder, "planned", None, max_steps=2)
        hub = spec.model_copy(update={"model": dataclasses.replace(spec.model, id="example/model")})
        return self.plan(backend, hub, folder, lineage="planned-first")

    def plan(self, backend: Backend, job: JobSpec, folder: Path, lineage: str | None = None) -> Plan:
        """`job` rendered on the backend's best offer, its files in `folder`."""
        token = f"{job.name}-{random_text.token_hex(3)}"
        bundle = build_bundle(job, folder, folder / ".work")
        offer = next(iter(backend.offers(job.resources)))
        request = backend.render(job, offer, bundle, self.site(), token, lineage or token)
        return Plan(
            job=job, offer=offer, bundle=bundle, site=self.site(), token=token, lineage=lineage or token,
            request=request, estimate=estimate(offer, 24.0),
        )  # fmt: skip

    def to_end(self, backend: Backend, ran: Ran, until: Callable[[], bool] = lambda: False) -> Ran:
        """Poll status and log as the client does, until the job is over and its log drained, or `until` holds."""
        deadline = time.monotonic() + self.wait_s
        while True:
            ran.statuses.append(backend.status(ran.ref))
            ran.live += backend.logs(ran.ref, ran.live[-1].cursor if ran.live else None)
            last = LAST_EVENTS.get(ran.last.state)
            if until() or (last and (set(last) & set(names(ran.live)) or not backend.capabilities.drain_s)):
                break
            if time.monotonic() > deadline:
                backend.cancel(ran.ref)
                tail = "\n".join(line.text for line in ran.live[-20:])
                pytest.fail(f"{ran.ref} is {ran.last.state} after {self.wait_s} s:\n{tail}")
            time.sleep(self.poll_s)
        ran.lines = list(backend.logs(ran.ref))
        return ran


def names(lines: Iterable[LogLine]) -> list[str]:
    """The kinds of the events in these lines, in order."""
    return [event.name for line in lines if (event := from_line(line.text))]


def raised(call: Callable[[], object]) -> BaseException | None:
    """The exception that `call` ends in, None when it returns."""
    try:
        call()
    except Exception as exc:  # noqa: BLE001 - which one it is, is what the tests look at
        return exc
    return None


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
