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
