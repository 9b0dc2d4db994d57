"""The GPUs of this machine, by the driver's own tool."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

DRIVER_AT_LEAST = 580
"""Major version that CUDA 13, with which the pinned torch is built, needs (CUDA toolkit release notes,
table "CUDA Toolkit and Corresponding Driver Versions": CUDA 13.0 GA, Linux >= 580.65.06)."""


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, memory in GiB, and the driver's version."""

    name: str
    memory_gib: float
    driver: str


def gpus() -> list[Gpu]:
    """What nvidia-smi lists; empty without a driver, or where CUDA_VISIBLE_DEVICES hides them all."""
    tool = shutil.which("nvidia-smi")
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        return []
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [Gpu(name, round(float(mib) / 1024, 1), driver) for name, mib, driver in rows]


def old_driver(found: Sequence[Gpu]) -> str | None:
    """What is wrong when the driver can't run the pinned torch, which would then train on the CPU in silence."""
    for gpu in found:
        major = gpu.driver.partition(".")[0]
        if major.isdecimal() and int(major) < DRIVER_AT_LEAST:
            return (
                f"the NVIDIA driver {gpu.driver} is too old for the CUDA 13 of the training environment's torch: "
                f"it needs {DRIVER_AT_LEAST} or newer"
            )
    return None
