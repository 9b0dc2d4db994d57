"""What an image lacks is installed, from the wheels in the bundle where there is no way out; its torch stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pip
import pytest

from tests.tiny_wheels import make_wheel
from train_entry.failure import JobError
from train_entry.packages import install, missing_packages

ROOT = Path(__file__).parents[2]
PINS = "torch==2.13.0\npinned==1.0\nhad==3.0\n"
SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from train_entry.failure import JobError
from train_entry.packages import install, installed, missing_packages
inputs, work, pins = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
missing = missing_packages(pins)
said = None
try:
    install(missing, inputs, work, lambda command, env: subprocess.run(command, env=env).returncode)
    import pinned  # the process that installs sees what it has installed
except JobError as exc:
    said = [exc.kind, exc.message, exc.hint]
have = {name: installed(name) for name in ("torch", "pinned", "leaf", "had")}
print(json.dumps({"missing": missing, "said": said, "have": have, "left": missing_packages(pins)}))
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The python of an environment without pip that has an older torch and one of the pins."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "image")], check=True)
    python = tmp_path / "image" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    for wheel in (make_wheel(tmp_path, "torch", "2.9.0+cu126"), make_wheel(tmp_path, "had", "3.0")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    return python


@pytest.fixture
def with_pip(image: Path, tmp_path: Path) -> Path:
    """The same, with the pip of these tests."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip/pip").symlink_to(Path(pip.__file__).parent)
    return image


def bundle(tmp_path: Path, *leave_out: str) -> Path:
    """A bundle whose wheels have the pins, and a torch that must not be taken."""
    wheels = tmp_path / "input/wheels"
    made = [
        make_wheel(wheels, "torch", "2.13.0"),
        make_wheel(wheels, "pinned", "1.0", ["torch>=2.6", "leaf"]),
        make_wheel(wheels, "leaf", "1.0"),
    ]
    for wheel in made:
        if wheel.name.startswith(leave_out or ("nothing",)):
            wheel.unlink()
    return tmp_path / "input"


def installed_in(python: Path, inputs: Path, tmp_path: Path, pins: str = PINS, **env: str) -> dict[str, Any]:
    path = os.pathsep.join((str(ROOT), str(tmp_path / "pip")))
    done = subprocess.run(
        [python, "-c", SCRIPT, str(inputs), str(tmp_path), pins], text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": path, "LAUNCH_OFFLINE": "1", "PIP_FIND_LINKS": "", **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_an_offline_job_installs_from_its_bundle_and_keeps_the_images_torch(
    with_pip: Path, tmp_path: Path
) -> None:
    found = installed_in(with_pip, bundle(tmp_path), tmp_path)
    assert found["missing"] == ["pinned==1.0"] and found["said"] is None
    assert found["have"] == {"torch": "2.9.0+cu126", "pinned": "1.0", "leaf": "1.0", "had": "3.0"}
    assert found["left"] == []


def test_an_image_without_pip_gets_it_from_its_own_python(image: Path, tmp_path: Path) -> None:
    found = installed_in(image, bundle(tmp_path), tmp_path)
    assert found["said"] is None and found["have"]["pinned"] == "1.0"


def test_an_incomplete_wheelhouse_is_a_failure_of_the_set_up(with_pip: Path, tmp_path: Path) -> None:
    found = installed_in(with_pip, bundle(tmp_path, "leaf"), tmp_path)
    kind, message, hint = found["said"]
    assert (kind, message) == ("setup", "pip could not install pinned==1.0") and "Python 3.11 or 3.12" in hint
    assert found["have"]["torch"] == "2.9.0+cu126" and found["have"]["pinned"] is None


def test_an_offline_job_without_wheels_or_without_torch_is_refused_before_pip_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_OFFLINE", "1")

    def refuse(command: Sequence[str], env: Mapping[str, str]) -> int:
        raise AssertionError(command)

    with pytest.raises(JobError, match=r"lacks pinned==1\.0; this job is offline and its bundle has no wheels"):
        install(["pinned==1.0"], tmp_path, tmp_path, refuse)
    with pytest.raises(JobError, match="the image has no torch, and this job is offline"):
        install(["torch==2.13.0"], bundle(tmp_path), tmp_path, refuse)
    install([], tmp_path, tmp_path, refuse)
    monkeypatch.setenv("LAUNCH_INSTALL", "never")
    install(["pinned==1.0"], tmp_path, tmp_path, refuse)


def test_pins_are_compared_without_comments_and_builds_and_an_old_torch_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have = {"torch": "2.6.0a0+cu126", "numpy": "2.4.6+mkl", "peft": "0.20.0"}
    monkeypatch.setattr("train_entry.packages.installed", have.get)
    pins = "# what is tested\n\ntorch==2.13.0\nnumpy==2.4.6  # fast\npeft==0.21.2\ntrl==1.16.0\n"
    assert missing_packages(pins) == ["peft==0.21.2", "trl==1.16.0"]
    have["torch"] = "2.5.1"
    with pytest.raises(JobError, match=r"torch 2\.5\.1 is older than 2\.6"):
        missing_packages(pins)
