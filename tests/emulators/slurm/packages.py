"""What the emulated nodes install SkyPilot's runtime from: wheels and uv, fetched once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

from launcher.home import cache

WANTED = ("skypilot[slurm,remote]==0.14.1", "pip", "setuptools<81", "wheel", "uv==0.13.9")


def folder() -> Path:
    """wheels/, cache/ (uv's own) and uv."""
    mark = hashlib.sha256(" ".join(WANTED).encode()).hexdigest()[:16]
    return cache() / "tests" / f"slurm-{mark}"


def build(python: Path, tell: Callable[[str], None]) -> None:
    """Fetch them with the pip of `python`, of whose version they are."""
    made = folder()
    if made.is_dir():
        return
    tell("fetching what emulated Slurm nodes install (once)")
    building = made.with_name(f"{made.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    (building / "cache").mkdir(parents=True)
    pip = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--prefer-binary"]
    subprocess.run([*pip, "--dest", building / "wheels", *WANTED], check=True)
    (wheel,) = (building / "wheels").glob("uv-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/scripts/uv"))
        (building / "uv").write_bytes(archive.read(name))
    (building / "uv").chmod(0o755)
    building.rename(made)
