"""The wheels that an offline job brings along: its image has torch, the container installs the rest from these.

Downloaded once with pip into the cache folder, under the hash of train_entry/requirements.txt. Built beside
their place and renamed into it: whole or absent, also when two launchers download at once or one is killed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import psutil

from backends.base import Progress
from launcher.errors import BackendError
from launcher.spec import JobSpec

PYTHONS = ("3.11", "3.12")
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(28, 16, -1)),
    "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64",
)  # fmt: skip
"""Linux with glibc 2.28, which torch's own wheels want too; pip takes each name alone."""
SOURCE_ONLY = ("rouge_score",)
"""Pins that are published as source only (seen 2026-11-25): pure Python, made into a wheel here."""


def wanted(job: JobSpec) -> bool:
    """True for an offline job, unless LAUNCH_INSTALL: never in its `env` says that the image has every package."""
    return job.resources.offline and job.env.get("LAUNCH_INSTALL") != "never"


def wheels(cache: Path, progress: Progress, requirements: Path | None = None) -> list[Path]:
    """A wheel of each pin and of all that they need, but for torch and what torch alone needs.

    `requirements`: the pins, train_entry's when None. For CPython 3.11 and 3.12 on Linux x86_64; pip judges
    environment markers by the Python that it runs in: no pin needs anything on Linux alone (checked
    2026-11-25). Raises BackendError.
    """
    source = requirements or files("train_entry").joinpath("requirements.txt")
    lines = (line.split("#")[0].strip() for line in source.read_text(encoding="utf-8").splitlines())
    pins = [line for line in lines if line]
    root = cache / "wheelhouse"
    target = root / hashlib.sha256(repr((pins, PYTHONS, PLATFORMS)).encode()).hexdigest()[:16]
    if not target.is_dir():
        progress("downloading the packages that an offline job brings along (once, some minutes)")
        _sweep(root)
        building = root / f"building-{os.getpid()}"
        try:
            _download(pins, building, target.with_suffix(".log"))
            _put_in_place(building / "wheels", target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    found = sorted(target.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in found)
    progress(
        f"{len(found)} packages come along in the bundle ({size / 2**20:.0f} MiB); "
        "none for an image that has them all: --set env.LAUNCH_INSTALL=never"
    )
    return found


def _download(pins: Sequence[str], building: Path, log: Path) -> None:
    """Fill building/wheels."""
    house = building / "wheels"
    shutil.rmtree(building, ignore_errors=True)
    house.mkdir(parents=True)
    log.write_text("", encoding="utf-8")
    pip = [_python_with_pip(building, log), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source_only = [pin for pin in pins if pin.partition("==")[0] in SOURCE_ONLY]
    if source_only:
        _run([*pip, "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", str(house), *source_only], log)
    constraints = building / "constraints.txt"
    constraints.write_text(_stand_in(building, pins), encoding="utf-8")
    for version in PYTHONS:
        _run(
            [*pip, "download", "--dest", str(house), "--find-links", str(house), "--find-links", str(building),
             "--constraint", str(constraints), "--only-binary=:all:", "--implementation=cp",
             f"--python-version={version}", *(f"--platform={name}" for name in PLATFORMS),
             *(pin for pin in pins if not pin.startswith("torch=="))],
            log,
        )  # fmt: skip
    for stand_in in house.glob("torch-*.whl"):
        stand_in.unlink()


def _python_with_pip(building: Path, log: Path) -> str:
    """The launcher's own python; where uv or pipx made its environment without pip, that of a new one."""
    if importlib.util.find_spec("pip") is not None:
        return sys.executable
    _run([sys.executable, "-m", "venv", str(building / "venv")], log)
    return str(building / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def _stand_in(folder: Path, pins: Sequence[str]) -> str:
    """Leave a torch that is empty and needs nothing in `folder`; the constraint that makes pip resolve with it.

    So nothing of CUDA is downloaded, and what other packages need as well as torch still is.
    """
    version = f"{next(pin for pin in pins if pin.startswith('torch==')).removeprefix('torch==')}+image"
    inside = f"torch-{version}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{inside}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{inside}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{inside}/RECORD", "")
    return f"torch=={version}\n"


def _put_in_place(wheels: Path, target: Path) -> None:
    try:
        wheels.rename(target)
    except OSError as exc:
        if not target.is_dir():  # not the race against another launcher
            raise BackendError(
                f"the wheels can't be moved to {target}: {exc}", "set LAUNCH_CACHE_DIR to another folder"
            ) from exc


def _sweep(root: Path) -> None:
    """Remove what killed downloads left."""
    for left in root.glob("building-*"):
        pid = left.name.removeprefix("building-")
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _run(command: Sequence[str], log: Path) -> None:
    env = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}  # a wheel made here has the same bytes every time
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise BackendError(
            f"the packages for an offline job could not be downloaded: {' '.join(tail)}",
            f"the whole output is in {log}; an image that has them all needs no download: "
            "--set env.LAUNCH_INSTALL=never",
        )
