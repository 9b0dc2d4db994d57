"""What tests share: a training python, a tiny model, an isolated home, the real CLI, and no network.

Also read in the training environment (tests/train), which has no launcher: that is imported in fixtures only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LOOPBACK = ("127.", "::1", "localhost")

_guarded = False


class Launch(Protocol):
    """Runs `launch ARGS` as its own process; output is text, nothing is raised for a failing exit code."""

    def __call__(
        self, *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden requests anew")


def pytest_configure(config: pytest.Config) -> None:
    # Training processes are not under the guard below: this keeps them from asking the hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.addaudithook(_refuse_network)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the training environment starts torch."""
    for item in items:
        if "train_python" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.train)


def _refuse_network(event: str, args: tuple[Any, ...]) -> None:
    if not _guarded or event not in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        return
    connection, address = args[0], args[1]
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or not address:
        return
    if not str(address[0]).startswith(LOOPBACK):
        raise RuntimeError(f"tests reach loopback addresses only, not {address[0]}")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """A connection out of this machine fails the test that makes it."""
    global _guarded
    _guarded = True
    yield
    _guarded = False


@pytest.fixture(scope="session")
def train_python() -> Path:
    """The interpreter that has torch: LAUNCH_TRAIN_PYTHON, or the environment that `make test` builds."""
    from backends.local.environment import TrainingEnvironment
    from launcher.home import cache

    environment = TrainingEnvironment(cache())
    if not environment.ready():
        pytest.skip("make test builds the training environment")
    return environment.python()


@pytest.fixture(scope="session")
def sky_python() -> Path:
    """The interpreter that has SkyPilot: LAUNCH_SKYPILOT_PYTHON, or the environment that `make test` builds."""
    from backends.skypilot.environment import SkyPilotEnvironment
    from launcher.home import cache

    environment = SkyPilotEnvironment(cache())
    if not environment.ready():
        pytest.skip("make test builds SkyPilot's environment")
    return environment.python()


@pytest.fixture(scope="session")
def warm_environment(
    image: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, str]]:
    from tests.warm_starts import WarmStarts

    python = str(image("vertex"))
    forking = WarmStarts(python, tmp_path_factory.mktemp("warm"))
    yield {"LAUNCH_TRAIN_PYTHON": python, **forking.environment(True)}
    forking.close()


@pytest.fixture
def warm_jobs(warm_environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs on this machine start without the training process's imports (tests/warm_starts.py)."""
    for name, value in warm_environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def image(train_python: Path) -> Callable[[str], Path]:
    """The interpreter of what plays this vendor's training image."""
    from tests.images import image_python

    def found(vendor: str) -> Path:
        python = image_python(vendor, train_python)
        if not python.exists():
            pytest.skip("make test builds what plays the vendors' training images")
        return python

    return found


@pytest.fixture(scope="session")
def tiny_model(train_python: Path) -> Path:
    """A Hugging Face folder with a random Llama that trains in a second."""
    from launcher.home import cache

    script = TESTS / "tiny_model.py"
    folder = cache() / "tests" / f"tiny-{hashlib.sha256(script.read_bytes()).hexdigest()[:16]}"
    if not folder.is_dir():
        building = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(building, ignore_errors=True)
        subprocess.run([train_python, script, building], check=True, capture_output=True, timeout=300)
        try:
            building.rename(folder)
        except OSError:  # another test process was first: the same bytes
            shutil.rmtree(building)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LAUNCH_HOME and no account facts, in this process and in those it starts."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LAUNCH_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("LAUNCH_HOME", str(folder))
    return folder


@pytest.fixture
def launch(home: Path, tmp_path: Path) -> Launch:
    """The real command line, in tmp_path unless told otherwise."""

    def run(
        *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher.cli", *args],
            cwd=cwd or tmp_path,
            env={**os.environ, "LAUNCH_HOME": str(home), "NO_COLOR": "1", "COLUMNS": "80", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def typed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Launch:
    """The same in this process: what is typed, said and returned, without the start of an interpreter.

    For words and exit codes; what concerns a process (signals, pipes, a terminal) takes `launch`.
    """
    from launcher.cli import main

    def run(
        *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as there:
            there.chdir(cwd or tmp_path)
            there.setattr(sys, "argv", ["launch", *args])
            for name, value in {"NO_COLOR": "1", "COLUMNS": "80", **(env or {})}.items():
                there.setenv(name, value)
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
            said = capsys.readouterr()
        return subprocess.CompletedProcess(args, int(ended.value.code or 0), said.out, said.err)

    return run
