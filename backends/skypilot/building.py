"""The building of SkyPilot's venv, and the look whether it is still as it was built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from backends.base import Progress
from launcher.errors import BackendError

FILES = "files.json"
"""Path -> bytes of every file of the venv's packages."""
TELL_S = 5.0
"""How often what pip does is told."""
SKY = """\
#!/bin/sh
exec "$(dirname "$0")/python" -c 'from sky.cli import cli; cli()' "$@"
"""


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def build(target: Path, requirements: str, progress: Progress) -> None:
    """Build the venv `target`, or build it anew in the place of a damaged one. Raises BackendError."""
    building = target.with_name(f"building-{target.name}-{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _build(building, requirements, target.with_suffix(".log"), progress)
        _put_in_place(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """The first file that is gone, or has another size; None where none has, or nothing is known of them."""
    try:
        known = json.loads((folder / FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for path, size in known.items():
        try:
            if os.stat(folder / path).st_size != size:  # noqa: PTH116 - of thousands of files
                return f"{folder / path} has changed"
        except OSError:
            return f"{folder / path} is missing"
    return None


def _build(folder: Path, requirements: str, log: Path, progress: Progress) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    log.write_text("", encoding="utf-8")
    _run([sys.executable, "-m", "venv", str(folder)], log, progress)
    wanted = folder / "requirements.txt"
    wanted.write_text(requirements, encoding="utf-8")
    pip = [str(python_of(folder)), "-m", "pip", "install", "--disable-pip-version-check"]
    _run([*pip, "-r", str(wanted)], log, progress)
    _run([str(python_of(folder)), "-c", "import sky"], log, progress)
    sky = python_of(folder).with_name("sky")
    sky.write_text(SKY, encoding="utf-8")
    sky.chmod(0o755)
    (folder / FILES).write_text(json.dumps(dict(_files(folder))), encoding="utf-8")


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def _put_in_place(building: Path, target: Path) -> None:
    old = target.with_name(f"old-{target.name}-{os.getpid()}")
    try:
        if target.exists() and damage(target):
            target.rename(old)
        building.rename(target)
    except OSError as exc:
        if not python_of(target).is_file():  # not the race against another launcher
            raise BackendError(
                f"SkyPilot's environment can't be moved to {target}: {exc}",
                "set LAUNCH_CACHE_DIR to another folder",
            ) from exc
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _run(command: Sequence[str], log: Path, progress: Progress) -> None:
    env = {**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env,
            text=True, errors="replace",
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        for line in _telling(process.stdout, progress):
            file.write(line)
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise BackendError(
            f"building SkyPilot's environment failed: {' '.join(tail)}",
            f"the whole output is in {log}; LAUNCH_SKYPILOT_PYTHON lets you bring an environment of your own",
        )


def _telling(lines: Iterator[str], progress: Progress) -> Iterator[str]:
    """The lines of pip as they come; now and then, how many packages it has found and at which it is."""
    found, told = 0, time.monotonic()
    for line in lines:
        yield line
        kind, _, rest = line.strip().partition(" ")
        found += kind == "Collecting"
        if kind == "Installing":
            progress(f"installing {rest.count(',') + 1} packages")
        elif kind == "Collecting" and time.monotonic() - told > TELL_S:
            told = time.monotonic()
            progress(f"{found} packages so far, now {rest.split()[0]}")
