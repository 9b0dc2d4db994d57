"""A job's life, in a thread of its own: quota, machines, training, restarts, preemption, stop, end.

https://cloud.google.com/vertex-ai/docs/training/understanding-training-service (2026-11-23)
"""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.cloud import aiplatform_v1 as v1
from google.protobuf import json_format

from tests.emulators.container import Host, LateLog, Network
from tests.emulators.faults import Interruption
from tests.emulators.vertex.environment import environment, expanded, host_names
from tests.emulators.vertex.job import CANCELLED, FAILED, Job, State
from tests.emulators.vertex.wire import job_app
from tests.emulators.vertex.world import World

TICK_S = 0.03
MOST_PREEMPTIONS = 6
"""https://cloud.google.com/vertex-ai/docs/training/use-spot-vms (2026-11-23)"""
DEFAULT_TIMEOUT_S = 7 * 24 * 3600
MOUNT = "/gcs"
ERROR = re.compile(r"Traceback \(|(\w+\.)*\w*(Error|Exception)\b", re.ASCII)
"""What is taken for a line of stderr, all of which Google's agent notes as errors: here both come in one pipe."""
SEE = (
    "To find out more about why your job exited please check the logs: https://console.cloud.google.com/logs/viewer"
    "?project={project}&resource=ml_job%2Fjob_id%2F{number}&advancedFilter=resource.type%3D%22ml_job%22"
)
STOCKOUT = "Resources are insufficient in region: {region}. Try a different region or use a different accelerator."
"""https://cloud.google.com/vertex-ai/docs/training/understanding-training-service (2026-11-23)"""
DEFAULT_WAIT_S = 24 * 3600


class Life(threading.Thread):
    """Runs one job to its end."""

    def __init__(self, world: World, job: Job) -> None:
        super().__init__(daemon=True, name=job.proto.name)
        self.world = world
        self.settings = world.settings
        self.job = job
        self.codes: list[int | None] = []
        self.preemptions = 0
        self.restarts = 0
        """Of workers in place, that are still allowed."""
        limit = job.spec.scheduling.timeout
        self.most_s = limit.total_seconds() if limit else DEFAULT_TIMEOUT_S
        self.began = 0.0

    def run(self) -> None:
        try:
            self.live()
        except Exception as exc:  # noqa: BLE001 - a job must end, and its reason must say whose fault it was
            traceback.print_exc()
            self.job.enter(State.JOB_STATE_FAILED, 13, f"the emulator broke: {type(exc).__name__}: {exc}")

    def live(self) -> None:
        job, retries, restarts = self.job, self.settings.job_retries, self.settings.worker_restarts
        if job.spec.scheduling.disable_retries:
            retries = restarts = 0
        self.restarts = restarts
        machines = self.wait_for_machines()
        while True:
            if not machines:
                return self.end("stockout")
            why = "cancel" if job.stopping.is_set() else self.attempt()
            if why == "exit" and any(self.codes):
                if self.restarts > 0:  # in place: the job goes on running
                    self.restarts -= 1
                    self.say("The replica exited with an error; restarting it.", "WARNING")
                    continue
                if retries > 0:
                    retries, self.restarts = retries - 1, restarts
                    self.say("The job failed; retrying it.", "WARNING")
                    machines = self.wait_for_machines()
                    continue
            if why == "spot" and self.preemptions < MOST_PREEMPTIONS:
                self.preemptions += 1
                self.say(f"Worker preempted; restarting the job ({self.preemptions}).", "WARNING")
                machines = self.wait_for_machines()
                continue
            return self.end(why)

    def end(self, why: str) -> None:
        if why == "cancel":
            self.job.enter(State.JOB_STATE_CANCELLED, CANCELLED, "CANCELED")
        elif why == "exit" and not any(self.codes):
            self.say("Job completed successfully.", "INFO")
            self.job.enter(State.JOB_STATE_SUCCEEDED)
        else:
            code, message = self.failure(why)
            self.say(message, "ERROR")
            self.job.enter(State.JOB_STATE_FAILED, code, message)

    def failure(self, why: str) -> tuple[int, str]:
        """The code and the message of a job that has failed."""
        _, project, _, region, _, number = self.job.proto.name.split("/")
        image = self.job.spec.worker_pool_specs[0].container_spec.image_uri
        told = {
            "timeout": (4, "The job exceeded the timeout of its scheduling."),
            "spot": (8, "STOCKOUT: the job was preempted too often."),
            "stockout": (8, STOCKOUT.format(region=region)),
            "image": (FAILED, f"Failed to pull image {image}: not found."),
        }
        if why in told:
            return told[why]
        (pool, index), code = next(
            (replica, code) for replica, code in zip(self.job.replicas, self.codes, strict=True) if code
        )
        see = SEE.format(project=project, number=number)
        said = f"The replica workerpool{pool}-{index} exited with a non-zero status of {code}."
        return FAILED, f"{said} Termination reason: Error. \n{see}"

    def wait_for_machines(self) -> bool:
        """PENDING, or QUEUED while others hold the quota; False where there are none and the job waits no more."""
        job, began = self.job, time.monotonic()
        while not job.stopping.is_set() and not self.world.closing.is_set():
            with self.world.lock:
                held = Counter[str]()
                for other in self.world.jobs.values():
                    held.update(other.demand if other.busy else {})
                free = all(self.world.has(metric, held[metric] + n) for metric, n in job.demand.items())
            if free and not self.lacks_machines():
                break
            if free and time.monotonic() - began >= self.most_wait_s:
                return False
            job.enter(State.JOB_STATE_PENDING if free else State.JOB_STATE_QUEUED)
            time.sleep(TICK_S)
        job.enter(State.JOB_STATE_PENDING)
        self.say("Waiting for job to be provisioned.", "INFO")
        job.stopping.wait(self.settings.pace_s)
        return True

    def lacks_machines(self) -> bool:
        return self.job.spec.worker_pool_specs[0].machine_spec.machine_type in self.settings.stockout

    @property
    def most_wait_s(self) -> float:
        """A flex-start job waits for machines, without limit where its limit is 0; others do not."""
        scheduling = self.job.spec.scheduling
        if scheduling.strategy != v1.Scheduling.Strategy.FLEX_START:
            return 0
        if "max_wait_duration" not in scheduling:
            return DEFAULT_WAIT_S
        return scheduling.max_wait_duration.total_seconds() or float("inf")

    def say(self, text: str, severity: str) -> None:
        self.world.log(self.job, "service", text, severity)

    # One attempt.

    def attempt(self) -> str:
        """From the start of the processes to their end; why they ended."""
        job = self.job
        image = job.spec.worker_pool_specs[0].container_spec.image_uri
        python = self.world.image_python(image)
        if python is None:
            return "image"
        number = len(job.attempts) + 1
        note: dict[str, Any] = {"number": number, "codes": None, "why": None}
        job.attempts.append(note)
        folder = self.world.folder / "jobs" / job.proto.name.rpartition("/")[2] / str(number)
        network = Network(self.world.port, job_app(self.world, job.spec.service_account))
        hosts: list[Host] = []

        def start(replica: int, times: int) -> Host:
            return self.start_host(replica, folder / str(times), network, python)

        try:
            hosts = [start(replica, 0) for replica in range(len(job.replicas))]
            job.enter(State.JOB_STATE_RUNNING)
            self.began = self.began or time.monotonic()
            why = self.watch(hosts, start)
        finally:
            for host in hosts:
                host.end()
            network.close()
        note["codes"], note["why"] = self.codes, why
        shutil.rmtree(folder, ignore_errors=True)
        return why

    def start_host(self, replica: int, folder: Path, network: Network, python: str) -> Host:
        job = self.job
        names = host_names(job)
        (pool, index), name = job.replicas[replica], names[replica]
        host = Host(name, folder / name, {self.world.folder / "buckets": MOUNT}, "/")
        host.folder.mkdir(parents=True)
        env = environment(job, pool, index, json_format.MessageToDict(job.spec._pb), self.world.port)
        env |= self.world.warm_starts.environment(self.settings.warm)
        container = job.spec.worker_pool_specs[pool].container_spec
        command = [expanded(word, env) for word in (*container.command, *container.args)]

        def write(at: int, line: str) -> None:
            severity = "ERROR" if ERROR.match(line) else "INFO"
            self.world.log(job, f"workerpool{pool}-{index}", line, severity)

        tell = LateLog(write, 0).tell
        host.start(network, command or ["true"], env, python, names, tell, fuse=[MOUNT])
        return host

    def restart_alone(self, hosts: list[Host], start: Callable[[int, int], Host]) -> bool:
        """Start again the one replica that has failed, beside the others that go on; False where all must.

        What a job wants whose nodes can't take back one of theirs: scheduling.restartJobOnWorkerRestart.
        """
        failed = next((replica for replica, code in enumerate(self.codes) if code), None)
        whole = self.job.spec.scheduling.restart_job_on_worker_restart or len(hosts) == 1
        if failed is None or whole or self.codes[0] == 0 or not self.restarts:
            return False
        self.say(f"The replica {hosts[failed].name} exited with an error; restarting it.", "WARNING")
        hosts[failed].end()
        hosts[failed] = start(failed, self.restarts)
        self.restarts -= 1
        return True

    def watch(self, hosts: list[Host], start: Callable[[int, int], Host]) -> str:
        """Until every process has ended; stop what must stop. The first replica's end is the job's."""
        began = time.monotonic()
        plan: Interruption | None = None
        why, told_at = None, 0.0
        while True:
            self.codes = [host.code() for host in hosts]
            if why is None and self.restart_alone(hosts, start):
                continue
            if None not in self.codes:
                break
            if why is None and (self.codes[0] is not None or any(self.codes)):
                self.codes = [code or 0 for code in self.codes]
                break
            at = time.monotonic()
            if why is None:
                plan = plan or self.world.interruption_for(self.job)
                why = self.over(at) or self.interrupted(plan, hosts, at - began)
                if why == "spot" and plan is not None and not plan.notice:
                    return why
                if why is not None:
                    told_at = at
                    for host in hosts:
                        if plan is None or why != "spot" or plan.only in (None, host.name):
                            host.send(signal.SIGTERM)
            elif at - told_at > self.settings.grace_s or self.world.closing.is_set():
                for host in hosts:
                    host.send(signal.SIGKILL)
            time.sleep(TICK_S)
        return why or "exit"

    def over(self, at: float) -> str | None:
        if self.world.closing.is_set() or self.job.stopping.is_set():
            return "cancel"
        return "timeout" if at - self.began > self.most_s else None

    def interrupted(self, plan: Interruption | None, hosts: list[Host], seconds: float) -> str | None:
        lines = [line for host in hosts for line in host.lines]
        return "spot" if plan is not None and plan.due(seconds, lines) else None
