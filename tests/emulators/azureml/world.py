"""What the emulated subscription is like and what is wrong with it: settings, sign-ins, faults, denials."""

from __future__ import annotations

import base64
import copy
import fnmatch
import json
import secrets
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tests.emulators.azureml.account import Account, sign
from tests.emulators.azureml.names import CLIENT, DATASTORES, DEVELOPER, TENANT
from tests.emulators.azureml.wire import Request
from tests.emulators.faults import FAULTS, Fault, Interruption
from tests.warm_starts import WarmStarts

TOKEN_S = 3600
MOST_CALLS = 20_000


@dataclass(kw_only=True)
class Settings:
    """How this emulator is set; every time in seconds."""

    folder: str
    python: str
    """The interpreter that images have."""
    warm: bool = True
    """Whether training processes start without their imports, where the image can (tests/warm_starts.py)."""
    grace_s: float = 30
    """Between SIGTERM and SIGKILL. How long Azure ML gives is not documented."""
    pace_s: float = 0.05
    """How long a state without work of its own lasts."""
    log_delay_s: float = 0
    """How long after it was written a line of a log is in the account, also after the job's end."""
    secrets: str = "sas"
    """What listSecrets answers: `sas`, `key`, or `none` for a datastore without credentials (the sign-in)."""
    signature_s: float = 3600
    """How long a signature that is made from now on is accepted."""
    blob_denial: str = "AuthorizationPermissionMismatch"
    """Why the storage account denies what `deny` says: a role, or `AuthorizationFailure` for its firewall."""
    quotas: dict[str, int | None] = field(default_factory=dict)
    """Family, or `low-priority` -> vCPUs; default: 1000. None: Azure ML lists no such quota, and there is none."""
    used: dict[str, int] = field(default_factory=dict)
    """Family, or `low-priority` -> vCPUs that are in use."""
    deleted_secrets: list[str] = field(default_factory=list)
    """Names that the vault keeps for recovery."""
    discovery: bool = True
    """Whether the workspace says where its run history is."""
    removes: bool = True
    """Whether a job that is removed is gone soon."""
    vault_roles: list[str] = field(default_factory=lambda: ["4633458b-17de-408a-b874-0445c86b69e6"])
    """Ids of the roles that the jobs' identity has on the vault; none where `vault_policies` says who may what."""
    vault_policies: list[str] | None = None
    """What the vault's access policy lets the identity do with secrets."""
    images: list[str] = field(default_factory=lambda: ["finelaunch/train:1"])
    """What the container registry has."""
    computes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> {vmSize, vmPriority, maxNodeCount}."""
    life_s: float = 1800
    """After which the emulator ends itself, whatever happens."""


class World:
    """Shared by the server's threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._initial = copy.deepcopy(settings)
        self.warm_starts = WarmStarts(settings.python, Path(settings.folder))
        self.port = 0
        self.authority = Path()
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.calls: deque[dict[str, Any]] = deque(maxlen=MOST_CALLS)
        self.hosts: set[str] = set()
        """Names that the developer wanted to connect to and that are not emulated."""
        self.faults: list[Fault] = []
        self.plans: list[Interruption] = []
        self.denied: set[str] = set()
        self.no_capacity = False
        self.logged_out = False
        self.tokens: dict[str, tuple[str, str, float]] = {}
        """Bearer token -> (who, audience, when it ends)."""
        self.signatures: dict[str, bool] = {}
        """`sig` of every signed URL -> has it been taken back?"""
        self.vault: dict[str, list[str]] = {}
        self.assets: dict[str, dict[str, dict[str, Any]]] = {
            "codes": {},
            "environments": {},
            "data": {},
            "models": {},
        }
        self.jobs: dict[str, Any] = {}
        self.account: Account
        """Set before the first request."""

    @property
    def folder(self) -> Path:
        return Path(self.settings.folder)

    def new_token(self, who: str, audience: str) -> str:
        """Three parts in base64, as a JWT has them; its signature is none."""
        now = int(time.time())
        claims = {"aud": audience, "iss": f"https://sts.windows.net/{TENANT}/", "nbf": now - 60, "iat": now - 60,
                  "exp": now + TOKEN_S, "oid": who, "tid": TENANT}  # fmt: skip
        if who == DEVELOPER:
            claims["appid"] = CLIENT
        parts = [json.dumps(part).encode() for part in ({"alg": "none", "typ": "JWT"}, claims)]
        parts.append(secrets.token_bytes(12))
        token = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
        self.tokens[token] = (who, audience, time.time() + TOKEN_S)
        return token

    def holder(self, header: str | None, audience: str) -> str | None:
        """Who sent this Authorization header, where it is good for the audience."""
        who, meant, ends = self.tokens.get((header or "").removeprefix("Bearer "), ("", "", 0.0))
        if not who or meant != audience or ends < time.time() or (who == DEVELOPER and self.logged_out):
            return None
        return who

    def new_signature(self, permissions: str) -> str:
        """The query of a signed URL."""
        made = sign(permissions, self.settings.signature_s)
        self.signatures.setdefault(dict(parse_qsl(made))["sig"], False)
        return made

    def has_ended(self, request: Request) -> bool:
        """Is it signed, or sent with a sign-in, that somebody has taken back? The account can't know."""
        if header := request.headers.get("authorization"):
            return self.logged_out and self.tokens.get(header.removeprefix("Bearer "), ("",))[0] == DEVELOPER
        return self.signatures.get(request.query.get("sig", ""), False)

    def is_denied(self, service: str, operation: str) -> bool:
        return any(fnmatch.fnmatchcase(f"{service}:{operation}", pattern) for pattern in self.denied)

    def fault_for(self, service: str, operation: str) -> Fault | None:
        with self.lock:
            return next((f for f in self.faults if f.takes(service, operation)), None)

    def interruption_for(self, job: str, spot: bool) -> Interruption | None:
        """The next planned one for this job, taken off the list."""
        with self.lock:
            for plan in self.plans:
                if plan.job == job or (plan.job is None and spot):
                    self.plans.remove(plan)
                    return plan
        return None

    # What the control surface asks for; every answer is JSON.

    def do_fault(self, **fault: Any) -> None:
        made = Fault(**fault)
        if made.kind not in FAULTS:
            raise ValueError(f"{made.kind} is none of {', '.join(FAULTS)}")
        with self.lock:
            self.faults.append(made)

    def do_deny(self, patterns: list[str]) -> None:
        self.denied |= set(patterns)

    def do_expire(self) -> None:
        self.logged_out = True
        self.signatures = dict.fromkeys(self.signatures, True)

    def do_login(self) -> None:
        self.logged_out = False

    def do_capacity(self, available: bool) -> None:
        self.no_capacity = not available

    def do_interrupt(self, **plan: Any) -> None:
        with self.lock:
            self.plans.append(Interruption(**plan))

    def do_clear(self) -> None:
        """A sound subscription again; planned interruptions and calls are forgotten too."""
        vars(self.settings).update(vars(copy.deepcopy(self._initial)))
        with self.lock:
            self.faults.clear()
            self.plans.clear()
            self.calls.clear()
        self.denied.clear()
        self.no_capacity = self.logged_out = False

    def do_calls(self) -> list[dict[str, Any]]:
        return list(self.calls)

    def do_strangers(self) -> list[str]:
        return sorted(self.hosts)

    def do_jobs(self) -> list[str]:
        return list(self.jobs)

    def do_attempts(self, job: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.jobs[job].attempts
        return found

    def do_log(self, job: str) -> list[str]:
        return self.jobs[job].sent_lines() if job in self.jobs else []

    def do_blobs(self, prefix: str) -> dict[str, str]:
        return dict(self.account.keys(DATASTORES["workspaceblobstore"], prefix))

    def do_settings(self, **changed: Any) -> dict[str, Any]:
        for name, value in changed.items():
            if not hasattr(self.settings, name):
                raise ValueError(f"no setting {name}")
            setattr(self.settings, name, value)
        return asdict(self.settings)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
