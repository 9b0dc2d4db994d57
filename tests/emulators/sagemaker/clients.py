"""AWS's own clients in an environment of their own: the SageMaker SDK 3 and the training toolkit.

About 0.8 GB with everything they bring, so `make test` builds it only when tests beside this file are asked for,
and goes on without where it can't: those that need it are skipped and say so.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.home import cache

REQUIREMENTS = Path(__file__).with_name("aws_clients.txt")
HERE = "tests/emulators"
SIZE = "0.8 GB"
IMPORTS = "from sagemaker.train import ModelTrainer; import sagemaker_training.cli.train"


def folder() -> Path:
    kind = REQUIREMENTS.read_bytes() + f"{platform.python_version()}{platform.machine()}".encode()
    return cache() / "tests" / f"aws-clients-{hashlib.sha256(kind).hexdigest()[:16]}"


def python() -> Path:
    return folder() / "bin" / "python"


def ready() -> bool:
    """Whole: its scripts hold its own path, so it is built in place, and marked when it is done."""
    return (folder() / "whole").exists()


def wanted(arguments: Sequence[str]) -> bool:
    """Do these arguments of tests.run reach the tests that need it?"""
    paths = [argument for argument in arguments if not argument.startswith("-")]
    return not paths or any(path.rstrip("/") == "tests" or path.startswith(HERE) for path in paths)


def build(tell: Callable[[str], None]) -> None:
    """Build it if it is not there; needs a package index."""
    if ready() or sys.platform != "linux":
        return
    tell(f"building AWS's own clients for the SageMaker emulator's tests ({SIZE}; once, some minutes)")
    shutil.rmtree(folder(), ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder()], check=True)
    pip = [str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    for command in ([*pip, "-r", str(REQUIREMENTS)], [str(python()), "-c", IMPORTS]):
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            tell(f"without AWS's own clients: {done.stderr.strip().splitlines()[-1:]}")
            return
    (folder() / "whole").touch()
