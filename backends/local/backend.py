"""The local backend: the same bundle and entrypoint as in the cloud, as a process on this machine.

home/jobs/ID/ holds record.json (what submit was given), input/ (the bundle), output/, log.txt, process.json.
Resumed jobs share home/jobs/LINEAGE/checkpoints.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from backends.base import (
    Bundle,
    Capabilities,
    JobRef,
    JobState,
    JobStatus,
    LogLine,
    Plan,
    Problem,
    Progress,
    Site,
)
from backends.capabilities import known_options, refuse_unsupported
from backends.local import process
from backends.local.environment import TrainingEnvironment
from backends.local.machine import gpus
from cost.offers import Offer
from launcher.errors import (
    BackendError,
    CapacityError,
    ConfigError,
    CredentialsError,
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


class LocalBackend:
    """This machine: CPU, one GPU or several."""

    name = "local"
    capabilities = Capabilities(
        spot=False, multi_node=False, dry_run=True, regions=False, wait_for_capacity=False, secrets=True
    )

    def __init__(self, home: Path) -> None:
        self._jobs = home / "jobs"
        self._environment = TrainingEnvironment(cache())

    def check(self, site: Site) -> list[Problem]:
        problems = []
        if not self._environment.ready():
            problems.append(
                Problem(
                    what="the training environment is not built yet",
                    fix="the first launch run builds it (some minutes)",
                    fatal=False,
                )
            )
        where = next(p for p in (self._jobs, *self._jobs.parents) if p.exists())
        free = shutil.disk_usage(where).free / 2**30
        if free < FREE_GIB:
            problems.append(
                Problem(
                    what=f"{free:.1f} GiB free at {where}",
                    fix=f"free up to {FREE_GIB} GiB, or set LAUNCH_HOME and LAUNCH_CACHE_DIR to another disk",
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
        env = dict(job.env)
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
        for name in ("LAUNCH_PROCESSES", "LAUNCH_THREADS"):
            value = request["env"].get(name, "1")
            if not value.isdigit() or int(value) < 1:
                option = name.removeprefix("LAUNCH_").lower()
                raise ConfigError(
                    f"backend_options.local.{option}: {value!r} is not a number of 1 or more",
                    f"--set backend_options.local.{option}=2",
                )
        json.dumps(request)

    def stage(self, plan: Plan, progress: Progress) -> None:
        wanted = plan.job.resources.disk_gib
        folder = self._jobs / plan.token
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / 2**30
        if wanted and free < wanted:
            raise CapacityError(
                f"resources.disk_gib: {wanted} GiB wanted, {free:.0f} GiB free at {folder}",
                "free space, or set LAUNCH_HOME to another disk",
            )
        for file in plan.bundle.files:
            target = folder / "input" / file.path
            if target.is_file() and target.stat().st_size == file.size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(file.source, part)
            part.replace(target)
        record = {
            "job": plan.job.model_dump(mode="json"),
            "token": plan.token,
            "lineage": plan.lineage,
            "bundle_sha256": plan.bundle.sha256,
            "created": datetime.now(UTC).isoformat(),
        }
        if not (folder / "record.json").exists():
            write_atomic(folder / "record.json", json.dumps(record).encode())
        self.prepare(progress)

    def prepare(self, progress: Progress) -> Path:
        """Build the training environment if need be; its interpreter."""
        return self._environment.make(progress)

    def run_here(self, module: str, code: Path, env: Mapping[str, str], secrets: Iterable[str]) -> Iterator[str]:
        full = {**os.environ, **env, **self._secrets(secrets), "PYTHONPATH": str(code)}
        yield from process.stream([str(self._environment.python()), "-m", module], full)

    def submit(self, plan: Plan) -> JobRef:
        ref = JobRef(self.name, SCOPE, plan.token)
        folder = self._jobs / plan.token
        note = folder / "process.json"
        if note.exists():
            return ref
        lost = process.find(plan.token)
        if lost is not None:  # started by a launcher that died before it could write the note
            process.remember(lost, note)
            return ref
        env = {**os.environ, **self._fill(plan.request["env"]), **self._secrets(plan.request["secrets"])}
        if self._environment.brought:
            env["LAUNCH_INSTALL"] = "never"
        output = folder / "output"
        output.mkdir(exist_ok=True)
        command = list(self._fill(dict(enumerate(plan.request["command"]))).values())
        try:
            process.start(command, env, output, folder / "log.txt", note)
        except OSError as exc:
            raise BackendError(f"could not start {command[0]}: {exc}", "launch doctor") from exc
        return ref

    def status(self, ref: JobRef) -> JobStatus:
        folder = self._folder(ref)
        note = folder / "process.json"
        began = process.started(note)
        url = (folder / "output").as_uri()
        if process.running(note):
            phase = self._phase(folder)
            state = JobState.STARTING if phase in (None, "setup") else JobState.RUNNING
            return JobStatus(state=state, detail=phase or "starting", started=began, url=url)
        if began is None:
            return JobStatus(state=JobState.QUEUED, detail="not started", url=url)
        state, reason = self._ending(folder)
        return JobStatus(state=state, reason=reason, started=began, ended=_last_change(folder), url=url)

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        folder = self._folder(ref)
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
                event = parse(text)
                when = datetime.fromisoformat(event["time"]) if event and "time" in event else None
                yield LogLine(text=text, source="node-0", cursor=str(offset), time=when)

    def cancel(self, ref: JobRef) -> None:
        folder = self._folder(ref)
        found = process.running(folder / "process.json")
        if found is not None:
            (folder / "cancel").touch()
            process.ask_to_stop(found)

    def download(self, ref: JobRef, to: Path) -> None:
        source = self._folder(ref) / "output"
        for path in sorted(p for p in source.rglob("*") if p.is_file()):
            relative = path.relative_to(source)
            if relative.parts[0].startswith("."):
                continue
            _copy_verified(path, to / relative)

    def release(self, ref: JobRef) -> None:
        folder = self._folder(ref)
        if process.running(folder / "process.json"):
            raise ConfigError(f"{ref.id} still runs", f"launch cancel {ref.id}, then try again")
        shutil.rmtree(folder)

    def discover(self, site: Site) -> Iterable[JobRef]:
        return [JobRef(self.name, SCOPE, path.parent.name) for path in sorted(self._jobs.glob("*/record.json"))]

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads((self._folder(ref) / "record.json").read_text(encoding="utf-8"))
        return found

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

    def _secrets(self, names: Iterable[str]) -> dict[str, str]:
        """Values for the child's environment alone: from this environment, else the keyring."""
        found = {}
        for name in names:
            value = os.environ.get(name) or _from_keyring(name)
            if not value:
                raise CredentialsError(
                    f"secrets: {name} is neither in the environment nor in the keyring",
                    f"export {name}=...  or: keyring set finelaunch {name}",
                )
            found[name] = value
        return found

    def _phase(self, folder: Path) -> str | None:
        """The last phase that the job told of."""
        try:
            lines = (folder / "output" / "events.jsonl").read_bytes().splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            if b'"event": "phase"' in line:
                try:
                    return str(json.loads(line)["name"])
                except (ValueError, KeyError):
                    continue
        return None

    def _ending(self, folder: Path) -> tuple[JobState, str | None]:
        """The final state and its reason, from what the entrypoint left."""
        try:
            state = json.loads((folder / "output" / "state.json").read_text(encoding="utf-8"))["state"]
        except (OSError, ValueError, KeyError):
            return JobState.FAILED, (
                "the job's process is gone without a word: killed, out of memory, or the machine restarted"
            )
        if state == "succeeded":
            return JobState.SUCCEEDED, None
        if state == "stopped":
            if (folder / "cancel").exists():
                return JobState.CANCELLED, "cancelled"
            return (
                JobState.FAILED,
                "stopped before it was done (a signal or its time limit); launch resume goes on",
            )
        try:
            failure = json.loads((folder / "output" / "failure.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return JobState.FAILED, "failed; see the log"
        return JobState.FAILED, f"{failure['kind']}: {failure['message']}"


def _last_change(folder: Path) -> datetime | None:
    times = [
        path.stat().st_mtime for path in (folder / "output" / "state.json", folder / "log.txt") if path.exists()
    ]
    return datetime.fromtimestamp(times[0], UTC) if times else None


def _copy_verified(source: Path, target: Path) -> None:
    """Copy a file unless the same bytes are there already; a half-copied one never has the final name."""
    from hashlib import file_digest

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()

    wanted = digest(source)
    if target.is_file() and digest(target) == wanted:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    if digest(part) != wanted:
        part.unlink()
        raise BackendError(f"{source} changed while it was copied", "try again")
    part.replace(target)


def _from_keyring(name: str) -> str | None:
    try:
        import keyring
        import keyring.errors
    except ModuleNotFoundError:
        return None
    try:
        found = keyring.get_password("finelaunch", name)
    except keyring.errors.KeyringError:
        return None
    return str(found) if found else None
