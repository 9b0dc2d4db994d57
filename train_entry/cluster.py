"""This process's place among the job's machines: the one file that knows what a vendor's container says.

Every vendor starts one process a node. Where each of them says who that is:

SageMaker  /opt/ml/input/config/resourceconfig.json: hosts (equal on every node), current_host
           https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
Vertex AI  CLUSTER_SPEC (JSON): worker pool 0 holds the first node, pool 1 the others
           https://cloud.google.com/vertex-ai/docs/training/distributed-training
Azure ML   NODE_RANK, MASTER_ADDR, MASTER_PORT; AZUREML_NODE_COUNT, or WORLD_SIZE with one process a node
           https://learn.microsoft.com/azure/machine-learning/how-to-train-distributed-gpu
SkyPilot   SKYPILOT_NODE_RANK, SKYPILOT_NUM_NODES, SKYPILOT_NODE_IPS (one a line), SKYPILOT_NUM_GPUS_PER_NODE
           https://docs.skypilot.co/en/latest/running-jobs/environment-variables.html
torchrun   around this process, one process a node: GROUP_RANK, GROUP_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
           https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train_entry.failure import JobError

MASTER_PORT = 29500
"""Where node 0 listens, on vendors that name no port; LAUNCH_MASTER_PORT or _ADDR name others."""
RENDEZVOUS_S = 1800
"""How long nodes wait for each other: one may still pull its image or install packages."""
DRIVER_S = 30.0
"""How long nvidia-smi may take."""
SILENT = "nvidia-smi does not answer"
OUTER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE",
         "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
OUTER_PREFIXES = ("TORCHELASTIC_", "OMPI_COMM_WORLD_", "PMI_", "MV2_COMM_WORLD_")
"""What the vendor says of this process is not true of the ranks under it, and accelerate would believe it."""


@dataclass(frozen=True)
class Cluster:
    """`rank` of this node among `nodes`, how many processes it runs, and where node 0 listens.

    `port` None: any free one. `interface`: the network interface between the nodes, where the vendor names it.
    """

    rank: int
    nodes: int
    processes: int
    master: str
    port: int | None = None
    interface: str | None = None

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Cluster:
        """This node's place. LAUNCH_PROCESSES processes, else one a GPU, else one.

        Raises JobError("setup") when what the vendor says is incomplete or contradicts itself.
        """
        try:
            found = _nodes(env)
            if found.nodes == 1:
                found = replace(found, master="127.0.0.1", port=None)
            elif env.get("LAUNCH_MASTER_ADDR"):
                found = replace(found, master=env["LAUNCH_MASTER_ADDR"])
            port = int(env["LAUNCH_MASTER_PORT"]) if env.get("LAUNCH_MASTER_PORT") else found.port
            processes = int(env.get("LAUNCH_PROCESSES") or 0) or found.processes or max(1, _gpus(env))
        except (LookupError, ValueError, TypeError, AttributeError) as exc:
            raise _unclear(f"{type(exc).__name__}: {exc}") from exc
        if not 0 <= found.rank < found.nodes or processes < 1 or (found.nodes > 1 and not found.master):
            raise _unclear(f"rank {found.rank} of {found.nodes}, {processes} processes, master {found.master!r}")
        return replace(found, processes=processes, port=port)

    def command(self) -> list[str]:
        """What starts this node's ranks: the trainer itself, or torchrun when there are several."""
        if self.nodes == self.processes == 1:
            return [sys.executable, "-m", "train_entry.train"]
        return [
            sys.executable, "-m", "torch.distributed.run",
            f"--nnodes={self.nodes}", f"--node-rank={self.rank}", f"--nproc-per-node={self.processes}",
            f"--master-addr={self.master}", f"--master-port={self.port or _free_port()}",
            f"--rdzv-conf=timeout={RENDEZVOUS_S}", "--max-restarts=0", "-m", "train_entry.train",
        ]  # fmt: skip

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """`env` for that command: without what is said of this process alone, with the nodes' interface."""
        kept = {k: v for k, v in env.items() if k not in OUTER and not k.startswith(OUTER_PREFIXES)}
        if self.nodes > 1 and self.interface:
            kept = {"NCCL_SOCKET_IFNAME": self.interface, "GLOO_SOCKET_IFNAME": self.interface, **kept}
        return kept


def _nodes(env: Mapping[str, str]) -> Cluster:
    """The cluster as the first vendor that speaks says it; `processes` 0 where it does not say."""
    if "TORCHELASTIC_RUN_ID" in env:
        return _torchrun(env)
    if "SKYPILOT_NODE_RANK" in env:
        return _skypilot(env)
    if (config := _sagemaker_config(env)) is not None:
        return _sagemaker(config)
    if env.get("CLUSTER_SPEC"):
        return _vertex(json.loads(env["CLUSTER_SPEC"]))
    if "AZUREML_RUN_ID" in env and "NODE_RANK" in env:
        return _azureml(env)
    return Cluster(0, 1, 0, "127.0.0.1")


def _torchrun(env: Mapping[str, str]) -> Cluster:
    if env["LOCAL_WORLD_SIZE"] != "1":
        raise JobError(
            "setup",
            f"torchrun starts {env['LOCAL_WORLD_SIZE']} copies of the entrypoint on each machine",
            "start one a machine (--nproc-per-node=1): it starts a process a GPU by itself",
        )
    # The outer torchrun listens on its own port.
    port = int(env["MASTER_PORT"]) + 1
    return Cluster(int(env["GROUP_RANK"]), int(env["GROUP_WORLD_SIZE"]), 0, env["MASTER_ADDR"], port)


def _skypilot(env: Mapping[str, str]) -> Cluster:
    ips = env["SKYPILOT_NODE_IPS"].split()
    nodes = int(env["SKYPILOT_NUM_NODES"])
    if len(ips) != nodes:
        raise ValueError(f"SKYPILOT_NUM_NODES is {nodes}, SKYPILOT_NODE_IPS has {len(ips)}")
    # CUDA_VISIBLE_DEVICES is not what SkyPilot speaks through; this is.
    gpus = int(env.get("SKYPILOT_NUM_GPUS_PER_NODE") or 0)
    return Cluster(int(env["SKYPILOT_NODE_RANK"]), nodes, gpus, ips[0], MASTER_PORT)


def _sagemaker_config(env: Mapping[str, str]) -> Mapping[str, Any] | None:
    """resourceconfig.json, or its fields from SM_*; LAUNCH_SAGEMAKER_CONFIG names the file elsewhere."""
    base = env.get("SAGEMAKER_BASE_DIR") or "/opt/ml"  # the vendor's own name for another root
    path = Path(env.get("LAUNCH_SAGEMAKER_CONFIG") or f"{base}/input/config/resourceconfig.json")
    if path.is_file():
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    if "SM_HOSTS" in env:
        return {
            "hosts": json.loads(env["SM_HOSTS"]),
            "current_host": env["SM_CURRENT_HOST"],
            "network_interface_name": env.get("SM_NETWORK_INTERFACE_NAME"),
        }
    return None


def _sagemaker(config: Mapping[str, Any]) -> Cluster:
    hosts = sorted(config["hosts"])
    rank, interface = hosts.index(config["current_host"]), config.get("network_interface_name")
    return Cluster(rank, len(hosts), 0, hosts[0], MASTER_PORT, interface)


def _vertex(spec: Mapping[str, Any]) -> Cluster:
    """Pools 0 and 1 train; Vertex has each replica's port kept free (2222)."""
    trainers = [
        (pool, index, address)
        for pool in ("workerpool0", "workerpool1")
        for index, address in enumerate(spec["cluster"].get(pool, ()))
    ]
    own = (spec["task"]["type"], int(spec["task"]["index"]))
    rank = [(pool, index) for pool, index, _ in trainers].index(own)
    host, _, port = trainers[0][2].rpartition(":")
    return Cluster(rank, len(trainers), 0, host, int(port))


def _azureml(env: Mapping[str, str]) -> Cluster:
    if env.get("LOCAL_RANK", "0") != "0":
        raise JobError(
            "setup",
            "Azure ML starts several copies of the entrypoint on each machine",
            "set distribution.processCountPerInstance to 1: the entrypoint starts a process a GPU by itself",
        )
    nodes = int(env.get("AZUREML_NODE_COUNT") or env["WORLD_SIZE"])
    return Cluster(int(env["NODE_RANK"]), nodes, 0, env["MASTER_ADDR"], int(env["MASTER_PORT"]))


def refuse_fewer_gpus(seen: int, env: Mapping[str, str] = os.environ) -> None:
    """Raise JobError("setup") where torch sees fewer than LAUNCH_GPUS: it would train on those, or on the CPU.

    The next start may get a machine whose driver works.
    """
    paid = env.get("LAUNCH_GPUS") or "0"
    if not paid.isdecimal():
        raise JobError("config", f"LAUNCH_GPUS is {paid!r}, not a number of GPUs")
    if seen < int(paid):
        raise JobError(
            "setup",
            f"torch sees {seen} GPUs, and this machine is paid for {paid}; {_driver()}",
            "launch resume may get a whole machine; if every one fails so, the image's torch has no CUDA, or the "
            "driver is too old for it. LAUNCH_GPUS under env: says how many there must be, where fewer are meant",
            retry=True,
        )


def _driver() -> str:
    """What the driver's own tool says first."""
    if shutil.which("nvidia-smi") is None:
        return "the image has no nvidia-smi"
    _, said = _nvidia_smi()
    if said is None:
        return SILENT
    return f"nvidia-smi says: {(said.strip().splitlines() or ['nothing'])[0]}"


def _nvidia_smi() -> tuple[int, str | None]:
    """(exit status, what it says), None where it does not answer: a broken driver may hold it for ever."""
    try:
        tool = subprocess.Popen(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError:
        return 1, None
    try:
        said, _ = tool.communicate(timeout=DRIVER_S)
        return tool.returncode, said
    except subprocess.TimeoutExpired:
        tool.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            tool.wait(1)  # not for longer: what waits inside the driver can't be killed either
        if tool.stdout is not None:
            tool.stdout.close()
        return 1, None


def _unclear(what: str) -> JobError:
    return JobError(
        "setup",
        f"this machine's place among the job's machines is not clear ({what})",
        "train_entry/cluster.py lists the vendor's variables; LAUNCH_PROCESSES sets the processes a machine",
    )


def _gpus(env: Mapping[str, str]) -> int:
    """GPUs of this machine by the driver's own tool; CUDA_VISIBLE_DEVICES narrows them."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() and v.strip() != "-1"])
    if shutil.which("nvidia-smi") is None:
        return 0
    code, said = _nvidia_smi()
    if said is None:
        raise JobError(
            "setup", SILENT, "this machine's driver is broken: launch resume may get another", retry=True
        )
    return sum(line.startswith("GPU ") for line in said.splitlines()) if code == 0 else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
