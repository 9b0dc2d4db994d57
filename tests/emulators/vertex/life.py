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
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
SEE = "To find out more about why your job exited please check the logs"


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
        self.wait_for_machines()
        while True:
            why = "cancel" if job.stopping.is_set() else self.attempt()
            if why == "exit" and any(self.codes):
                if self.restarts > 0:  # in place: the job goes on running
                    self.restarts -= 1
                    self.say("The replica exited with an error; restarting it.", "WARNING")
                    continue
                if retries > 0:
                    retries, self.restarts = retries - 1, restarts
                    self.say("The job failed; retrying it.", "WARNING")
                    self.wait_for_machines()
                    continue
            if why == "spot" and self.preemptions < MOST_PREEMPTIONS:
                self.preemptions += 1
                self.say(f"Worker preempted; restarting the job ({self.preemptions}).", "WARNING")
                self.wait_for_machines()
                continue
            return self.end(why)

    def end(self, why: str) -> None:
        if why == "cancel":
            self.job.enter(State.JOB_STATE_CANCELLED, CANCELLED, "CANCELED")
        elif why == "timeout":
            self.job.enter(State.JOB_STATE_FAILED, 4, "The job exceeded the timeout of its scheduling.")
        elif why == "spot":
            self.job.enter(State.JOB_STATE_FAILED, 8, "STOCKOUT: the job was preempted too often.")
        elif why == "image":
            image = self.job.spec.worker_pool_specs[0].container_spec.image_uri
            self.job.enter(State.JOB_STATE_FAILED, FAILED, f"Failed to pull image {image}: not found.")
        elif any(self.codes):
            (pool, index), code = next(
                (replica, code) for replica, code in zip(self.job.replicas, self.codes, strict=True) if code
            )
            message = f"The replica workerpool{pool}-{index} exited with a non-zero status of {code}. {SEE}."
            self.job.enter(State.JOB_STATE_FAILED, FAILED, message)
        else:
            self.say("Job completed successfully.", "INFO")
            self.job.enter(State.JOB_STATE_SUCCEEDED)

    def wait_for_machines(self) -> None:
        """PENDING, or QUEUED while others hold the quota."""
        job = self.job
        while not job.stopping.is_set() and not self.world.closing.is_set():
            with self.world.lock:
                held = sum(j.gpus for j in self.world.jobs.values() if j.busy and j.metric == job.metric)
                free = held + job.gpus <= self.world.quota(job.metric)
            if free:
                break
            job.enter(State.JOB_STATE_QUEUED)
            time.sleep(TICK_S)
        job.enter(State.JOB_STATE_PENDING)
        self.say("Waiting for job to be provisioned.", "INFO")
        job.stopping.wait(self.settings.pace_s)

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
