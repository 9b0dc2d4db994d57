"""The interface of every backend: its types and its Protocol, and nothing else.

Constructors do no I/O. Terminal states are final; a job goes back from RUNNING to STARTING or QUEUED only
with `interruptions` raised. No exception of a vendor's SDK leaves a backend: what it raises is LaunchError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cost.estimate import CostEstimate
from cost.offers import Offer
from launcher.errors import ConfigError
from launcher.spec import JobSpec, Resources

Progress = Callable[[str], None]
"""Takes a line of text for the user who waits."""


class JobState(StrEnum):
    """A job's state in one vocabulary for all vendors."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What a backend knows of a job now. `reason` says in words why it ended or waits."""

    state: JobState
    detail: str = ""
    reason: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    interruptions: int = 0
    url: str | None = None


@dataclass(frozen=True)
class JobRef:
    """Where a job is: prints and parses as `backend://scope/id`."""

    backend: str
    scope: str
    id: str

    def __str__(self) -> str:
        return f"{self.backend}://{self.scope}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> JobRef:
        """`sagemaker://us-east-1/support-triage-3f9c` -> JobRef. Raises ConfigError."""
        # Not urlsplit: it knows schemes without "_" only, and cuts ids at "?" and "#".
        found = re.fullmatch(r"([^:/\s]+)://([^/\s]+)/(\S+?)/?", text.strip())
        if found is None:
            raise ConfigError(
                f"{text!r} is not a job reference", "write backend://scope/id, as launch list --json prints it"
            )
        return cls(*found.groups())


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """One whole line of a job's output. `cursor` resumes right after it."""

    text: str
    source: str
    cursor: str
    time: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something `check` found: what is wrong and the command that fixes it."""

    what: str
    fix: str
    fatal: bool = True


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can do; a job that asks for more is refused by name before anything is sent."""

    spot: bool = False
    multi_node: bool = False
    dry_run: bool = False
    regions: bool = True
    wait_for_capacity: bool = True
    fallback: bool = False
    secrets: bool = True
    image: bool = True
    offline: bool = True
    submits: bool = True


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing about an account that a backend is told once, by `launch setup`; never a secret.

    `pattern` must match the whole value. `example` has the right form: validation puts it where a fact that
    is not set yet leaves a placeholder. An optional fact without a value is left out of the request.
    """

    name: str
    what: str
    example: str
    pattern: str
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class Site:
    """One backend's account facts (role, bucket, project, workspace, ...), name -> value."""

    backend: str
    facts: Mapping[str, str | None] = field(default_factory=dict)

    def need(self, name: str) -> str:
        """The fact's value, or a placeholder in plain sight that submit refuses."""
        return self.facts.get(name) or f"<set {self.backend}.{name}>"

    def get(self, name: str) -> str | None:
        """The fact's value, None when it is not set."""
        return self.facts.get(name)


PLACEHOLDER = re.compile(r"<set ([a-z0-9_]+)\.([a-z0-9_]+)>")
"""What Site.need leaves in a request for a fact that is not set: backend, name."""


def placeholders(value: Any) -> list[tuple[str, str]]:
    """(backend, fact) of every placeholder in a request, each once, in order."""
    found = {match.groups(): None for match in PLACEHOLDER.finditer(json.dumps(value, ensure_ascii=False))}
    return [(backend, fact) for backend, fact in found]


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """One file of a bundle: its path inside, and where its bytes are on this machine."""

    path: str
    size: int
    sha256: str
    source: Path


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Everything the job takes along, content-addressed. `sha256` covers every path and content."""

    sha256: str
    files: tuple[BundleFile, ...]

    @property
    def size(self) -> int:
        """Bytes, uncompressed."""
        return sum(f.size for f in self.files)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that submit needs. `lineage` names the checkpoints that the job shares with its resumes."""

    job: JobSpec
    offer: Offer
    bundle: Bundle
    site: Site
    token: str
    lineage: str
    request: Mapping[str, Any]
    estimate: CostEstimate


class Backend(Protocol):
    """What every backend does. See docs/adding-a-backend.md; launcher.testing.BackendContract tests it."""

    name: str
    capabilities: Capabilities
    facts: tuple[Fact, ...]

    def __init__(self, home: Path) -> None: ...

    def check(self, site: Site) -> list[Problem]:
        """Read-only look at credentials, quota, tools; each problem with its fix."""

    def offers(self, resources: Resources) -> Iterable[Offer]:
        """Hardware that fits, best first. Raises CapacityError or UnsupportedError when there is none."""

    def render(
        self, job: JobSpec, offer: Offer, bundle: Bundle, site: Site, token: str, lineage: str
    ) -> Mapping[str, Any]:
        """The exact, JSON-able request. Pure: no network, no SDK, no clock; equal for equal arguments.

        Raises UnsupportedError naming the field that it can't express.
        """

    def validate(self, request: Mapping[str, Any]) -> None:
        """Check the request against the vendor's own model, offline; placeholders count as their examples.

        Raises ConfigError, or BackendNotInstalledError when the model comes with an extra that is missing.
        """

    def explain(self, plan: Plan) -> Sequence[tuple[str, str]]:
        """The request for a person, (what, value) in order: image, place, time limits, uploads, assumptions."""

    def stage(self, plan: Plan, progress: Progress) -> None:
        """Put in place what the request refers to; resumable, skips what is there, tells `progress` a line."""

    def submit(self, plan: Plan) -> JobRef:
        """Start the job: the only method that spends money. Twice with one token is one job."""

    def status(self, ref: JobRef) -> JobStatus:
        """Raises JobNotFoundError."""

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        """The whole lines there are now after `cursor`, oldest first; ends when there are no more."""

    def cancel(self, ref: JobRef) -> None:
        """Ask the job to checkpoint and stop. Idempotent; silent if it is already over."""

    def download(self, ref: JobRef, to: Path) -> None:
        """Bring the job's output folder to `to`: resumable, each file verified by hash."""

    def release(self, ref: JobRef) -> None:
        """Remove what the job left stored or running. Refuses while the job runs."""

    def discover(self, site: Site) -> Iterable[JobRef]:
        """The jobs of ours that the vendor knows: rebuilds a lost record."""

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        """What submit left with the job so that a lost record can be rebuilt: {job, token, lineage, ...}."""


@runtime_checkable
class RunsHere(Protocol):
    """Optional: a backend that can run a module of the entrypoint on this machine, in the foreground."""

    def prepare(self, progress: Progress) -> Path:
        """Make the training environment ready; its interpreter."""

    def run_here(self, module: str, code: Path, env: Mapping[str, str], secrets: Iterable[str]) -> Iterator[str]:
        """Run `python -m module` with `code` on its path; its output line by line.

        Raises JobFailedError with the last lines when it does not exit with 0. It ends with the iterator.
        """


@runtime_checkable
class Rehearsable(Protocol):
    """Optional: a backend that can run its container contract on this machine."""

    def contract(self, plan: Plan, root: Path, node: int) -> Mapping[str, Any]: ...
