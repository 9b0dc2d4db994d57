"""One custom job as the emulator knows it: Google's own message, and what happened."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

from google.cloud import aiplatform_v1 as v1

State = v1.JobState
OVER = (State.JOB_STATE_SUCCEEDED, State.JOB_STATE_FAILED, State.JOB_STATE_CANCELLED)
QUOTA_NAMES = {
    "NVIDIA_TESLA_T4": "nvidia_t4",
    "NVIDIA_TESLA_A100": "nvidia_a100",
    "NVIDIA_H100_80GB": "nvidia_h100",
}
VCPUS_A_GPU = {"a2-highgpu": 12, "a2-ultragpu": 12, "a3-highgpu": 26}
CHEAP = (v1.Scheduling.Strategy.SPOT, v1.Scheduling.Strategy.FLEX_START)
CANCELLED, FAILED = 1, 3
"""google.rpc.Code in `error`."""


class Job:
    """`proto` is what the service answers."""

    def __init__(self, proto: Any) -> None:
        self.proto = proto
        self.stopping = threading.Event()
        self.attempts: list[dict[str, Any]] = []
        """number, codes (exit status of each replica), why: exit | spot | cancel | timeout."""
        self.seen = [State.JOB_STATE_PENDING.name]
        self._lock = threading.RLock()

    @property
    def spec(self) -> Any:
        return self.proto.job_spec

    @property
    def spot(self) -> bool:
        return bool(self.spec.scheduling.strategy == v1.Scheduling.Strategy.SPOT)

    @property
    def replicas(self) -> list[tuple[int, int]]:
        """(pool, index) of each."""
        pools = enumerate(self.spec.worker_pool_specs)
        return [(pool, index) for pool, spec in pools for index in range(int(spec.replica_count))]

    @property
    def demand(self) -> dict[str, int]:
        """Quota metric, without the service's name -> what the job counts on it."""
        pools = self.spec.worker_pool_specs
        machine, cheap = pools[0].machine_spec, self.spec.scheduling.strategy in CHEAP
        accelerator, nodes = machine.accelerator_type.name, sum(int(p.replica_count) for p in pools)
        gpu = QUOTA_NAMES.get(accelerator, accelerator.lower())
        family, size = machine.machine_type.split("-", 1)
        own = {"n1": "cpus"}.get(family, f"{family}_cpus")
        per_gpu = VCPUS_A_GPU.get(machine.machine_type.rpartition("-")[0])
        vcpus = per_gpu * machine.accelerator_count if per_gpu else int("".join(filter(str.isdigit, size)) or 0)
        start = "custom_model_training_"
        return {
            f"{start}{'preemptible_' if cheap else ''}{gpu}_gpus": int(machine.accelerator_count) * nodes,
            f"{start}{'preemptible_cpus' if cheap else own}": vcpus * nodes,
        }

    @property
    def over(self) -> bool:
        return self.proto.state in OVER

    @property
    def busy(self) -> bool:
        """Does it hold GPUs?"""
        return self.proto.state in (State.JOB_STATE_RUNNING, State.JOB_STATE_CANCELLING)

    def enter(self, state: Any, code: int = 0, message: str = "") -> None:
        """The next state; a cancellation is never undone."""
        with self._lock:
            if self.over or (self.proto.state == State.JOB_STATE_CANCELLING and state not in OVER):
                return
            if self.seen[-1] != state.name:
                self.seen.append(state.name)
            at = datetime.now(UTC)
            self.proto.state, self.proto.update_time = state, at
            if code:
                self.proto.error = {"code": code, "message": message}
            if state == State.JOB_STATE_RUNNING and not self.proto.start_time:
                self.proto.start_time = at
            if state in OVER:
                self.proto.end_time = at

    def cancel(self) -> bool:
        """Begin to stop; False where it is over."""
        with self._lock:
            if self.over:
                return False
            self.enter(State.JOB_STATE_CANCELLING)
            self.stopping.set()
        return True

    def told(self) -> Any:
        """A copy: the job's thread goes on changing it."""
        with self._lock:
            return v1.CustomJob(self.proto)
