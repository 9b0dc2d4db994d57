"""A real Slurm cluster on loopback, and the machine of somebody who uses it through SkyPilot."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import pytest

from launcher.home import cache
from tests.emulators.namespaces import prefix
from tests.emulators.slurm import packages
from tests.warm_starts import WarmStarts

HERE = Path(__file__).parent
NEEDED = "FINELAUNCH_TESTS_NEED_SLURM"
"""Set where a skip is a failure."""
NAME = "emulated"
STORE = "/srv/shared"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sshd", "ssh", "ssh-keygen", "rsync")
SBIN = "/usr/sbin:/sbin"
CONFIG = """\
allowed_clouds: [slurm]
jobs: {controller: {consolidation_mode: true}}
"""
PRICES = "Region,Zone,PricePerVCPU,PricePerMemoryGB,AcceleratorName,PricePerAccelerator\n,,0.0,0.0,H100,1.5\n"
GPUS = "AcceleratorName,Clouds\nH100,['AWS']\nA100,['AWS']\n"
LOGIN = """\
Host {name}
    HostName 127.0.0.1
    Port {port}
    User skyjob
    IdentityFile {folder}/cluster/key
    IdentitiesOnly yes
"""


def skip_where_there_is_none() -> None:
    """Skip the test that calls; where FINELAUNCH_TESTS_NEED_SLURM is set, fail it."""
    problem = lacking()
    if problem is None and not packages.folder().is_dir():
        problem = "make test fetches what emulated Slurm nodes install"
    if problem and os.environ.get(NEEDED):
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)


def lacking() -> str | None:
    """What this machine lacks for a cluster; None when it can have one."""
    begin, problem = prefix()
    if problem or begin or os.geteuid() != 0:
        return problem or "an emulated Slurm cluster needs root"
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    without = [program for program in PROGRAMS if shutil.which(program, path=path) is None]
    if without:
        return f"an emulated Slurm cluster needs {', '.join(without)} (slurm-wlm, munge, openssh-server, rsync)"
    return None


class SlurmCluster:
    """`nodes` nodes of two H100s that are none. One at a time in a network: SkyPilot's server has one port.

    `train_python`: an image's (tests/images.py), whose training starts without its imports.
    """

    def __init__(self, sky_python: Path, train_python: Path, nodes: int = 2) -> None:
        self._sky_python, self._train_python, self._nodes = sky_python, train_python, nodes
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.home = self.folder / "home"
        self._turn: IO[str] | None = None
        self._warm = WarmStarts(str(train_python), self.folder / "cluster")

    @property
    def environment(self) -> dict[str, str]:
        """Of the user's processes."""
        return {
            "HOME": str(self.home), "LAUNCH_SKYPILOT_PYTHON": str(self.folder / "python"),
            "AWS_EC2_METADATA_DISABLED": "true", "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "LAUNCH_CACHE_DIR": str(cache()),
        }  # fmt: skip

    @property
    def store(self) -> Path:
        """STORE of the nodes, as this machine can look at it."""
        return self.folder / "cluster" / "root" / "srv" / "shared"

    def __enter__(self) -> SlurmCluster:
        network = Path("/proc/self/ns/net").readlink().name.strip("net:[]")
        self._turn = (Path(tempfile.gettempdir()) / f"emulated-slurm-{network}.lock").open("w")
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            port = _free_ports(self._nodes + 2)
            (self.folder / "cluster").mkdir()
            self._warm.environment(True)
            subprocess.run(
                [HERE / "up.sh", self.folder / "cluster", packages.folder(), str(self._nodes), str(port),
                 self._train_python],
                check=True, capture_output=True, text=True, timeout=90,
            )  # fmt: skip
            self._make_home(port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        stop = "from sky.client import sdk; sdk.api_stop()"
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self._sky(stop)
        self._warm.close()
        subprocess.run([HERE / "down.sh", self.folder / "cluster"], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._turn is not None:
            self._turn.close()

    def run(self, command: str) -> str:
        """What a command on the login node says."""
        ssh = ["ssh", "-F", self.home / ".slurm" / "config", "-o", "StrictHostKeyChecking=no"]
        quiet = ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", NAME]
        done = subprocess.run([*ssh, *quiet, command], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def allocations(self) -> list[str]:
        """Ids of the Slurm jobs that hold machines."""
        return self.run("squeue -h -o %i").split()

    def break_index(self, broken: bool) -> None:
        """Whether the nodes' package index is down."""
        mark = self.folder / "cluster" / "no-index"
        mark.touch() if broken else mark.unlink(missing_ok=True)

    def _sky(self, code: str) -> None:
        env = {**os.environ, **self.environment}
        subprocess.run([self.folder / "python", "-c", code], env=env, capture_output=True, timeout=60, check=True)

    def _make_home(self, port: int) -> None:
        catalogs = self.home / ".sky" / "catalogs" / "v8"
        files = {
            self.home / ".slurm" / "config": LOGIN.format(name=NAME, port=port, folder=self.folder),
            self.home / ".sky" / "config.yaml": CONFIG,
            catalogs / "slurm" / "pricing.csv": PRICES,
            catalogs / "common" / "accelerators.csv": GPUS,
            self.folder / "python": f'#!/bin/sh\nPYTHONPATH={HERE}/client exec {self._sky_python} "$@"\n',
        }
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (self.folder / "python").chmod(0o755)


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody has."""
    for first in range(21000 + os.getpid() % 500 * 20, 40000, 20):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")
