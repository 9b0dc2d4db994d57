"""What the emulated account is like and what is wrong with it: settings, faults, denials, interruptions."""

from __future__ import annotations

import copy
import fnmatch
import secrets
import threading
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.emulators.faults import FAULTS, Fault, Interruption
from tests.emulators.sagemaker.job import TrainingJob
from tests.warm_starts import WarmStarts

ACCOUNT = "123456789012"
DEVELOPER = f"arn:aws:iam::{ACCOUNT}:user/developer"
MOST_CALLS = 20_000


@dataclass(kw_only=True)
class Settings:
    """How this emulator is set; every time in seconds."""

    folder: str
    python: str
    """The interpreter that images have, unless `images` names another."""
    warm: bool = True
    """Whether training processes start without their imports, where the image can (tests/warm_starts.py)."""
    images: dict[str, str | None] = field(default_factory=dict)
    """Pattern of TrainingImage -> its interpreter, or None: there is no such image."""
    quotas: dict[str, float] = field(default_factory=dict)
    """Quota name -> value, for those that differ from default_quota."""
    default_quota: float = 20
    grace_s: float = 120
    """Between SIGTERM and SIGKILL."""
    pace_s: float = 0.02
    """How long a state without work of its own lasts."""
    sync_s: float = 0.2
    """Between two looks at the checkpoints folder."""
    log_delay_s: float = 0
    """How late a line arrives in CloudWatch Logs."""
    empty_log_pages: int = 0
    """How many of the next pages of logs come without an event, and with a token to go on with."""
    capacity_wait_s: float = 0.2
    """How long an on-demand job is tried for where there is no capacity."""
    pending_scale: float = 1
    """What MaxPendingTimeInSeconds, half an hour at least, is multiplied with."""
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
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.calls: deque[dict[str, Any]] = deque(maxlen=MOST_CALLS)
        self.faults: list[Fault] = []
        self.denied: set[tuple[str, str]] = set()
        self.expired: set[str] = set()
        self.no_capacity: set[str] = set()
        self.plans: list[Interruption] = []
        self.principals: dict[str, str] = {}
        """Access key id -> ARN, of the jobs' roles; every other key is the developer's."""
        self.jobs: dict[str, TrainingJob] = {}

    @property
    def folder(self) -> Path:
        return Path(self.settings.folder)

    def principal(self, key: str | None) -> str:
        return self.principals.get(key or "", DEVELOPER)

    def is_role(self, key: str | None) -> bool:
        """Is this a call from inside a job? Faults are between the developer and AWS only."""
        return key in self.principals

    def new_role_key(self, role: str) -> str:
        key = f"ASIA{secrets.token_hex(8).upper()}"
        self.principals[key] = role
        return key

    def is_denied(self, principal: str, action: str) -> bool:
        return any(who == principal and fnmatch.fnmatchcase(action, what) for who, what in self.denied)

    def fault_for(self, service: str, operation: str) -> Fault | None:
        with self.lock:
            return next((f for f in self.faults if f.takes(service, operation)), None)

    def interruption_for(self, job: TrainingJob) -> Interruption | None:
        """The next planned one for this job, taken off the list; one without a name is for any that fits."""
        with self.lock:
            for plan in self.plans:
                if plan.job == job.name or (plan.job is None and (job.spot or plan.kind == "host")):
                    self.plans.remove(plan)
                    return plan
        return None

    def image_python(self, image: str) -> str | None:
        for pattern, python in self.settings.images.items():
            if fnmatch.fnmatchcase(image, pattern):
                return python
        return self.settings.python

    def quota(self, instance_type: str, spot: bool) -> float:
        return self.settings.quotas.get(quota_name(instance_type, spot), self.settings.default_quota)

    # What the control surface asks for; every answer is JSON.

    def do_fault(self, **fault: Any) -> None:
        made = Fault(**fault)
        if made.kind not in FAULTS:
            raise ValueError(f"{made.kind} is none of {', '.join(FAULTS)}")
        with self.lock:
            self.faults.append(made)

    def do_deny(self, actions: list[str], principal: str | None = None) -> None:
        self.denied |= {(principal or DEVELOPER, action) for action in actions}

    def do_expire(self, key: str) -> None:
        self.expired.add(key)

    def do_capacity(self, instance_type: str, available: bool) -> None:
        (self.no_capacity.discard if available else self.no_capacity.add)(instance_type)

    def do_quota(self, name: str, value: float) -> None:
        self.settings.quotas[name] = value

    def do_interrupt(self, **plan: Any) -> None:
        with self.lock:
            self.plans.append(Interruption(**plan))

    def do_clear(self) -> None:
        """A sound account again, as it was set up; planned interruptions and calls are forgotten too."""
        vars(self.settings).update(vars(copy.deepcopy(self._initial)))
        with self.lock:
            self.faults.clear()
            self.plans.clear()
            self.calls.clear()
        self.denied.clear()
        self.expired.clear()
        self.no_capacity.clear()

    def do_login(self) -> dict[str, str]:
        """A new access key of the developer's."""
        from moto.iam.models import iam_backends

        iam = iam_backends[ACCOUNT]["aws"]
        for old in list(iam.list_access_keys("developer"))[:-1]:  # IAM allows two
            iam.delete_access_key(old.access_key_id, "developer")
        made = iam.create_access_key("developer")
        return {"key": made.access_key_id, "secret": made.secret_access_key}

    def do_calls(self) -> list[dict[str, Any]]:
        return list(self.calls)

    def do_attempts(self, job: str) -> list[dict[str, Any]]:
        return self.jobs[job].attempts

    def do_settings(self, **changed: Any) -> dict[str, Any]:
        for name, value in changed.items():
            if not hasattr(self.settings, name):
                raise ValueError(f"no setting {name}")
            setattr(self.settings, name, value)
        return asdict(self.settings)


def quota_name(instance_type: str, spot: bool) -> str:
    """As Service Quotas names them."""
    return f"{instance_type} for {'spot training' if spot else 'training'} job usage"
