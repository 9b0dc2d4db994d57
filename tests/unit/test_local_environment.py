"""The training environment: built once, whole or absent, also when builders race or die."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backends.base import Site
from backends.local import LocalBackend
from backends.local import environment as module
from backends.local.environment import TrainingEnvironment
from launcher.errors import BackendError


class Bare(TrainingEnvironment):
    """The real thing without its packages: a venv takes a tenth of a second, torch does not."""

    builds = 0

    def _build(self, folder: Path, progress: object) -> None:
        type(self).builds += 1
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)


@pytest.fixture(autouse=True)
def own_python_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH_TRAIN_PYTHON", raising=False)
    monkeypatch.setattr(Bare, "builds", 0)


def quiet(line: str) -> None:
    pass


def test_it_is_built_once_and_starts(tmp_path: Path) -> None:
    environment = Bare(tmp_path)
    assert not environment.ready()
    python = environment.make(quiet)
    assert environment.ready()
    assert subprocess.run([python, "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"]).returncode == 0
    assert Bare(tmp_path).make(quiet) == python
    assert Bare.builds == 1


def test_nothing_is_left_beside_it(tmp_path: Path) -> None:
    environment = Bare(tmp_path)
    environment.make(quiet)
    assert [path.name for path in (tmp_path / "environments").iterdir()] == [environment.folder().name]


def test_other_pins_mean_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Bare(tmp_path).folder()
    pins = tmp_path / "train_entry"
    pins.mkdir()
    (pins / "requirements.txt").write_text("torch==9.9\n")
    monkeypatch.setattr(module, "files", lambda package: tmp_path / package)
    assert Bare(tmp_path).folder() != before


def test_a_broken_one_is_built_anew(tmp_path: Path) -> None:
    environment = Bare(tmp_path)
    python = environment.make(quiet)
    python.unlink()
    assert not environment.ready()
    environment.make(quiet)
    assert environment.ready()
    assert Bare.builds == 2


def test_what_a_killed_build_left_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    left = tmp_path / "environments" / f"building-{dead.pid}"
    busy = tmp_path / "environments" / f"building-{os.getppid()}"
    for folder in (left, busy):
        folder.mkdir(parents=True)
    Bare(tmp_path).make(quiet)
    assert not left.exists()
    assert busy.exists()


def test_a_failed_build_leaves_no_environment(tmp_path: Path) -> None:
    class Failing(Bare):
        def _build(self, folder: Path, progress: object) -> None:
            super()._build(folder, progress)
            raise BackendError("no such package")

    with pytest.raises(BackendError):
        Failing(tmp_path).make(quiet)
    assert list((tmp_path / "environments").iterdir()) == []


def test_the_second_of_two_builders_keeps_the_environment_that_the_first_one_uses(tmp_path: Path) -> None:
    started, go = threading.Event(), threading.Event()

    class Slow(Bare):
        def _build(self, folder: Path, progress: object) -> None:
            super()._build(folder, progress)
            started.set()
            assert go.wait(30)

    thread = threading.Thread(target=lambda: Slow(tmp_path).make(quiet))
    thread.start()
    assert started.wait(30)
    # Another process would build in a folder of its own; here both have one pid, so the slow one's is kept apart.
    building = tmp_path / "environments" / f"building-{os.getpid()}"
    building.rename(building.with_name("aside"))
    first = Bare(tmp_path)
    python = first.make(quiet)
    (first.folder() / "mark").write_text("in use")
    building.with_name("aside").rename(building)
    go.set()
    thread.join(30)
    assert python.exists()
    assert (first.folder() / "mark").read_text() == "in use"


def test_a_failing_command_of_the_build_is_shown_with_the_whole_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    with pytest.raises(BackendError, match="no matching distribution") as refusal:
        module._run([sys.executable, "-c", "print('no matching distribution'); raise SystemExit(1)"], log)
    assert str(log) in (refusal.value.hint or "")


def test_a_python_of_your_own_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_TRAIN_PYTHON", sys.executable)
    environment = TrainingEnvironment(tmp_path)
    assert environment.brought
    assert environment.make(quiet) == Path(sys.executable)
    assert not (tmp_path / "environments").exists()


def test_a_python_of_your_own_may_be_named_from_here_from_home_or_from_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "bin" / "mypython"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(python.parent))
    for name in ("bin/mypython", "~/bin/mypython", "mypython"):
        monkeypatch.setenv("LAUNCH_TRAIN_PYTHON", name)
        assert TrainingEnvironment(tmp_path).python() == python  # jobs start in a folder of their own


def test_a_python_of_your_own_that_does_not_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_TRAIN_PYTHON", str(tmp_path / "gone"))
    with pytest.raises(BackendError, match=r"LAUNCH_TRAIN_PYTHON names .*gone") as refusal:
        TrainingEnvironment(tmp_path).make(quiet)
    assert "unset it" in (refusal.value.hint or "")


def test_check_says_that_the_environment_is_to_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCH_CACHE_DIR", str(tmp_path / "cache"))
    problems = LocalBackend(tmp_path / "home").check(Site(backend="local"))
    assert [p.what for p in problems if not p.fatal] == ["the training environment is not built yet"]
    assert all(problem.fix for problem in problems)
