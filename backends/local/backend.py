"""The local backend: the same bundle and entrypoint as in the cloud, as a process on this machine.

home/jobs/ID/ holds record.json (what submit was given), input/ (the bundle), output/, log.txt, process.json
(written by submit: a job without one was staged and never started).
Resumed jobs share home/jobs/LINEAGE/checkpoints.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from backends.base import (
    Bundle,
    Capabilities,
    Fact,
    JobRef,
    JobState,
    JobStatus,
    LogLine,
    Plan,
    Problem,
    Progress,
    Site,
    bundle_of,
    job_record,
)
from backends.capabilities import known_options, refuse_unsupported
from backends.files import vouched_files
from backends.local import outcome, process
from backends.local.environment import TrainingEnvironment
from backends.local.files import alone, copy_verified, in_words
from backends.local.machine import gpus, old_driver
from backends.local.secrets import keep, secret_values
from cost.offers import Offer
from launcher.errors import (
    BackendError,
    CapacityError,
    ConfigError,
    JobNotFoundError,
)
from launcher.home import cache
from launcher.spec import JobSpec, Resources
from train_entry.events import parse
from train_entry.failure import write_atomic

SCOPE = "localhost"
OPTIONS = ("processes", "threads")
FREE_GIB = 8
"""Disk that a training environment and a small model need."""


OLD_DRIVER_FIX = (
    "update the driver; or name a Python with a torch for older drivers in LAUNCH_TRAIN_PYTHON; "
    "or hide the GPU (CUDA_VISIBLE_DEVICES=-1) and train on the CPU"
)


class LocalBackend:
    """This machine: CPU, one GPU or several."""

    name = "local"
    capabilities = Capabilities(
        spot=False, multi_node=False, dry_run=True, regions=False, wait_for_capacity=False, image=False,
        offline=False,
    )  # fmt: skip
    facts: tuple[Fact, ...] = ()

    def __init__(self, home: Path) -> None:
        self._jobs = home / "jobs"
        self._environment = TrainingEnvironment(cache())

    def check(self, site: Site, plan: Plan | None = None) -> list[Problem]:
        problems = []
        if not self._environment.ready():
            problems.append(
                Problem(
                    what="the training environment is not built yet",
                    fix="launch doctor --fix builds it now; otherwise the first launch run does",
                    fatal=False,
                )
            )
        if trouble := self._old_driver():
            problems.append(Problem(what=trouble, fix=OLD_DRIVER_FIX))
        where = next(p for p in (self._jobs, *self._jobs.parents) if p.exists())
        free = shutil.disk_usage(where).free / 2**30
        if free < FREE_GIB:
            problems.append(
                Problem(
                    what=f"{free:.1f} GiB free at {where}",
                    fix=f"free up to {FREE_GIB} GiB, or set LAUNCH_HOME and LAUNCH_CACHE_DIR to another disk",
                    fatal=not self._environment.ready(),
                )
            )
        return problems

    def offers(self, resources: Resources) -> Iterable[Offer]:
        found = gpus()
        wanted = resources.gpu
        fitting = [g for g in found if wanted is None or wanted.casefold() in g.name.casefold()]
        if wanted and not fitting:
            have = ", ".join(g.name for g in found) or "none"
            raise CapacityError(
                f"resources.gpu: this machine has no {wanted} (its GPUs: {have})",
                "choose another backend (launch backends), or leave resources.gpu out",
            )
        if resources.gpus > max(1, len(fitting)):
            raise CapacityError(
                f"resources.gpus: the job asks for {resources.gpus}, this machine has {len(fitting)}",
                "--set resources.gpus=1, or choose another backend",
            )
        if fitting:
            first = fitting[0]
            yield Offer(
                backend=self.name,
                instance_type=f"{resources.gpus}x {first.name}",
                gpu=first.name,
                gpus=resources.gpus,
                gpu_memory_gib=first.memory_gib,
            )
        else:
            memory = psutil.virtual_memory().total / 2**30
            cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
            yield Offer(
                backend=self.name,
                instance_type=f"CPU, {cores} cores, {memory:.0f} GiB",
                note=f"{platform.machine()}, no GPU",
            )

    def render(
        self, job: JobSpec, offer: Offer, bundle: Bundle, site: Site, token: str, lineage: str
    ) -> Mapping[str, Any]:
        refuse_unsupported(job, self.name, self.capabilities)
        options = known_options(job, self.name, OPTIONS)
        env = {"LAUNCH_GPUS": str(offer.gpus), **job.env}
        env |= {
            "LAUNCH_JOB_ID": token,
            "LAUNCH_INPUT_DIR": f"{{jobs}}/{token}/input",
            "LAUNCH_OUTPUT_DIR": f"{{jobs}}/{token}/output",
            "LAUNCH_CHECKPOINT_DIR": f"{{jobs}}/{lineage}/checkpoints",
            "LAUNCH_CACHE_DIR": "{cache}",
            "LAUNCH_PROCESSES": str(options.get("processes", max(1, offer.gpus))),
            "PYTHONPATH": f"{{jobs}}/{token}/input/code",
        }
        if "threads" in options:
            env["LAUNCH_THREADS"] = str(options["threads"])
        return {
            "command": ["{train_python}", "-m", "train_entry", token],
            "env": env,
            "secrets": list(job.secrets),
            "bundle": bundle.sha256,
        }

    def validate(self, request: Mapping[str, Any]) -> None:
        problems = _misshapen(request)
        if problems:
            raise ConfigError(
                f"the request for backend {self.name} is damaged: {'; '.join(problems)}",
                "launch plan renders it anew",
            )
        for name in ("LAUNCH_PROCESSES", "LAUNCH_THREADS"):
            value = request["env"].get(name, "1")
            if not value.isdecimal() or int(value) < 1:
                option = name.removeprefix("LAUNCH_").lower()
                raise ConfigError(
                    f"backend_options.local.{option}: {value!r} is not a number of 1 or more",
                    f"--set backend_options.local.{option}=2",
                )

    def explain(self, plan: Plan) -> Sequence[tuple[str, str]]:
        return [
            ("python", str(self._environment.python())),
            ("folder", str(self._jobs / plan.token)),
            ("processes", plan.request["env"]["LAUNCH_PROCESSES"]),
        ]

    def stage(self, plan: Plan, progress: Progress) -> None:
        folder = self._jobs / plan.token
        with in_words(f"putting {plan.token} in place"):
            folder.mkdir(parents=True, exist_ok=True)
            wanted = plan.job.resources.disk_gib
            free = shutil.disk_usage(folder).free / 2**30
            if wanted and free < wanted:
                raise CapacityError(
                    f"resources.disk_gib: {wanted} GiB wanted, {free:.0f} GiB free at {folder}",
                    "free space, or set LAUNCH_HOME to another disk",
                )
            for file in plan.bundle.files:
                if file.source is None:
                    raise BackendError(f"{file.path} is not on this machine", "launch run with the job file")
                copy_verified(file.source, folder / "input" / file.path, file.sha256)
            record = job_record(plan, datetime.now(UTC))
            write_atomic(folder / "record.json", json.dumps(record).encode())
        self.prepare(progress)

    def prepare(self, progress: Progress) -> Path:
        """Build the training environment if need be; its interpreter."""
        if trouble := self._old_driver():
            raise BackendError(trouble, OLD_DRIVER_FIX)
        return self._environment.make(progress)

    def _old_driver(self) -> str | None:
        return None if self._environment.brought else old_driver(gpus())

    def secrets(self, names: Iterable[str]) -> dict[str, str]:
        return secret_values(names)

    def run_here(self, module: str, code: Path, env: Mapping[str, str], secrets: Iterable[str]) -> Iterator[str]:
        full = {**os.environ, **env, **secret_values(secrets), "PYTHONPATH": str(code)}
        yield from process.stream([str(self._environment.python()), "-m", module], full)

    def put_secret(self, site: Site, name: str, value: str) -> str:
        return keep(name, value)

    def submit(self, plan: Plan) -> JobRef:
        ref = JobRef(self.name, SCOPE, plan.token)
        folder = self._folder(ref)
        command = list(self._fill(dict(enumerate(plan.request["command"]))).values())
        # A value of the user's stays as it is, also where it looks like a placeholder.
        asked = plan.request["env"]
        places = self._fill({k: v for k, v in asked.items() if plan.job.env.get(k) != v})
        env = {**os.environ, **asked, **places, **secret_values(plan.request["secrets"])}
        if self._environment.brought:
            env["LAUNCH_INSTALL"] = "never"
        output = folder / "output"
        with in_words(f"starting {command[0]}"):
            output.mkdir(exist_ok=True)
            with alone(folder / "submit.lock"):
                if not self._submitted(folder):
                    process.start(command, env, output, folder / "log.txt", folder / "process.json")
        return ref

    def status(self, ref: JobRef) -> JobStatus:
        folder = self._folder(ref)
        url = (folder / "output").as_uri()
        if not self._submitted(folder):
            return JobStatus(state=JobState.QUEUED, detail="not started", url=url)
        note = folder / "process.json"
        began = process.started(note)
        if process.running(note):
            phase = outcome.phase(folder)
            state = JobState.STARTING if phase in (None, "setup") else JobState.RUNNING
            return JobStatus(state=state, detail=phase or "starting", started=began, url=url)
        state, reason = outcome.ending(folder)
        ended = outcome.last_change(folder)
        if began and ended:
            ended = max(began, ended)  # file times are coarser than the clock
        return JobStatus(state=state, reason=reason, started=began, ended=ended, url=url)

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        folder = self._folder(ref)
        if cursor is not None and not cursor.isdecimal():
            raise ConfigError(f"{cursor!r} is not a cursor of {ref.id}'s log", f"launch logs {ref.id}")
        over = process.running(folder / "process.json") is None
        path = folder / "log.txt"
        if not path.exists():
            return
        offset = int(cursor or 0)
        with path.open("rb") as file:
            file.seek(offset)
            for raw in file:
                if not raw.endswith(b"\n") and not over:
                    return  # still being written
                offset += len(raw)
                text = raw.decode("utf-8", errors="replace").rstrip("\r\n")
                yield LogLine(text=text, source="node-0", cursor=str(offset), time=_time_of(text))

    def cancel(self, ref: JobRef) -> None:
        folder = self._folder(ref)
        found = process.running(folder / "process.json") if self._submitted(folder) else None
        if found is not None:
            (folder / "cancel").touch()
            process.ask_to_stop(found, folder / "output" / ".work" / "stop")

    def download(self, ref: JobRef, to: Path) -> None:
        folder = self._folder(ref)
        source = folder / "output"
        events = source / "events.jsonl"
        vouched = vouched_files(events.read_bytes() if events.is_file() else b"")
        with in_words(f"copying the output of {ref.id} to {to}"):
            for path in sorted(p for p in source.rglob("*") if p.is_file()):
                relative = path.relative_to(source)
                if not relative.parts[0].startswith("."):
                    copy_verified(path, to / relative, vouched.get(relative.as_posix()))

    def release(self, ref: JobRef) -> None:
        folder = self._folder(ref)
        for kin in self._sharing_checkpoints(ref):
            if process.running(self._jobs / kin / "process.json"):
                raise ConfigError(
                    f"{ref.id} can't be removed: {kin} still runs", f"launch cancel {kin}, then try again"
                )
        with in_words(f"removing {folder}"):
            # The record goes last: a removal that was interrupted can be repeated.
            for path in sorted(folder.iterdir(), key=lambda p: p.name == "record.json"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            folder.rmdir()

    def find(self, site: Site, token: str, region: str | None = None) -> JobRef | None:
        ref = JobRef(self.name, SCOPE, token)
        staged = (self._jobs / token / "record.json").is_file()
        return ref if staged and self._submitted(self._folder(ref)) else None

    def discover(self, site: Site, region: str | None = None) -> Iterable[JobRef]:
        staged = sorted(path.parent for path in self._jobs.glob("*/record.json"))
        return [JobRef(self.name, SCOPE, folder.name) for folder in staged if self._submitted(folder)]

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        path = self._folder(ref) / "record.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise BackendError(f"{path} can't be read: {exc}", f"remove {path.parent} if it is damaged") from exc
        return found

    def bundle(self, ref: JobRef, to: Path | None = None) -> Bundle:
        return bundle_of(self.recorded(ref), self._folder(ref) / "input")

    def _folder(self, ref: JobRef) -> Path:
        folder = self._jobs / ref.id
        if not (folder / "record.json").is_file():
            raise JobNotFoundError(f"this machine knows no job {ref.id}", "launch list")
        return folder

    def _fill(self, values: Mapping[Any, str]) -> dict[Any, str]:
        """Put this machine's paths where the request has placeholders."""
        places = {
            "{jobs}": str(self._jobs),
            "{cache}": str(cache()),
            "{train_python}": str(self._environment.python()),
        }
        filled = dict(values)
        for mark, place in places.items():
            filled = {k: v.replace(mark, place) for k, v in filled.items()}
        return filled

    def _submitted(self, folder: Path) -> bool:
        """True when the job in `folder` was started, also by a launcher that died before it noted the process."""
        note = folder / "process.json"
        if note.exists():
            return True
        lost = process.find(folder.name, folder / "output")
        if lost is not None:
            process.remember(lost, note)
        return lost is not None

    def _sharing_checkpoints(self, ref: JobRef) -> list[str]:
        """The job, and where it is the first of its lineage every other job of that lineage."""
        kin = {other.id for other in self.discover(Site(backend=self.name)) if self._lineage(other) == ref.id}
        return sorted({ref.id, *kin})

    def _lineage(self, ref: JobRef) -> str | None:
        try:
            return str(self.recorded(ref)["lineage"])
        except (BackendError, JobNotFoundError, KeyError):
            return None


def _misshapen(request: Mapping[str, Any]) -> list[str]:
    """What is not as render makes it, field by field."""
    kinds = {"command": list, "env": dict, "secrets": list, "bundle": str}
    problems = [
        f"{name} is missing" if name not in request else f"{name} is no {kind.__name__}"
        for name, kind in kinds.items()
        if not isinstance(request.get(name), kind)
    ]
    problems += [f"unknown field {name}" for name in request if name not in kinds]
    if problems:
        return problems
    texts = [*request["command"], *request["secrets"], *request["env"], *request["env"].values()]
    if not all(isinstance(text, str) for text in texts):
        problems.append("something in it is not text")
    needed = ("LAUNCH_JOB_ID", "LAUNCH_INPUT_DIR", "LAUNCH_OUTPUT_DIR", "LAUNCH_CHECKPOINT_DIR", "PYTHONPATH")
    problems += [f"env.{name} is missing" for name in needed if name not in request["env"]]
    if not request["command"]:
        problems.append("command is empty")
    return problems


def _time_of(text: str) -> datetime | None:
    event = parse(text)
    try:
        return datetime.fromisoformat(event["time"]) if event else None
    except (KeyError, TypeError, ValueError):
        return None
