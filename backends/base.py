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
from typing import Any, Literal, Protocol, runtime_checkable

from cost.estimate import CostEstimate
from cost.offers import Offer
from launcher.errors import ConfigError
from launcher.spec import JobSpec, Resources

Progress = Callable[[str], None]
"""Takes a line of text for the user who waits; a Moved line is drawn as a bar where that can be."""


class Moved(str):
    """A progress line that says how far it is: bytes done of all bytes."""

    done: int
    total: int

    def __new__(cls, what: str, done: int, total: int) -> Moved:
        line = super().__new__(cls, f"{what}: {done / 2**20:.1f} of {total / 2**20:.1f} MiB")
        line.done, line.total = done, total
        return line


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
class Wait:
    """A time in which a job had no machine; `until` None: it has none yet. `said`: its vendor's words."""

    since: datetime
    until: datetime | None
    said: str


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
    billable_s: float | None = None
    """Seconds that the vendor bills for each of the job's machines, once it says so."""
    machine: str | None = None
    """The instance type that the job got, where the vendor chose one of several."""
    tries: Mapping[str, str] = field(default_factory=dict)
    """Instance type -> what became of it, in the order they were asked for, as far as the vendor tells."""
    waits: tuple[Wait, ...] = ()
    """Every time without a machine, oldest first, where the vendor tells them."""
    preempted: bool = False
    """True of a job that failed because its spot capacity was taken, and that its vendor won't start again."""


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
    kind: Literal["config", "credentials", "quota", "unreachable"] = "config"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a backend can do; a job that asks for more is refused by name before anything is sent."""

    spot: bool = False
    multi_node: bool = False
    dry_run: bool = False
    regions: bool = True
    wait_for_capacity: bool = True
    fallback: bool = False
    resubmits: bool = False
    """Its vendor may end a spot job instead of starting it again; a follower of its owner then submits it anew."""
    secrets: bool = True
    image: bool = True
    offline: bool = True
    poll_s: float = 0.5
    """How long a follower waits between two looks at the job."""
    drain_s: float = 0.0
    """How long after its end a job's last lines may still be on their way."""


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
    owner: str | None = None
    """Who submits: rides along as a tag, so that people who share an account know whose job it is."""

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
    """One file of a bundle: its path inside, and where its bytes are on this machine (None: nowhere here)."""

    path: str
    size: int
    sha256: str
    source: Path | None = None


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

    def check(self, site: Site, plan: Plan | None = None) -> list[Problem]:
        """Read-only look at credentials, quota, tools, and at what `plan` needs of them; each with its fix."""

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

    def find(self, site: Site, token: str, region: str | None = None) -> JobRef | None:
        """The job with this token, None when the vendor has none: asked when a submit's answer was lost.

        `region`: the job's own, where it names one.
        """

    def discover(self, site: Site, region: str | None = None) -> Iterable[JobRef]:
        """The jobs of ours that the vendor knows: rebuilds a lost record. `region`: another than the site's."""

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        """What submit left with the job so that a lost record can be rebuilt (see `job_record`)."""

    def bundle(self, ref: JobRef, to: Path | None = None) -> Bundle:
        """The bundle that the job was given. With `to`, files that are not on this machine are brought there.

        Without, they have no source: `stage` finds them where they were put.
        """


def job_record(plan: Plan, created: datetime) -> dict[str, Any]:
    """What a backend keeps with a job, JSON-able, so that `recorded` and `bundle` can answer on any machine."""
    return {
        "job": plan.job.model_dump(mode="json"),
        "backend": plan.offer.backend,
        "facts": {name: value for name, value in plan.site.facts.items() if value},
        "token": plan.token,
        "lineage": plan.lineage,
        "bundle_sha256": plan.bundle.sha256,
        "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in plan.bundle.files],
        "created": created.isoformat(),
        "owner": plan.site.owner,
        "hourly": None if plan.offer.hourly is None else str(plan.offer.hourly),
    }


def bundle_of(record: Mapping[str, Any], sources: Path | None = None) -> Bundle:
    """The bundle of a `job_record`; its files lie under `sources`, or not on this machine."""
    found = [BundleFile(**file, source=sources / file["path"] if sources else None) for file in record["files"]]
    return Bundle(sha256=record["bundle_sha256"], files=tuple(found))


@runtime_checkable
class RunsHere(Protocol):
    """Optional: a backend that can run a module of the entrypoint on this machine, in the foreground."""

    def prepare(self, progress: Progress) -> Path:
        """Make the training environment ready; its interpreter."""

    def run_here(self, module: str, code: Path, env: Mapping[str, str], secrets: Iterable[str]) -> Iterator[str]:
        """Run `python -m module` with `code` on its path; its output line by line.

        Raises JobFailedError with the last lines when it does not exit with 0. It ends with the iterator.
        """

    def secrets(self, names: Iterable[str]) -> dict[str, str]:
        """This machine's values of secrets. Raises CredentialsError naming one that is nowhere."""


@runtime_checkable
class Installs(Protocol):
    """Optional: a backend whose vendor's SDK lives in an environment of its own."""

    def install(self, progress: Progress, clouds: Sequence[str] | None = None) -> Path:
        """Build that environment if need be, or mend it; its interpreter. Raises ConfigError or BackendError.

        `clouds`: those for which it is from now on; None: as before.
        """


@runtime_checkable
class ListsPrices(Protocol):
    """Optional: a backend whose vendor's SDK brings a catalogue of prices."""

    def list_prices(self) -> Mapping[str, Any]:
        """{"rows": [{...}], "failed": {cloud: why}} as the vendor has them; may use the network.

        Raises BackendNotInstalledError or BackendError.
        """


@runtime_checkable
class RunsInSomePlaces(Protocol):
    """Optional: a backend that renders requests for more places than this version runs jobs in."""

    def obstacle(self, region: str | None, site: Site) -> str | None:
        """Why no job can run in `region`; None where jobs can."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Machines that run, by the job's name; `hourly` in USD for all of them, where the vendor tells."""

    name: str
    what: str
    hourly: float | None
    since: datetime | None
    stop: str
    """The command that ends them."""


@runtime_checkable
class ListsMachines(Protocol):
    """Optional: a backend whose machines can outlive their job."""

    def machines(self, site: Site) -> Iterable[Machine]:
        """All that run now. Raises LaunchError."""


@runtime_checkable
class Sweeps(Protocol):
    """Optional: a backend whose storage can keep what belongs to no job: uploads broken off, unused bundles."""

    def sweep(self, site: Site, before: datetime) -> int:
        """Remove what of ours is older and belongs to no job; how many things that were. Raises LaunchError."""


@runtime_checkable
class KeepsSecrets(Protocol):
    """Optional: a backend whose vendor has a store for secrets that jobs read by reference."""

    def put_secret(self, site: Site, name: str, value: str) -> str:
        """Store `value` under `name`, a new version where there is one; where it is kept, in words."""


@runtime_checkable
class FindsFacts(Protocol):
    """Optional: a backend that can look up in the account what `launch setup` would ask for."""

    def find_facts(self, known: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        """Fact -> values that would do, best first; read-only. Raises CredentialsError."""

    def advice(self, known: Mapping[str, str]) -> str:
        """The commands and policies that make what the account lacks, least privilege, ready to paste."""


@dataclass(frozen=True, kw_only=True)
class ContainerContract:
    """What a vendor puts around the job's process on one node, its paths laid under a folder of this machine.

    `command` begins with the interpreter's name; `kept` is what outlives an interruption (the checkpoints).
    """

    command: tuple[str, ...]
    env: Mapping[str, str]
    files: Mapping[Path, str]
    bundle: Path
    folders: tuple[Path, ...]
    kept: Path
    output: Path


@runtime_checkable
class Rehearsable(Protocol):
    """Optional: a backend that can say what its container is like, so that a job is rehearsed on this machine."""

    def contract(self, plan: Plan, root: Path, node: int) -> ContainerContract:
        """The container of node `node` of the plan's job, everything in it under `root`."""


@runtime_checkable
class SaysWho(Protocol):
    """Optional: a backend that can tell as whom it speaks to its vendor."""

    def signed_in(self, site: Site) -> str:
        """Who, and which credential of the chain answered, one line without a secret. Raises CredentialsError."""
