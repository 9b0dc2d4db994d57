"""SageMaker on this machine, for tests: moto's HTTP server, and jobs that really run.

    with SageMakerEmulator(python) as aws:
        role, bucket = aws.role(), aws.bucket()
        aws.client("sagemaker").create_training_job(...)     # or any program, with aws.environment
        aws.interrupt(after_line="step 3")
        aws.fault("lose", "CreateTrainingJob")

What it is: one process on a free port of 127.0.0.1. S3, IAM, STS, CloudWatch Logs, Secrets Manager and ECR are
moto's. Training jobs, SimulatePrincipalPolicy and SageMaker's quotas are this folder's: the request is held
against the limits in AWS's own model and the rules between fields; the job goes through AWS's states; each
instance is a process in mount, PID, UTS and network namespaces of its own, with the real /opt/ml (filled from
S3, checkpoints synced while it runs, artifacts sent up), the host's name, a signal that reaches process 1 only,
and credentials from a container endpoint. AWS's boto3, `sagemaker-training` and `ModelTrainer` are run through
it by the tests beside this file.

What it is not: AWS. The image is a python of this machine (found as `python` and `python3` on PATH) on this
machine's file system; there is no GPU, and instances of one job share ports and loopback (`lo`). IAM policies
are not read: everything is allowed but what `deny` denies. Requests' signatures are not checked. States take
moments; quotas, their codes and billed seconds are invented; S3 is consistent, and checkpoints are synced within
a second, never deleted. The wording of an error is AWS's where it was seen in public, and approximate elsewhere.
How keys become paths where a prefix ends within a name, and of two hosts' artifacts at one path the first
winning, are assumptions. Pipe mode, EFS and FSx, marketplace algorithms, heterogeneous clusters, warm pools,
training plans, debugger, profiler and serverless jobs are refused as not emulated, or ignored.
"""

from __future__ import annotations

import json
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


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request that arrived; `status` None: it got no answer."""

    service: str
    operation: str
    key: str | None
    role: bool
    time: float
    status: int | None
    right: str
    """The IAM action that allows it."""
    agent: str
    """Its User-Agent: the launcher's has `finelaunch` in it."""


class SageMakerEmulator:
    """A context manager; its process ends with the block, and with the one that started it."""

    def __init__(
        self, python: Path | str = sys.executable, *, folder: Path | None = None, region: str = "us-east-1",
        **settings: Any,
    ) -> None:  # fmt: skip
        """`settings`: see world.Settings (images, quotas, default_quota, grace_s, pace_s, log_delay_s, ...)."""
        self.region = region
        known = {"grace_s": 5.0, **settings, "python": str(python)}
        self._server = EmulatorProcess("tests.emulators.sagemaker.server", folder, known)
        self._login: Mapping[str, str] = {}
        self._clients: dict[Any, Any] = {}

    @staticmethod
    def unavailable() -> str | None:
        """Why it can't run here; None where it can."""
        if find_spec("moto") is None or find_spec("flask") is None:
            return "the SageMaker emulator needs moto and flask (make test installs them)"
        return prefix()[1]

    def __enter__(self) -> SageMakerEmulator:
        self._server.start(_clean_environment())
        self.login()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.ports[0]}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self._server.ports[0]

    @property
    def pid(self) -> int:
        return self._server.pid

    @property
    def key(self) -> str:
        """The developer's access key id."""
        return self._login["key"]

    @property
    def environment(self) -> dict[str, str]:
        """What a program must have set to find this account, and no other, as the developer."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self._login["secret"], "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region, "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }  # fmt: skip

    def client(self, service: str, region: str | None = None, **config: Any) -> Any:
        """A boto3 client of the developer's; `config` goes to botocore's Config."""
        import boto3
        from botocore.config import Config

        known = (service, region, self.key, json.dumps(config, sort_keys=True))
        if known not in self._clients:
            self._clients[known] = boto3.session.Session().client(
                service, region_name=region or self.region, endpoint_url=self.endpoint, aws_access_key_id=self.key,
                aws_secret_access_key=self._login["secret"], config=Config(**config),
            )  # fmt: skip
        return self._clients[known]

    def role(self, name: str = "launch-training", *, trusted: bool = True) -> str:
        """Make a role; its ARN. Not `trusted`: SageMaker may not assume it."""
        service = f"{'sagemaker' if trusted else 'ec2'}.amazonaws.com"
        allow = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
        trust = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        made = self.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust)
        return str(made["Role"]["Arn"])

    def bucket(self, name: str | None = None, region: str | None = None) -> str:
        """Make a bucket; its name."""
        name, region = name or f"launch-{secrets.token_hex(4)}", region or self.region
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        self.client("s3", region).create_bucket(Bucket=name, **place)
        return name

    # What goes wrong.

    def fault(
        self, kind: str, operation: str = "*", *, times: int = 1, skip: int = 0, seconds: float = 0.0
    ) -> None:
        """The next `times` calls of the developer's that match `operation`, after `skip`, go wrong.

        kind: throttle | error (500) | unavailable (503) | drop (the connection ends before anything is done) |
        lose (it is done, the answer never arrives) | cut (half of the answer's body) | slow (`seconds`).
        operation: `CreateTrainingJob`, `s3:PutObject`, `logs:*`.
        """
        self._ask("fault", kind=kind, operation=operation, times=times, skip=skip, seconds=seconds)

    def deny(self, *actions: str, principal: str | None = None) -> None:
        """IAM actions that the developer, or the role `principal`, may not do: AccessDenied, implicitDeny.

        `secretsmanager:GetSecretValue?TAG`: in simulation only, where the context has no such tag of the resource.
        """
        self._ask("deny", actions=list(actions), principal=principal)

    def expire(self, key: str | None = None) -> None:
        """An access key is expired from now on; default: the developer's present one."""
        self._ask("expire", key=key or self.key)

    def login(self) -> None:
        """New credentials for the developer: `environment` and `client` have them from now on."""
        self._login = self._ask("login")

    def clear(self) -> None:
        """Forget faults, denials, expiries, lack of capacity, interruptions, calls and changed settings."""
        self._ask("clear")

    def capacity(self, instance_type: str, *, available: bool) -> None:
        """Whether there are instances of this type. An on-demand job fails without, a spot job waits."""
        self._ask("capacity", instance_type=instance_type, available=available)

    def quota(self, name: str, value: float) -> None:
        """Set one: `ml.g5.xlarge for training job usage`, `ml.g5.xlarge for spot training job usage`."""
        self._ask("quota", name=name, value=value)

    def interrupt(
        self, job: str | None = None, *, kind: str = "spot", after_s: float | None = None,
        after_line: str | None = None, count: int = 1, notice: bool = True, only: str | None = None,
    ) -> None:  # fmt: skip
        """End one attempt of `job` (None: of the next spot job that trains): at once, after seconds of training,
        or when `count` log lines match the pattern `after_line`.

        kind `host`: an instance breaks; the job is tried again as its RetryStrategy says. notice False: killed
        with no SIGTERM and no last sync. only: the one host (`algo-2`) that gets the SIGTERM.
        """
        self._ask(
            "interrupt", job=job, kind=kind, after_s=after_s, after_line=after_line, count=count, notice=notice,
            only=only,
        )  # fmt: skip

    def set(self, **settings: Any) -> None:
        """Change settings; jobs that start later have them."""
        self._ask("settings", **settings)

    # What happened.

    @property
    def calls(self) -> list[Call]:
        """Every request so far, the jobs' own (`role`) too."""
        return [Call(**call) for call in self._ask("calls")]

    def attempts(self, job: str) -> list[dict[str, Any]]:
        """Of a job: number, folder, streams, codes (exit status of each host), why.

        why: exit | spot | host | stop | runtime | wait.
        """
        found: list[dict[str, Any]] = self._ask("attempts", job=job)
        return found

    def wait(self, job: str, *states: str, timeout_s: float = 60) -> dict[str, Any]:
        """Describe `job` once its status or secondary status is one of `states`; default: when it is over."""
        client, until = self.client("sagemaker"), time.monotonic() + timeout_s
        wanted = states or ("Completed", "Failed", "Stopped")
        while True:
            told: dict[str, Any] = client.describe_training_job(TrainingJobName=job)
            if told["TrainingJobStatus"] in wanted or told["SecondaryStatus"] in wanted:
                return told
            if told["TrainingJobStatus"] in ("Completed", "Failed", "Stopped") or time.monotonic() > until:
                raise AssertionError(f"{job} is not {wanted}: {told}\n{self.log(job)}")
            time.sleep(0.05)

    def wait_for_line(self, job: str, pattern: str, timeout_s: float = 60) -> None:
        """Until the job has said something that matches: its program is running then."""
        until = time.monotonic() + timeout_s
        while not any(re.search(pattern, line) for line in self.log(job)):
            if time.monotonic() > until:
                raise AssertionError(f"{job} never said {pattern}: {self.log(job)}")
            time.sleep(0.05)

    def log(self, job: str) -> list[str]:
        """Every line of every stream of `job`, stream by stream."""
        logs, group = self.client("logs"), "/aws/sagemaker/TrainingJobs"
        lines = []
        for attempt in self.attempts(job):
            for stream in attempt["streams"]:
                pages = logs.get_log_events(
                    logGroupName=group, logStreamName=stream, startFromHead=True, limit=10000
                )
                lines += [event["message"] for event in pages["events"]]
        return lines

    def _ask(self, verb: str, **arguments: Any) -> Any:
        return self._server.ask(verb, **arguments)


def _clean_environment() -> dict[str, str]:
    """This process's environment without the user's AWS account and without proxies."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MOTO_")) and "proxy" not in k.lower()
    }
    return {**kept, "AWS_EC2_METADATA_DISABLED": "true"}
