"""Vertex AI on this machine, for tests: Google's own messages, and jobs that really run.

    with VertexEmulator(python) as google:
        google.account("trainer@p.iam.gserviceaccount.com"); bucket = google.bucket()
        ...                                        # any program of Google's clients, with google.environment
        google.interrupt(after_line="step 3")
        google.fault("lose", "CreateCustomJob")

What it is: one process on two free ports of 127.0.0.1. JobService and ModelService over REST and gRPC, every
request parsed into Google's own protos; Cloud Storage's JSON API over folders; Cloud Logging's entries:list;
Secret Manager; the metadata server; as much of IAM, Service Usage and Artifact Registry as launch asks. A job
goes through Google's states; each replica is a process in mount, PID, UTS and network namespaces of its own,
with the buckets at /gcs, CLUSTER_SPEC, AIP_* and CLOUD_ML_*, the host's name, and a signal that reaches process
1 only. A replica that exits with an error is started again, alone or with all others as the job says, then the
job is, as often as Google says. Without machines (`stockout`) a flex-start job waits as long as it may, all
others fail. Names have the project's number, as Vertex answers whatever it was asked with; a line of a process
is a jsonPayload, cut every 16 KiB, one of Vertex's own (task `service`) a textPayload. A line that looks like a
Python error has severity ERROR, all others INFO.

What it is not: Google. The image is a python of this machine (found as `python` and `python3` on PATH) on this
machine's file system; there is no GPU. /gcs is a folder, which the process is told is gcsfuse's: unlike there,
renames are atomic and what is written is seen at once. Google ends a job at once whose program ends with what it
calls a common error, and does not tell all that are none: here every error is tried again, which is the dearer
way. What a process writes to stderr has severity ERROR there; here both come in one pipe. A job runs there
before its state is RUNNING, while other replicas are still on their way, and its end is told about a minute
late. Whether a preempted job is PENDING again, and what a spot job does that finds no machine, is not
documented. IAM policies are not read: everything is allowed but what `deny` denies, and a job's secrets need its
service account's token. Errors have no google.rpc details; filters know `=`, `:*` and what launch asks of logs;
states take moments. The wording of messages is Google's where it was seen in public, and approximate elsewhere;
so are how a long line is cut and the names of quotas, of which there are those on GPUs and vCPUs, none on disks
and calls. Python packages, TensorBoard, web access, networks, persistent resources and reservations are not
emulated, or ignored.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.emulators.namespaces import prefix
from tests.emulators.process import EmulatorProcess
from tests.emulators.vertex.world import PROJECT

SERVICES = (
    "SECRETMANAGER", "SERVICEUSAGE", "IAM", "CLOUDRESOURCEMANAGER", "OPENIDCONNECT", "ARTIFACTREGISTRY"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request over HTTP; `status` None: it got no answer. `who`: `developer`, or a job's service account."""

    service: str
    operation: str
    who: str
    path: str
    time: float
    status: int | None


class VertexEmulator:
    """A context manager; its process ends with the block, and with the one that started it."""

    def __init__(
        self, python: Path | str = sys.executable, *, folder: Path | None = None, region: str = "us-central1",
        **settings: Any,
    ) -> None:  # fmt: skip
        """`settings`: see world.Settings (images, quotas, default_quota, grace_s, worker_restarts, ...)."""
        self.region = region
        self.project = PROJECT
        self._server = EmulatorProcess(
            "tests.emulators.vertex.server", folder, {**settings, "python": str(python)}
        )

    @staticmethod
    def unavailable() -> str | None:
        """Why it can't run here; None where it can."""
        if find_spec("werkzeug") is None or find_spec("google.cloud.aiplatform_v1") is None:
            return "the Vertex emulator needs werkzeug and google-cloud-aiplatform (make test installs them)"
        return prefix()[1]

    def __enter__(self) -> VertexEmulator:
        self._server.start(_clean_environment())
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.ports[0]}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self._server.ports[1]}"

    @property
    def parent(self) -> str:
        return f"projects/{self.project}/locations/{self.region}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program must have set to find this project, and no other."""
        return {
            "LAUNCH_VERTEX_ENDPOINT": self.endpoint, "LAUNCH_LOGGING_ENDPOINT": self.endpoint,
            "STORAGE_EMULATOR_HOST": self.endpoint, "GOOGLE_CLOUD_PROJECT": self.project,
            **{f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{name}": self.endpoint for name in SERVICES},
            "GOOGLE_APPLICATION_CREDENTIALS": os.devnull, "NO_GCE_CHECK": "true",
        }  # fmt: skip

    def storage(self) -> Any:
        """google-cloud-storage's client."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.storage import Client

        return Client(
            project=self.project, credentials=AnonymousCredentials(),
            client_options={"api_endpoint": self.endpoint},
        )  # fmt: skip

    def jobs(self) -> Any:
        """google-cloud-aiplatform's JobServiceClient, over REST."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.aiplatform_v1 import JobServiceClient

        return JobServiceClient(
            credentials=AnonymousCredentials(), transport="rest", client_options={"api_endpoint": self.endpoint}
        )

    def account(self, name: str = "trainer") -> str:
        """Make a service account; its e-mail address."""
        email = f"{name}@{self.project}.iam.gserviceaccount.com"
        self._server.ask("account", email=email)
        return email

    def bucket(self, name: str | None = None, region: str | None = None) -> str:
        """Make a bucket; its name."""
        name = name or f"launch-{secrets.token_hex(4)}"
        self.storage().create_bucket(name, location=region or self.region)
        return name

    # What goes wrong.

    def fault(
        self, kind: str, operation: str = "*", *, times: int = 1, skip: int = 0, seconds: float = 0.0
    ) -> None:
        """The next `times` calls over HTTP that match `operation`, after `skip`, go wrong.

        kind: throttle | error (500) | unavailable (503) | drop (the connection ends before anything is done) |
        lose (it is done, the answer never arrives) | cut (half of the answer's body) | slow (`seconds`).
        operation: `CreateCustomJob`, `storage:Upload`, `logging:*`.
        """
        self._server.ask("fault", kind=kind, operation=operation, times=times, skip=skip, seconds=seconds)

    def deny(self, *rights: str, who: str = "developer") -> None:
        """What `developer`, or a service account, may not do: an IAM permission, or `service.Operation`."""
        self._server.ask("deny", rights=list(rights), who=who)

    def expire(self) -> None:
        """The developer's credentials are accepted no more, until `login`."""
        self._server.ask("expire")

    def login(self) -> None:
        self._server.ask("login")

    def clear(self) -> None:
        """Forget faults, denials, expiry, interruptions, calls and changed settings."""
        self._server.ask("clear")

    def interrupt(
        self, job: str | None = None, *, after_s: float | None = None, after_line: str | None = None,
        count: int = 1, notice: bool = True, only: str | None = None,
    ) -> None:  # fmt: skip
        """Preempt `job` (None: the next spot job that trains): at once, after seconds of training, or when `count`
        log lines match the pattern `after_line`. notice False: killed with no SIGTERM."""
        self._server.ask(
            "interrupt", job=job, kind="spot", after_s=after_s, after_line=after_line, count=count, notice=notice,
            only=only,
        )  # fmt: skip

    def set(self, **settings: Any) -> None:
        """Change settings; jobs that start later have them."""
        self._server.ask("settings", **settings)

    # What happened.

    @property
    def calls(self) -> list[Call]:
        """Every request over HTTP so far, the jobs' own too."""
        return [Call(**call) for call in self._server.ask("calls")]

    def attempts(self, job: str) -> list[Mapping[str, Any]]:
        """Of a job, by its display name: number, codes (exit status of each replica), why.

        why: exit | spot | cancel | timeout.
        """
        found: list[Mapping[str, Any]] = self._server.ask("attempts", job=job)
        return found

    def log(self, job: str) -> list[str]:
        """Every line of a job, by its display name or resource name, that it or Vertex has said."""
        found: list[str] = self._server.ask("log", job=job)
        return found

    def named(self, job: str) -> str:
        """The resource name of the newest job with this display name, in any region."""
        return str(self._server.ask("named", job=job))

    def job_names(self) -> list[str]:
        """Display names of all jobs, newest first."""
        return [job.display_name for job in self.jobs().list_custom_jobs(parent=self.parent)]

    def wait(self, name: str, *states: str, timeout_s: float = 60) -> Any:
        """The CustomJob once its state is one of `states` (without JOB_STATE_); default: when it is over."""
        client, until = self.jobs(), time.monotonic() + timeout_s
        wanted = states or ("SUCCEEDED", "FAILED", "CANCELLED")
        while True:
            job = client.get_custom_job(name=name)
            state = job.state.name.removeprefix("JOB_STATE_")
            if state in wanted:
                return job
            if state in ("SUCCEEDED", "FAILED", "CANCELLED") or time.monotonic() > until:
                raise AssertionError(f"{name} is {state}, not {wanted}: {job.error}\n{self.log(name)}")
            time.sleep(0.05)

    def wait_for_line(self, job: str, pattern: str, timeout_s: float = 60) -> None:
        """Until the job has said something that matches: its program is running then."""
        until = time.monotonic() + timeout_s
        while not any(re.search(pattern, line) for line in self.log(job)):
            if time.monotonic() > until:
                raise AssertionError(f"{job} never said {pattern}: {self.log(job)}")
            time.sleep(0.05)


def _clean_environment() -> dict[str, str]:
    """This process's environment without the user's Google Cloud account and without proxies."""
    theirs = ("GOOGLE_", "CLOUDSDK_", "GCE_", "STORAGE_EMULATOR")
    return {k: v for k, v in os.environ.items() if not k.startswith(theirs) and "proxy" not in k.lower()}
