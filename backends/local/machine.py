"""The GPUs of this machine, by the driver's own tool."""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, memory in GiB, and the driver's version."""

    name: str
    memory_gib: float
    driver: str


def gpus() -> list[Gpu]:
    """What nvidia-smi lists; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        return []
    rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    return [Gpu(name, round(float(mib) / 1024, 1), driver) for name, mib, driver in rows]
