"""What the emulated project is like and what is wrong with it: settings, faults, denials, interruptions."""

from __future__ import annotations

import copy
import fnmatch
import itertools
import secrets
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.emulators.faults import FAULTS, Fault, Interruption
from tests.warm_starts import WarmStarts

PROJECT, NUMBER = "demo-project", "123456789012"
"""The project's id, and the number by which Vertex names it in what it makes."""
MOST_CALLS = 20_000
DEVELOPER = "developer"
VCPUS = 12
PIECE_BYTES = 16 * 1024
"""Of one record of Docker's json-file log."""


class Refused(Exception):
    """An error of Google's: HTTP status, the name of its gRPC code, what it says."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(message)
        self.code, self.status = code, status


def invalid(message: str) -> Refused:
    return Refused(400, "INVALID_ARGUMENT", message)


def not_found(message: str) -> Refused:
    return Refused(404, "NOT_FOUND", message)


@dataclass(kw_only=True)
class Settings:
    """How this emulator is set; every time in seconds."""

    folder: str
    python: str
    """The interpreter that images have, unless `images` names another."""
    warm: bool = True
    """Whether training processes start without their imports, where the image can (tests/warm_starts.py)."""
    images: dict[str, str | None] = field(default_factory=dict)
    """Pattern of imageUri -> its interpreter, or None: there is no such image."""
    quotas: dict[str, int | None] = field(default_factory=dict)
    """Name of a quota metric, without its service -> value, for those that differ from default_quota; None: Google
    tells none, and enforces none here."""
    default_quota: int = 64
    """On GPUs; on vCPUs it is VCPUS times as much."""
    stockout: list[str] = field(default_factory=list)
    """Machine types of which there are none."""
    machine_account: str | None = None
    """The service account of the developer's own machine, as its metadata server tells; None: it is a laptop."""
    login: str | None = None
    """The e-mail address of who is logged in; None: the login was not for it."""
    grace_s: float = 30
    """Between SIGTERM and SIGKILL."""
    pace_s: float = 0.05
    """How long a state without work of its own lasts."""
    worker_restarts: int = 5
    job_retries: int = 3
    """After exits with an error: a worker in place, then the whole job.
    https://cloud.google.com/vertex-ai/docs/training/understanding-training-service (2026-11-23)
    """
    log_delay_s: float = 0
    """How late a line can be listed in Cloud Logging."""
    list_delay_s: float = 0
    """How late a new job can be listed; by its name it is there at once."""
    operation_s: float = 0.2
    """How long a long-running operation runs."""
    operation_error: str | None = None
    """What an operation ends with instead of its answer; what it was for is done all the same."""
    life_s: float = 1800
    """After which the emulator ends itself, whatever happens."""


class World:
    """Shared by the server's threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._initial = copy.deepcopy(settings)
        self.warm_starts = WarmStarts(settings.python, Path(settings.folder))
        self.port = 0
        self.app: Any = None
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.numbers = itertools.count(int(time.time()) * 1000)
        self.calls: deque[dict[str, Any]] = deque(maxlen=MOST_CALLS)
        self.faults: list[Fault] = []
        self.denied: set[tuple[str, str]] = set()
        self.expired = False
        self.plans: list[Interruption] = []
        self.jobs: dict[str, Any] = {}
        """Resource name -> job.Job."""
        self.models: dict[str, list[Any]] = {}
        self.operations: dict[str, tuple[Any, Any, float]] = {}
        self.entries: list[dict[str, Any]] = []
        self.secrets: dict[str, list[str]] = {}
        """Resource name -> versions, in base64."""
        self.accounts: set[str] = set()
        self.buckets: dict[str, str] = {}
        """Name -> location."""
        self.tokens: dict[str, str] = {}
        """Access token -> the service account that it is of."""
        (self.folder / "buckets").mkdir(parents=True, exist_ok=True)

    @property
    def folder(self) -> Path:
        return Path(self.settings.folder)

    def bucket(self, name: str) -> Path:
        """The folder in which its objects lie."""
        return self.folder / "buckets" / name

    def is_denied(self, who: str, right: str) -> bool:
        return any(principal == who and fnmatch.fnmatchcase(right, what) for principal, what in self.denied)

    def fault_for(self, service: str, operation: str) -> Fault | None:
        with self.lock:
            return next((f for f in self.faults if f.takes(service, operation)), None)

    def interruption_for(self, job: Any) -> Interruption | None:
        """The next planned one for this job, taken off the list; one without a name is for any spot job."""
        with self.lock:
            for plan in self.plans:
                if plan.job == job.proto.display_name or (plan.job is None and job.spot):
                    self.plans.remove(plan)
                    return plan
        return None

    def image_python(self, image: str) -> str | None:
        for pattern, python in self.settings.images.items():
            if fnmatch.fnmatchcase(image, pattern):
                return python
        return self.settings.python

    def quota(self, metric: str) -> int | None:
        usual = self.settings.default_quota * (VCPUS if metric.endswith("cpus") else 1)
        return self.settings.quotas.get(metric, usual)

    def has(self, metric: str, wanted: int) -> bool:
        quota = self.quota(metric)
        return quota is None or wanted <= quota

    def token_of(self, account: str) -> str:
        token = secrets.token_hex(16)
        self.tokens[token] = account
        return token

    def log(self, job: Any, task: str, message: str, severity: str) -> None:
        """A line as Vertex's agent writes it to Cloud Logging: in one entry, or more where it is long."""
        if task == "service":  # it speaks in one of the two fields, the processes' lines stand in the other
            self.note(job, task, severity, {"textPayload": message})
            return
        line = f"{message}\n".encode()
        for start in range(0, len(line), PIECE_BYTES):
            piece = line[start : start + PIECE_BYTES].decode(errors="replace")
            said = {"message": piece, "attrs": {"tag": task}, "levelname": severity}
            self.note(job, task, severity, {"jsonPayload": said})

    def note(self, job: Any, task: str, severity: str, said: dict[str, Any]) -> None:
        at = time.time_ns()
        number = job.proto.name.rpartition("/")[2]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at // 10**9))
        with self.lock:
            self.entries.append(
                {
                    "insertId": f"e{next(self.numbers):x}", "timestamp": f"{stamp}.{at % 10**9:09d}Z",
                    "severity": severity, "logName": f"projects/{PROJECT}/logs/{task}", **said,
                    "labels": {"ml.googleapis.com/job_id/log_area": "root"}, "_at": at,
                    "resource": {
                        "type": "ml_job",
                        "labels": {"job_id": number, "task_name": task, "project_id": PROJECT},
                    },
                }
            )  # fmt: skip

    # What the control address asks for; every answer is JSON.

    def do_fault(self, **fault: Any) -> None:
        made = Fault(**fault)
        if made.kind not in FAULTS:
            raise ValueError(f"{made.kind} is none of {', '.join(FAULTS)}")
        with self.lock:
            self.faults.append(made)

    def do_deny(self, rights: list[str], who: str = DEVELOPER) -> None:
        self.denied |= {(who, right) for right in rights}

    def do_expire(self) -> None:
        self.expired = True

    def do_login(self) -> None:
        self.expired = False

    def do_account(self, email: str) -> None:
        self.accounts.add(email)

    def do_interrupt(self, **plan: Any) -> None:
        with self.lock:
            self.plans.append(Interruption(**plan))

    def do_clear(self) -> None:
        """A sound project again, as it was set up; planned interruptions and calls are forgotten too."""
        vars(self.settings).update(vars(copy.deepcopy(self._initial)))
        with self.lock:
            self.faults.clear()
            self.plans.clear()
            self.calls.clear()
        self.denied.clear()
        self.expired = False

    def do_calls(self) -> list[dict[str, Any]]:
        return list(self.calls)

    def do_named(self, job: str) -> str:
        return str(self.job_called(job).proto.name)

    def do_attempts(self, job: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.job_called(job).attempts
        return found

    def do_log(self, job: str) -> list[str]:
        number = self.job_called(job).proto.name.rpartition("/")[2]
        with self.lock:
            found = [e for e in self.entries if e["resource"]["labels"]["job_id"] == number]
        return [str(e.get("textPayload") or e["jsonPayload"]["message"]).rstrip("\n") for e in found]

    def do_settings(self, **changed: Any) -> dict[str, Any]:
        for name, value in changed.items():
            if not hasattr(self.settings, name):
                raise ValueError(f"no setting {name}")
            setattr(self.settings, name, value)
        return asdict(self.settings)

    def job_called(self, name: str) -> Any:
        """By its display name or its resource name, the newest."""
        with self.lock:
            return next(j for j in reversed(self.jobs.values()) if name in (j.proto.display_name, j.proto.name))


def numbered(name: str) -> str:
    """A resource's name as Vertex keeps it: with the project's number, whichever of the two it was given."""
    return name.replace(f"projects/{PROJECT}/", f"projects/{NUMBER}/", 1)
