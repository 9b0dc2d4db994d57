"""This process's place among the job's machines: the one file that knows what a vendor's container says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """`rank` of this node among `nodes`, how many processes it runs, and where node 0 listens."""

    rank: int
    nodes: int
    processes: int
    master: str

    @classmethod
    def from_environment(cls) -> Cluster:
        """One node; LAUNCH_PROCESSES of them, else one a GPU, else one."""
        wanted = os.environ.get("LAUNCH_PROCESSES")
        return cls(rank=0, nodes=1, processes=int(wanted) if wanted else max(1, _gpus()), master="127.0.0.1")

    def command(self) -> list[str]:
        """What starts this node's ranks: the trainer itself, or torchrun when there are several."""
        if self.nodes == self.processes == 1:
            return [sys.executable, "-m", "train_entry.train"]
        return [
            sys.executable, "-m", "torch.distributed.run",
            f"--nnodes={self.nodes}", f"--node-rank={self.rank}", f"--nproc-per-node={self.processes}",
            f"--master-addr={self.master}", f"--master-port={_free_port()}",
            "--max-restarts=0", "-m", "train_entry.train",
        ]  # fmt: skip


def _gpus() -> int:
    """GPUs of this machine by the driver's own tool; CUDA_VISIBLE_DEVICES narrows them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() and v.strip() != "-1"])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
