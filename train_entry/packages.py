"""The image's packages against the pins: what is missing is installed; torch is never replaced.

Standard library only: it runs in any image with Python 3.11.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from train_entry.events import say
from train_entry.failure import JobError

TORCH_AT_LEAST = (2, 6)
INSTALLING = {
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
}
"""The container is the job's own: a distribution's ban on pip, and pip's on root, protect nothing here."""

Run = Callable[[Sequence[str], dict[str, str]], int]
"""Runs a command in an environment to its end; its exit status."""


def missing_packages(requirements: str) -> list[str]:
    """The `name==version` lines that this environment does not satisfy; any torch >= 2.6 does.

    Raises JobError("setup") when torch is older.
    """
    missing = []
    for line in requirements.splitlines():
        pin = line.split("#")[0].strip()
        if not pin:
            continue
        name, _, version = pin.partition("==")
        have = installed(name)
        if have is None:
            missing.append(pin)
        elif name == "torch":
            if tuple(int(p) for p in have.split(".")[:2]) < TORCH_AT_LEAST:
                raise JobError("setup", f"the image's torch {have} is older than 2.6", "use a newer image", False)
        elif have.split("+")[0] != version:
            missing.append(pin)
    return missing


def installed(name: str) -> str | None:
    """The distribution's version in this environment, None without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def install(missing: Sequence[str], inputs: Path, work: Path, run: Run) -> None:
    """Install the pins with pip: from the bundle's wheels where LAUNCH_OFFLINE is 1, else from its index.

    LAUNCH_INSTALL=never (the user's own environment) says what differs and leaves it. Raises JobError("setup").
    """
    if not missing:
        return
    named = " ".join(missing)
    if os.environ.get("LAUNCH_INSTALL") == "never":
        say(f"not as pinned, used as it is: {named}")
        return
    options: list[str] = []
    hint = "use an image that has them, or give the job a way to a package index"
    if os.environ.get("LAUNCH_OFFLINE") == "1":
        wheels = inputs / "wheels"
        _refuse_incomplete(missing, wheels)
        options = ["--no-index", "--find-links", str(wheels)]
        hint = "use an image of Python 3.11 or 3.12 on Linux x86_64, or one that has the packages"
    if torch := installed("torch"):
        # Whatever the pins' own requirements say: else pip may take the image's CUDA build for another.
        constraints = work / "constraints.txt"
        constraints.write_text(f"torch=={torch}\n", encoding="utf-8")
        options += ["--constraint", str(constraints)]
    say(f"installing {len(missing)} packages: {named}")
    if run([*_installer(run), "--quiet", *options, *missing], {**os.environ, **INSTALLING}):
        raise JobError("setup", f"pip could not install {named}", hint)
    importlib.invalidate_caches()  # this process imports from them too (botocore)


def _refuse_incomplete(missing: Iterable[str], wheels: Path) -> None:
    if "torch" in {pin.partition("==")[0] for pin in missing}:
        raise JobError(
            "setup", "the image has no torch, and this job is offline", "name an image with torch >= 2.6", False
        )
    if not wheels.is_dir():
        raise JobError(
            "setup",
            f"the image lacks {' '.join(missing)}; this job is offline and its bundle has no wheels",
            "use an image that has the packages of train_entry/requirements.txt",
            retry=False,
        )


def _installer(run: Run) -> list[str]:
    """pip's install, or that of a pip made by ensurepip (which downloads nothing), or uv's."""
    pip = [sys.executable, "-m", "pip", "install"]
    if importlib.util.find_spec("pip") is not None:
        return pip
    if importlib.util.find_spec("ensurepip") is not None:
        run([sys.executable, "-m", "ensurepip", "--upgrade"], {**os.environ})
        importlib.invalidate_caches()
        if importlib.util.find_spec("pip") is not None:
            return pip
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, "--break-system-packages"]
    raise JobError(
        "setup", "packages are missing and the image has no pip, ensurepip or uv", "use an image that has pip"
    )
