"""An offline job brings the wheels that its image lacks: whole or absent, without torch, downloaded once."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backends.base import bundle_of, job_record
from launcher import wheelhouse
from launcher.client import Client
from launcher.errors import BackendError, UnsupportedError
from launcher.spec import JobSpec
from tests.golden.cases import FACTS
from tests.tiny_wheels import make_sdist, make_wheel

PINS = "# what is tested\ntorch==2.13.0\npinned==1.0  # with a reason\nnative==2.0\nrouge_score==0.1.2\n"
BOTH = [f"native-2.0-cp{v}-cp{v}-manylinux_2_28_x86_64.whl" for v in ("311", "312")]
WHOLE = sorted([
    "pinned-1.0-py3-none-any.whl", "leaf-1.5-py3-none-any.whl", "rouge_score-0.1.2-py3-none-any.whl", *BOTH,
])  # fmt: skip


def index(folder: Path, *leave_out: str) -> Path:
    """A folder of packages for pip. It has no torch, whose real requirements are gigabytes."""
    make_wheel(folder, "pinned", "1.0", ["torch>=2.6", "leaf<2"])
    make_sdist(folder, "rouge_score", "0.1.2", ["leaf"])
    for version in ("1.0", "1.5", "2.0"):
        make_wheel(folder, "leaf", version)
    for tag in ("cp311-cp311-manylinux_2_28_x86_64", "cp312-cp312-manylinux_2_28_x86_64",
                "cp311-cp311-macosx_11_0_arm64", "cp312-cp312-win_amd64"):  # fmt: skip
        make_wheel(folder, "native", "2.0", ["leaf"], tag)
    for name in leave_out:
        for path in folder.glob(f"{name}-*"):
            path.unlink()
    return folder


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip finds: this folder and nothing else."""
    folder = index(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text(PINS)
    return path


def test_the_pins_and_all_they_need_come_along_for_linux_and_no_torch(
    offered: Path, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    found = wheelhouse.wheels(tmp_path / "cache", told.append, pins)
    assert sorted(w.name for w in found) == WHOLE
    assert "downloading" in told[0] and told[1].startswith("5 packages come along")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert wheelhouse.wheels(tmp_path / "cache", told.append, pins) == found
    assert told[2:] == [told[1]], "nothing is downloaded again"
    pins.write_text(PINS.replace("native==2.0\n", ""))
    with pytest.raises(BackendError):  # other pins are another wheelhouse
        wheelhouse.wheels(tmp_path / "cache", told.append, pins)


def test_a_wheel_that_is_made_here_has_the_same_bytes_every_time(
    offered: Path, pins: Path, tmp_path: Path
) -> None:
    pins.write_text("torch==2.13.0\nrouge_score==0.1.2\n")
    first, second = (wheelhouse.wheels(tmp_path / name, lambda _: None, pins) for name in ("one", "two"))
    assert len(first) == 2 and [w.read_bytes() for w in first] == [w.read_bytes() for w in second]


def test_a_package_that_can_not_be_had_leaves_nothing_and_says_where_to_look(
    offered: Path, pins: Path, tmp_path: Path
) -> None:
    index(offered, "leaf")
    with pytest.raises(BackendError, match="leaf") as refused:
        wheelhouse.wheels(tmp_path / "cache", lambda _: None, pins)
    left = list((tmp_path / "cache/wheelhouse").iterdir())
    assert [p.suffix for p in left] == [".log"] and str(left[0]) in (refused.value.hint or "")
    assert "env.LAUNCH_INSTALL=never" in (refused.value.hint or "")
    index(offered)
    assert len(wheelhouse.wheels(tmp_path / "cache", lambda _: None, pins)) == len(WHOLE)


def test_two_launchers_at_once_and_one_that_was_killed_do_no_harm(
    offered: Path, pins: Path, tmp_path: Path
) -> None:
    pins.write_text("torch==2.13.0\nleaf==1.0\n")
    root = tmp_path / "cache/wheelhouse"
    dead, alive = root / "building-999999999", root / f"building-{os.getppid()}"
    for folder in (dead, alive):
        (folder / "wheels").mkdir(parents=True)

    def other_is_first(line: str) -> None:
        if "downloading" in line:
            wheelhouse.wheels(tmp_path / "elsewhere", lambda _: None, pins)
            (made,) = (p for p in (tmp_path / "elsewhere/wheelhouse").iterdir() if p.is_dir())
            made.rename(root / made.name)

    found = wheelhouse.wheels(tmp_path / "cache", other_is_first, pins)
    assert [w.name for w in found] == ["leaf-1.0-py3-none-any.whl"]
    assert alive.is_dir() and not dead.exists()


def test_a_launcher_without_pip_makes_itself_one(
    offered: Path, pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins.write_text("torch==2.13.0\nleaf==1.0\n")
    monkeypatch.setattr(wheelhouse.importlib.util, "find_spec", lambda _: None)
    found = wheelhouse.wheels(tmp_path / "cache", lambda _: None, pins)
    assert [w.name for w in found] == ["leaf-1.0-py3-none-any.whl"]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, False),
        ({"resources": {"offline": True}}, True),
        ({"resources": {"offline": True}, "env": {"LAUNCH_INSTALL": "never"}}, False),
    ],
)
def test_only_an_offline_job_whose_image_is_not_said_to_have_all_brings_wheels(
    changes: dict[str, object], wanted: bool
) -> None:
    base = {"name": "a", "model": "m", "task": "generation", "data": {"train": "rows.jsonl"}}
    assert wheelhouse.wanted(JobSpec.model_validate({**base, **changes})) is wanted


def project(folder: Path) -> Path:
    """Rows and a base model, which an offline job brings along too."""
    (folder / "model").mkdir(parents=True)
    (folder / "model/config.json").write_text("{}")
    rows = [json.dumps({"prompt": str(number), "completion": "b"}) for number in range(9)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


def offline_job(**changes: object) -> JobSpec:
    base = {
        "name": "a", "model": "model", "task": "generation", "data": {"train": "rows.jsonl"}, "backend": "vertex",
        "resources": {"gpu": "A100", "offline": True}, "site": {"vertex": FACTS["vertex"]},
    }  # fmt: skip
    return JobSpec.model_validate({**base, **changes})


def test_a_plan_puts_them_into_the_bundle_and_a_job_refused_downloads_nothing(
    offered: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_CACHE_DIR", str(tmp_path / "cache"))
    requirements = (Path(wheelhouse.__file__).parents[1] / "train_entry/requirements.txt").read_text()
    pins = [line.replace("-", "_").split("==") for line in requirements.splitlines() if "==" in line]
    for name, version in pins:
        make = make_sdist if name == "rouge_score" else make_wheel
        if name != "torch":
            make(offered, name, version)
    told: list[str] = []
    client, folder = Client(home), project(tmp_path / "project")
    with pytest.raises(UnsupportedError, match="secrets"):
        client.plan(offline_job(secrets=["HF_TOKEN"]), folder, progress=told.append)
    image_has_all = client.plan(offline_job(env={"LAUNCH_INSTALL": "never"}), folder, progress=told.append)
    assert told == [] and not [f for f in image_has_all.plan.bundle.files if f.path.startswith("wheels/")]
    assert "LAUNCH_INSTALL" in json.dumps(image_has_all.plan.request)

    plan = client.plan(offline_job(), folder, progress=told.append).plan
    along = [f for f in plan.bundle.files if f.path.startswith("wheels/")]
    wanted = {f"wheels/{name}-{version}-py3-none-any.whl" for name, version in pins if name != "torch"}
    assert {f.path for f in along} == wanted
    assert plan.bundle.sha256 in json.dumps(plan.request)
    again = client.plan(offline_job(), folder, progress=told.append).plan
    assert again.bundle.sha256 == plan.bundle.sha256
    assert len([line for line in told if "downloading" in line]) == 1
    resumed = bundle_of(job_record(plan, datetime.now(UTC)))
    assert [f.path for f in resumed.files] == [f.path for f in plan.bundle.files]
