"""A job's life, in a thread of its own: capacity, download, training, interruption, stop, upload, end.

The order of states is AWS's own:
https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training-status.html
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from moto.logs.models import logs_backends

from tests.emulators.container import Host, LateLog, Network
from tests.emulators.faults import Interruption
from tests.emulators.sagemaker.job import TrainingJob
from tests.emulators.sagemaker.rules import DEFAULT_RUNTIME_S, role_trusts
from tests.emulators.sagemaker.storage import Nothing, Seen, Storage
from tests.emulators.sagemaker.wire import CREDENTIALS, MotoHandler, role_app
from tests.emulators.sagemaker.world import World

GROUP = "/aws/sagemaker/TrainingJobs"
TICK_S = 0.03
WAITING = "Training job waiting for capacity"
RETRYING = "Insufficient capacity error from EC2 while launching instances, retrying!"
NO_CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance "
    "type."
)
BROKEN_HOST = "InternalServerError: We encountered an internal error.  Please try again."
ENDS = {
    "stop": ("Stopped", "Training job stopped"),
    "runtime": ("MaxRuntimeExceeded", "Training job runtime exceeded MaxRuntimeInSeconds provided"),
    "wait": ("MaxWaitTimeExceeded", "Training job exceeded MaxWaitTimeInSeconds provided"),
    "pending": ("Stopped", "Training job stopped"),
}


class Life(threading.Thread):
    """Runs one job to its end."""

    def __init__(self, world: World, job: TrainingJob) -> None:
        super().__init__(daemon=True, name=job.name)
        self.world = world
        self.settings = world.settings
        self.job = job
        self.storage = Storage(job.account, job.region)
        self.hosts: list[Host] = []
        self.seen: list[Seen] = []
        self.codes: list[int | None] = []
        """The hosts' exit statuses as they were when the attempt was over; None: was killed then."""
        self.born = time.monotonic()
        self.retries = int(job.request.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0))
        stop = job.request.get("StoppingCondition", {})
        self.most_s = float(stop.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_S))
        self.most_pending_s = float(stop.get("MaxPendingTimeInSeconds", 0)) * self.settings.pending_scale
        self.most_wait_s = float(stop["MaxWaitTimeInSeconds"]) if job.spot else None
        checkpoints = job.request.get("CheckpointConfig", {})
        self.checkpoints: str | None = checkpoints.get("S3Uri")
        local = checkpoints.get("LocalPath", "/opt/ml/checkpoints")
        self.checkpoint_folder = local.removeprefix("/opt/ml/").strip("/")

    def run(self) -> None:
        try:
            why = self.live()
            if why is not None:
                self.finish(why)
        except Nothing as exc:
            self.job.fail(str(exc))
        except Exception as exc:  # noqa: BLE001 - a job must end, and its reason must say whose fault it was
            traceback.print_exc()
            self.job.fail(f"the emulator broke: {type(exc).__name__}: {exc}")
        finally:
            for host in self.hosts:
                host.end()

    def live(self) -> str | None:
        """Attempt after attempt; why the last one ended, None where there is nothing to upload."""
        job = self.job
        job.enter("Starting", "Starting the training job")
        self.pace()
        while True:
            if (ended := self.wait_for_capacity()) is not None:
                return None if self.end_unstarted(ended) else ended
            why = self.attempt()
            if why == "spot":
                job.enter("Interrupted", "Training job interrupted: the spot instances were reclaimed")
                self.pace()
                job.enter("Starting", "Launching requested ML instances")
            elif why == "host" and self.retries > 0:
                self.retries -= 1
                job.enter("Starting", "Launched instance was unhealthy, replacing it!")
            else:
                return why

    def pace(self) -> None:
        self.job.stopping.wait(self.settings.pace_s)

    def wait_for_capacity(self) -> str | None:
        """None when there are instances, else why there never were any."""
        tried = time.monotonic()
        while not self.job.select(self.world.no_capacity):
            self.job.enter(*(("Starting", RETRYING) if self.job.attempts else ("Pending", WAITING)))
            if (ended := self.over(0)) is not None:
                return ended
            waited = time.monotonic() - tried
            if not self.job.spot and waited > max(self.most_pending_s, self.settings.capacity_wait_s):
                return "pending" if self.most_pending_s else "capacity"
            time.sleep(TICK_S)
        if not self.job.attempts:
            self.job.enter("Pending", "Preparing the instances for training")
            self.pace()
        return self.over(0)

    def end_unstarted(self, why: str) -> bool:
        """End a job that has no instances, and never had: nothing to upload."""
        if why == "capacity":
            self.job.fail(NO_CAPACITY)
            return True
        if self.job.attempts:
            return False
        self.job.stop()
        self.job.enter(*ENDS[why])
        return True

    def over(self, training_s: float) -> str | None:
        """Why the job must stop now, from outside or for its limits."""
        if self.world.closing.is_set() or self.job.stopping.is_set():
            return "stop"
        if self.job.seconds + training_s > self.most_s:
            return "runtime"
        if self.most_wait_s is not None and time.monotonic() - self.born > self.most_wait_s:
            return "wait"
        return None

    # One attempt.

    def attempt(self) -> str:
        """From download to the end of the processes; why they ended."""
        job = self.job
        if not role_trusts(job.request["RoleArn"]):
            raise Nothing(f"ClientError: SageMaker was unable to assume the role '{job.request['RoleArn']}'")
        number = len(job.attempts) + 1
        folder = self.world.folder / job.name / str(number)
        note: dict[str, Any] = {"number": number, "folder": str(folder), "streams": [], "codes": None, "why": None}
        job.attempts.append(note)
        began, self.codes = time.monotonic(), [None] * job.instances
        job.enter("Downloading", "Downloading input data")
        self.hosts = self.make_hosts(folder)
        self.pace()
        job.enter("Downloading", "Downloading the training image")
        self.pace()
        isolated = job.request.get("EnableNetworkIsolation")
        app = None if isolated else role_app(self.world.app, job.key)
        network = Network(self.world.port, app, MotoHandler)
        try:
            if (why := self.over(0)) is None:
                job.enter("Training", "Training image download completed. Training in progress.")
                self.start_hosts(network, note)
                why = self.watch()
        finally:
            for host in self.hosts:
                host.end()
            network.close()
            job.seconds += time.monotonic() - began
        note["codes"], note["why"] = self.codes, why
        return why

    def make_hosts(self, folder: Path) -> list[Host]:
        """The /opt/ml of every host, filled."""
        job, names = self.job, [f"algo-{n}" for n in range(1, self.job.instances + 1)]
        job.started = job.started or job.modified
        self.seen, made = [], []
        for index, name in enumerate(names):
            host = Host(name, folder / name, {folder / name / "ml": "/opt/ml"}, "/opt/ml")
            shutil.rmtree(host.folder, ignore_errors=True)
            for made_here in ("input/config", "input/data", "model", "output/data", "code"):
                (ml_of(host) / made_here).mkdir(parents=True)
            for channel in job.request.get("InputDataConfig", []):
                target = ml_of(host) / "input/data" / channel["ChannelName"]
                self.storage.pull_channel(channel["DataSource"]["S3DataSource"], target, index, len(names))
            for file, content in self.config(name, names).items():
                (ml_of(host) / "input/config" / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
            seen: Seen = {}
            if self.checkpoints:
                seen = self.storage.pull_tree(self.checkpoints, ml_of(host) / self.checkpoint_folder)
            self.seen.append(seen)
            made.append(host)
        return made

    def config(self, name: str, names: list[str]) -> dict[str, Any]:
        """/opt/ml/input/config/*.json, as
        https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
        """
        request, kind = self.job.request, self.job.instance_type
        group = {"instance_group_name": "homogeneousCluster", "instance_type": kind, "hosts": names}
        channels = {
            channel["ChannelName"]: {
                "TrainingInputMode": channel.get(
                    "InputMode", request["AlgorithmSpecification"]["TrainingInputMode"]
                ),
                "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                    "S3DataDistributionType", "FullyReplicated"
                ),
                "RecordWrapperType": channel.get("RecordWrapperType", "None"),
                **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
            }
            for channel in request.get("InputDataConfig", [])
        }
        return {
            "hyperparameters": request.get("HyperParameters", {}),
            "inputdataconfig": channels,
            "resourceconfig": {
                "current_host": name, "hosts": names, "current_instance_type": kind,
                "current_group_name": "homogeneousCluster", "instance_groups": [group],
                "network_interface_name": "lo",
            },
        }  # fmt: skip

    def start_hosts(self, network: Network, note: dict[str, Any]) -> None:
        image = self.job.request["AlgorithmSpecification"]
        command = [*(image.get("ContainerEntrypoint") or ["train"]), *image.get("ContainerArguments", [])]
        python = self.world.image_python(image["TrainingImage"])
        assert python is not None
        logs = logs_backends[self.job.account][self.job.region]
        logs.ensure_log_group(GROUP)
        for host in self.hosts:
            stream = f"{self.job.name}/{host.name}-{int(time.time() * 1000)}"
            note["streams"].append(stream)
            logs.ensure_log_stream(GROUP, stream)

            def write(at: int, line: str, stream: str = stream) -> None:
                logs.put_log_events(GROUP, stream, [{"timestamp": at, "message": line}])

            late = LateLog(write, self.settings.log_delay_s)
            names = [h.name for h in self.hosts]
            host.start(network, command, self.environment(), python, names, late.tell)

    def environment(self) -> dict[str, str]:
        """What SageMaker sets, what stands for the role's credentials, and the request's own."""
        job = self.job
        env = {
            "TRAINING_JOB_NAME": job.name, "TRAINING_JOB_ARN": job.arn,
            "AWS_REGION": job.region, "AWS_DEFAULT_REGION": job.region,
            **self.world.warm_starts.environment(self.settings.warm),
        }  # fmt: skip
        if not job.request.get("EnableNetworkIsolation"):
            url = f"http://127.0.0.1:{self.world.port}"
            env |= {
                "AWS_ENDPOINT_URL": url, "S3_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}{CREDENTIALS}{job.key}",
            }  # fmt: skip
        own: dict[str, str] = job.request.get("Environment", {})
        return env | own

    def watch(self) -> str:
        """Until every process has ended; sync meanwhile, stop what must stop."""
        began = time.monotonic()
        plan: Interruption | None = None
        why, told_at, synced = None, 0.0, began
        while True:
            self.codes = [host.code() for host in self.hosts]
            if None not in self.codes or (why is None and any(self.codes)):
                break
            at = time.monotonic()
            if why is None:
                plan = plan or self.world.interruption_for(self.job)
                why = self.over(at - began) or self.interrupted(plan, at - began)
                if why is not None and plan is not None and why == plan.kind and not plan.notice:
                    return why
                if why is not None:
                    told_at = at
                    if why in ("runtime", "wait"):
                        self.job.enter("Stopping", "Stopping the training job")
                    self.signal(signal.SIGTERM, plan.only if plan is not None and why == plan.kind else None)
            elif at - told_at > self.settings.grace_s or self.world.closing.is_set():
                self.signal(signal.SIGKILL)
            if at - synced >= self.settings.sync_s:
                self.sync()
                synced = at
            time.sleep(TICK_S)
        for host in self.hosts:
            host.end()
        self.sync()
        return why or "exit"

    def interrupted(self, plan: Interruption | None, seconds: float) -> str | None:
        lines = [line for host in self.hosts for line in host.lines]
        return plan.kind if plan is not None and plan.due(seconds, lines) else None

    def signal(self, number: signal.Signals, only: str | None = None) -> None:
        for host in self.hosts:
            if only in (None, host.name):
                host.send(number)

    def sync(self) -> None:
        """New and changed files of the checkpoints folders to S3."""
        if self.checkpoints:
            for host, seen in zip(self.hosts, self.seen, strict=True):
                self.storage.push_changes(ml_of(host) / self.checkpoint_folder, self.checkpoints, seen)

    # The end.

    def finish(self, why: str) -> None:
        job = self.job
        if why == "host":
            job.fail(BROKEN_HOST)
            return
        job.enter("Uploading", "Uploading generated training model")
        output = job.request["OutputDataConfig"]
        base = f"{output['S3OutputPath'].rstrip('/')}/{job.name}/output"
        packed = output.get("CompressionType", "GZIP") != "NONE"
        artifacts = self.storage.push_artifacts([ml_of(h) / "model" for h in self.hosts], f"{base}/model", packed)
        data = [ml_of(h) / "output/data" for h in self.hosts]
        if any(path.is_file() for folder in data for path in folder.rglob("*")):
            self.storage.push_artifacts(data, f"{base}/output", packed)
        job.artifacts = artifacts
        self.pace()
        failed = [
            (host, code) for host, code in zip(self.hosts, self.codes, strict=True) if why == "exit" and code
        ]
        if failed:
            job.fail(f"AlgorithmError: {_failure([host for host, _ in failed])}, exit code: {failed[0][1]}")
        elif why == "exit":
            job.enter("Completed", "Training job completed")
        else:
            job.enter(*ENDS[why])


def ml_of(host: Host) -> Path:
    """The host's /opt/ml, as it lies here."""
    return host.folder / "ml"


def _failure(hosts: list[Host]) -> str:
    """What the first host that failed left in /opt/ml/output/failure."""
    for path in (ml_of(host) / "output/failure" for host in hosts):
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")[:1024]
    return ""
