"""Every vendor's way to say which node this is gives the same few facts."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from train_entry import cluster
from train_entry.cluster import OUTER, Cluster, refuse_fewer_gpus
from train_entry.failure import JobError

EXAMPLES = {p.stem: json.loads(p.read_text()) for p in (Path(__file__).parent / "fixtures/cluster").glob("*.json")}


def environment(example: dict[str, Any], tmp_path: Path, **more: str) -> dict[str, str]:
    """The example's variables; its file where SageMaker's toolkit looks for it."""
    if "file" in example:
        config = tmp_path / "input/config/resourceconfig.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps(example["file"]))
    # This machine's own GPUs, if any, are not what is tested.
    return {"SAGEMAKER_BASE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", **example["env"], **more}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_node_finds_its_place(name: str, tmp_path: Path) -> None:
    example = EXAMPLES[name]
    found = Cluster.from_environment(environment(example, tmp_path))
    assert [found.rank, found.nodes, found.master, found.port] == example["expected"]
    assert found.processes == example.get("processes", 1)


def test_every_vendor_has_a_second_node() -> None:
    for vendor in ("sagemaker", "vertex", "azureml", "skypilot"):
        first, second = (EXAMPLES[f"{vendor}-2-{which}"]["expected"] for which in ("first", "second"))
        assert first[2:] == second[2:], "both must go to the same place"
        assert (first[0], second[0]) == (0, 1)


def test_the_backend_may_name_the_config_the_port_and_the_processes(tmp_path: Path) -> None:
    env = environment(EXAMPLES["sagemaker-2-second"], tmp_path)
    moved = (tmp_path / "input/config/resourceconfig.json").rename(tmp_path / "elsewhere.json")
    env |= {"LAUNCH_SAGEMAKER_CONFIG": str(moved), "LAUNCH_MASTER_PORT": "7777", "LAUNCH_PROCESSES": "3"}
    found = Cluster.from_environment(env)
    assert (found.rank, found.port, found.processes) == (1, 7777, 3)


@pytest.mark.parametrize(("visible", "processes"), [("0,1,2", 3), ("", 1), ("-1", 1), ("3", 1)])
def test_one_process_a_visible_gpu(visible: str, processes: int, tmp_path: Path) -> None:
    env = environment(EXAMPLES["vertex-2-first"], tmp_path, CUDA_VISIBLE_DEVICES=visible)
    assert Cluster.from_environment(env).processes == processes


@pytest.mark.parametrize("broken", [True, False])
def test_a_machine_with_fewer_gpus_than_it_is_paid_for_is_refused_with_its_drivers_word(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for paid in ({}, {"LAUNCH_GPUS": "0"}, {"LAUNCH_GPUS": "7"}, {"LAUNCH_GPUS": "8"}):
        refuse_fewer_gpus(8, paid)
    if broken:
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: version mismatch' >&2; exit 9\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError, match="torch sees 7 GPUs, and this machine is paid for 8") as refused:
        refuse_fewer_gpus(7, {"LAUNCH_GPUS": "8"})
    error = refused.value
    assert (error.kind, error.retry) == ("setup", True) and "launch resume" in (error.hint or "")
    assert ("version mismatch" if broken else "no nvidia-smi") in error.message
    with pytest.raises(JobError, match="LAUNCH_GPUS is 'all'"):
        refuse_fewer_gpus(8, {"LAUNCH_GPUS": "all"})


def test_a_driver_that_holds_its_own_tool_for_ever_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cluster, "DRIVER_S", 0.2, raising=False)
    for script in ("#!/bin/sh\nexec /bin/sleep 60\n", "#!/no/such/shell\n"):
        tool.write_text(script)
        tool.chmod(0o755)
        began = time.monotonic()
        with pytest.raises(JobError, match=r"torch sees 7 GPUs.*; nvidia-smi does not answer"):
            refuse_fewer_gpus(7, {"LAUNCH_GPUS": "8"})
        with pytest.raises(JobError, match="nvidia-smi does not answer") as refused:
            Cluster.from_environment({"SAGEMAKER_BASE_DIR": str(tmp_path)})
        assert refused.value.retry and time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("skypilot-2-first", {"SKYPILOT_NUM_NODES": "3"}),
        ("skypilot-2-first", {"SKYPILOT_NODE_RANK": "2"}),
        ("skypilot-2-first", {"SKYPILOT_NODE_IPS": ""}),
        ("vertex-2-first", {"CLUSTER_SPEC": "{"}),
        ("vertex-2-first", {"CLUSTER_SPEC": '{"cluster": {}, "task": {"type": "workerpool0", "index": 0}}'}),
        ("vertex-3-third", {"CLUSTER_SPEC": "[]"}),
        ("azureml-2-second", {"WORLD_SIZE": "two"}),
        ("azureml-2-second", {"MASTER_ADDR": ""}),
        ("sagemaker-2-variables", {"SM_CURRENT_HOST": "algo-7"}),
        ("plain", {"LAUNCH_PROCESSES": "many"}),
        ("plain", {"LAUNCH_PROCESSES": "-2"}),
    ],
)
def test_what_contradicts_itself_is_refused_and_never_taken_for_one_node(
    name: str, change: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(JobError, match="place among the job's machines is not clear") as refused:
        Cluster.from_environment(environment(EXAMPLES[name], tmp_path, **change))
    assert refused.value.kind == "setup" and refused.value.hint


@pytest.mark.parametrize(
    ("name", "change", "hint"),
    [
        ("azureml-2-second", {"LOCAL_RANK": "1"}, "processCountPerInstance to 1"),
        ("torchrun-2-second", {"LOCAL_WORLD_SIZE": "4"}, "--nproc-per-node=1"),
    ],
)
def test_several_copies_of_the_entrypoint_on_a_node_are_refused(
    name: str, change: dict[str, str], hint: str, tmp_path: Path
) -> None:
    with pytest.raises(JobError) as refused:
        Cluster.from_environment(environment(EXAMPLES[name], tmp_path, **change))
    assert hint in (refused.value.hint or "")


def test_one_process_is_the_trainer_itself_and_several_are_torchruns() -> None:
    assert Cluster(0, 1, 1, "127.0.0.1").command() == [sys.executable, "-m", "train_entry.train"]
    command = Cluster(1, 2, 8, "algo-1", 29500).command()
    assert command[1:3] == ["-m", "torch.distributed.run"] and command[-2:] == ["-m", "train_entry.train"]
    wanted = {"--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=algo-1", "--master-port=29500"}
    assert wanted <= set(command)
    wait = next(part for part in command if part.startswith("--rdzv-conf=timeout="))
    assert int(wait.rpartition("=")[2]) >= 15 * 60
    ports = {Cluster(0, 1, 2, "127.0.0.1").command()[7] for _ in range(2)}
    assert all(port.startswith("--master-port=") and port != "--master-port=None" for port in ports)


@pytest.mark.parametrize("name", ["azureml-2-second", "torchrun-2-second", "skypilot-2-second", "azureml-1"])
def test_ranks_do_not_inherit_what_is_said_of_the_node(name: str, tmp_path: Path) -> None:
    env = environment(EXAMPLES[name], tmp_path, EPOCHS="x", SKYPILOT_USER="ci")
    kept = Cluster.from_environment(env).environment(env)
    assert not set(kept) & {*OUTER, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "PMI_RANK"}
    assert (kept["EPOCHS"], kept["SKYPILOT_USER"]) == ("x", "ci")


def test_the_named_interface_joins_nodes_unless_the_user_names_one(tmp_path: Path) -> None:
    cluster = Cluster.from_environment(environment(EXAMPLES["sagemaker-2-first"], tmp_path))
    assert cluster.environment({})["NCCL_SOCKET_IFNAME"] == "eth0"
    assert cluster.environment({"GLOO_SOCKET_IFNAME": "ib0"})["GLOO_SOCKET_IFNAME"] == "ib0"
    assert Cluster(0, 1, 8, "127.0.0.1", interface="eth0").environment({}) == {}
