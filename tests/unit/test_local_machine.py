"""The GPUs of this machine, told by a program that answers as nvidia-smi does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.base import Site
from backends.local import LocalBackend
from backends.local.machine import gpus
from launcher.errors import BackendError, CapacityError
from launcher.spec import Resources

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a machine with two GPUs and this driver in place of the real one."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("LAUNCH_TRAIN_PYTHON", raising=False)
    monkeypatch.setenv("LAUNCH_CACHE_DIR", str(tmp_path / "cache"))

    def put(version: str) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\nfor i in 1 2; do echo 'NVIDIA L4, 23034, {version}'; done\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def test_gpus_are_listed_and_can_be_hidden(driver, monkeypatch):
    driver("580.82.07")
    assert [(g.name, g.memory_gib, g.driver) for g in gpus()] == [("NVIDIA L4", 22.5, "580.82.07")] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus() == []


def test_an_old_driver_is_said_in_words_before_anything_is_built(driver, tmp_path):
    driver("535.104.05")
    backend = LocalBackend(tmp_path / "home")
    problems = [p for p in backend.check(Site(backend="local")) if p.fatal]
    assert "535.104.05 is too old" in problems[0].what
    assert "update the driver" in problems[0].fix
    with pytest.raises(BackendError, match=r"needs 580 or newer"):
        backend.prepare(lambda line: None)
    assert not (tmp_path / "cache" / "environments").exists()


def test_a_driver_that_is_new_enough_is_no_problem(driver, tmp_path):
    driver("580.65.06")
    assert not [p for p in LocalBackend(tmp_path / "home").check(Site(backend="local")) if "driver" in p.what]


def test_offers_are_the_gpus_that_fit(driver, tmp_path):
    driver("580.82.07")
    backend = LocalBackend(tmp_path / "home")
    (offer,) = backend.offers(Resources(gpu="l4", gpus=2))
    assert (offer.instance_type, offer.gpus, offer.gpu_memory_gib) == ("2x NVIDIA L4", 2, 22.5)
    for wanted, word in ((Resources(gpu="H100"), "resources.gpu"), (Resources(gpus=3), "resources.gpus")):
        with pytest.raises(CapacityError, match=word):
            list(backend.offers(wanted))
