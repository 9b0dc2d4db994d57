"""The entrypoint's first moments, before there is anything that torch is needed for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = """#!/bin/sh
touch "{here}/asked"
while [ ! -e "{here}/go" ]; do sleep 0.05; done
"""


@pytest.mark.skipif(os.name == "nt", reason="containers run Linux")
def test_a_signal_that_comes_while_gpus_are_counted_is_not_lost(tmp_path: Path) -> None:
    job = {"name": "a", "model": {"id": "m"}, "task": "generation", "data": {"train": "rows.jsonl"}}
    (tmp_path / "input").mkdir()
    (tmp_path / "input/job.json").write_text(json.dumps(job))
    tool = tmp_path / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(SLOW.format(here=tmp_path))
    tool.chmod(0o755)
    own = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCH_") and k != "CUDA_VISIBLE_DEVICES"}
    env = {
        **own, "PATH": f"{tool.parent}:{own['PATH']}", "PYTHONPATH": str(ROOT), "LAUNCH_INSTALL": "never",
        "LAUNCH_INPUT_DIR": str(tmp_path / "input"), "LAUNCH_OUTPUT_DIR": str(tmp_path / "output"),
        "LAUNCH_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
    }  # fmt: skip
    entry = subprocess.Popen([sys.executable, "-m", "train_entry"], env=env, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "asked").exists():
        assert time.monotonic() < end and entry.poll() is None
        time.sleep(0.02)
    entry.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    log, _ = entry.communicate(timeout=60)
    assert entry.returncode == 143, log
    assert json.loads((tmp_path / "output/state.json").read_text())["state"] == "stopped"
    assert not (tmp_path / "output/failure.json").exists()


def start(here: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The entrypoint over `here`/input, which has no rows, in the launcher's environment, which has no torch."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("LAUNCH_")}
    folders = {f"LAUNCH_{name.upper()}_DIR": str(here / name) for name in ("input", "output")}
    return subprocess.run(
        [sys.executable, "-m", "train_entry"], capture_output=True, text=True, timeout=60, check=False,
        env={
            **own, **folders, "PYTHONPATH": str(ROOT), "LAUNCH_INSTALL": "never", "LAUNCH_PROCESSES": "1",
            "LAUNCH_CHECKPOINT_DIR": str(here / "checkpoints"), "LAUNCH_JOB_ID": "a-1", **env,
        },
    )  # fmt: skip


def failures(here: Path) -> list[str]:
    lines = [json.loads(line) for line in (here / "output/events.jsonl").read_text().splitlines()]
    return [line["message"] for line in lines if line["event"] == "failure"]


def test_a_job_that_would_fail_again_is_not_begun_again_by_its_vendor(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input/job.json").write_text('{"name": 1}')
    first, second = start(tmp_path), start(tmp_path)
    assert (first.returncode, second.returncode) == (1, 1)
    assert "not tried again" in second.stderr
    assert '"setup"' in first.stdout and '"setup"' not in second.stdout
    told = failures(tmp_path)
    assert len(told) == 2 and told[0] == told[1]
    assert json.loads((tmp_path / "output/state.json").read_text())["state"] == "failed"


def test_its_resume_is_another_job_and_is_begun(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input/job.json").write_text('{"name": 1}')
    start(tmp_path)
    assert "not tried again" not in start(tmp_path, LAUNCH_JOB_ID="a-1-r2").stderr


def test_a_job_whose_network_failed_is_begun_again_once(tmp_path: Path) -> None:
    job = {"name": "a", "model": {"id": "m"}, "task": "generation", "data": {"train": "rows.jsonl"}}
    (tmp_path / "input").mkdir()
    (tmp_path / "input/job.json").write_text(json.dumps(job))
    nobody = {"LAUNCH_SECRETS": '{"A": "gcp-sm://p/a"}', "GCE_METADATA_HOST": "127.0.0.1:9"}

    def may_be_mended() -> bool:
        return bool(json.loads((tmp_path / "output/failure.json").read_text())["retry"])

    first = start(tmp_path, **nobody)
    assert may_be_mended() and "tried again" not in first.stderr
    (tmp_path / "checkpoints/step-00000002").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000002/manifest.json").write_text("{}")
    second = start(tmp_path, **nobody)
    assert may_be_mended() and "tried again" not in second.stderr, "it got further meanwhile"
    third = start(tmp_path, **nobody)
    assert not may_be_mended() and "it failed the same way twice" in third.stderr
    fourth = start(tmp_path, **nobody)
    assert "not tried again" in fourth.stderr and '"setup"' not in fourth.stdout
    again = failures(tmp_path)
    assert len(again) == 4 and len(set(again)) == 1


def test_every_start_counts_towards_the_hours_of_its_job_alone(tmp_path: Path) -> None:
    job = {"name": "a", "model": {"id": "m"}, "task": "generation", "data": {"train": "rows.jsonl"}}
    (tmp_path / "input").mkdir()
    (tmp_path / "input/job.json").write_text(json.dumps(job))
    nobody = {"LAUNCH_SECRETS": '{"A": "gcp-sm://p/a"}', "GCE_METADATA_HOST": "127.0.0.1:9"}
    record = tmp_path / "checkpoints/hours.json"

    def used(job_id: str) -> float:
        start(tmp_path, LAUNCH_JOB_ID=job_id, **nobody)
        return float(json.loads(record.read_text())["used_s"])

    assert used("a-1") < 60
    record.write_text(record.read_text().replace('"used_s": ', '"used_s": 9'))  # more than a minute
    before = json.loads(record.read_text())["used_s"]
    assert used("a-1") > before
    assert used("a-1-r2") < 60
