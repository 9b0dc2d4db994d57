"""Checkpoints: whole or not at all, and never another job's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from train_entry.checkpoint import MANIFEST, Checkpoint, newest_complete, publish
from train_entry.failure import JobError

JOB = {"model.id": '"org/model"', "train.seed": "42"}


def build(tmp_path: Path, content: str = "weights") -> Path:
    folder = tmp_path / "build"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "model.bin").write_text(content)
    (folder / "state.json").write_text("{}")
    return folder


def save(tmp_path: Path, step: int, keep: int = 9, **notes: Any) -> Path:
    return publish(build(tmp_path, f"weights {step}"), tmp_path / "root", step, JOB, notes, keep)


def newest(tmp_path: Path) -> Checkpoint | None:
    return newest_complete(tmp_path / "root", JOB)


def newest_step(tmp_path: Path) -> int | None:
    found = newest(tmp_path)
    return found.step if found else None


def test_a_checkpoint_comes_back_with_its_step_notes_and_files(tmp_path: Path) -> None:
    save(tmp_path, 7, best_loss=0.5)
    found = newest(tmp_path)
    assert found is not None
    assert (found.step, found.notes) == (7, {"best_loss": 0.5})
    assert (found.folder / "trainer" / "model.bin").read_text() == "weights 7"


def test_there_is_none_before_the_first(tmp_path: Path) -> None:
    assert newest(tmp_path) is None


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
    assert newest_step(tmp_path) == 100


@pytest.mark.parametrize(
    "damage",
    ["no manifest", "torn manifest", "manifest of another format", "missing file", "cut file", "flipped bit"],
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    weights, manifest = folder / "trainer" / "model.bin", folder / MANIFEST
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif damage == "manifest of another format":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 99}))
    elif damage == "missing file":
        weights.unlink()
    elif damage == "cut file":
        weights.write_text("weigh")
    else:
        weights.write_text("weights 3")
    assert newest_step(tmp_path) == 1
    assert "skipping checkpoint step-00000002" in capsys.readouterr().err


def test_a_copy_killed_half_way_is_replaced_by_the_next_save_of_that_step(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / "root" / "step-00000002"
    half.mkdir()
    (half / "left-over").write_text("half")
    assert newest_step(tmp_path) == 1
    save(tmp_path, 2)
    assert newest_step(tmp_path) == 2
    assert not (half / "left-over").exists()


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == ["step-00000004", "step-00000005"]


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    save(tmp_path, 1, keep=2)
    (save(tmp_path, 2, keep=2) / MANIFEST).unlink()
    save(tmp_path, 3, keep=2)
    assert (tmp_path / "root" / "step-00000001" / MANIFEST).exists()


def test_another_jobs_checkpoint_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(JobError, match=r"train\.seed: 42 -> 43") as refusal:
        newest_complete(tmp_path / "root", {**JOB, "train.seed": "43"})
    assert refusal.value.kind == "checkpoint"
    assert "model.id" not in refusal.value.message


def test_a_changed_job_goes_on_where_that_is_meant_and_the_weights_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    monkeypatch.setenv("LAUNCH_FROM_CHECKPOINT", "1")
    found = newest_complete(tmp_path / "root", {**JOB, "train.seed": "43"})
    assert found is not None and found.changed == ("train.seed: 42 -> 43",)
    same = newest(tmp_path)
    assert same is not None and same.changed == ()
    with pytest.raises(JobError, match=r"model\.id: \"org/model\" -> \"org/other\"") as refusal:
        newest_complete(tmp_path / "root", {**JOB, "model.id": '"org/other"'})
    assert refusal.value.hint == "run it as a new job"


def test_what_stands_after_a_new_checkpoint_was_passed_over_and_goes(tmp_path: Path) -> None:
    """Step 100 was damaged, so that training went on from 90 and is at 95."""
    for step in (90, 100):
        save(tmp_path, step)
    damaged = tmp_path / "root/step-00000100/trainer/model.bin"
    damaged.write_text("nothing")
    assert newest_step(tmp_path) == 90
    save(tmp_path, 95, keep=1)
    assert newest_step(tmp_path) == 95
    assert [f.name for f in (tmp_path / "root").iterdir()] == ["step-00000095"]


def test_what_a_killed_copy_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    left = tmp_path / "root/step-00000002/trainer"
    left.mkdir(parents=True)
    (left / "model.bin").write_text("half")
    (tmp_path / "root/baseline.json").write_text("{}")
    save(tmp_path, 3)
    names = sorted(f.name for f in (tmp_path / "root").iterdir())
    assert names == ["baseline.json", "step-00000001", "step-00000003"]


def test_a_slow_copy_shows_that_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every block: a large checkpoint on a slow mount takes longer than a hang may."""
    pulses = []
    monkeypatch.setattr("train_entry.watchdog.beat", lambda: pulses.append(1))
    monkeypatch.setattr("train_entry.checkpoint.BLOCK", 100)
    publish(build(tmp_path, "x" * 1000), tmp_path / "root", 1, JOB, {}, 1)
    assert len(pulses) >= 10 and newest_step(tmp_path) == 1


FULL = """
import resource, signal, sys
from pathlib import Path
from train_entry.checkpoint import newest_complete, publish
from train_entry.failure import JobError
built, root = Path(sys.argv[1]), Path(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    publish(built, root, 2, {"a": "1"}, {}, keep=1)
except JobError as exc:
    print(exc.kind, newest_complete(root, {"a": "1"}).step, [p.name for p in root.iterdir()])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file size limit a process")
def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before_intact(tmp_path: Path) -> None:
    publish(build(tmp_path), tmp_path / "root", 1, {"a": "1"}, {}, keep=1)
    big = build(tmp_path, "x" * 200_000)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(big), str(tmp_path / "root")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "checkpoint 1 ['step-00000001']"


def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    publish(build(tmp_path), tmp_path / "root", 1, {"a": "1"}, {}, keep=2)
    script = (
        "import sys; from pathlib import Path; from train_entry.checkpoint import publish\n"
        "for step in range(2, 100000):\n"
        "    publish(Path(sys.argv[1]), Path(sys.argv[2]), step, {'a': '1'}, {}, keep=2)\n"
        "    print(step, flush=True)\n"
    )
    built, root, told = build(tmp_path, "x" * 300_000), tmp_path / "root", 1
    for _ in range(6):
        shutil.rmtree(root, ignore_errors=True)
        publish(built, root, 1, {"a": "1"}, {}, keep=2)
        command = [sys.executable, "-c", script, str(built), str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()
            told = max([2, *(int(line) for line in process.stdout if line.strip())])
        found = newest_complete(root, {"a": "1"})
        assert found is not None and found.step in (told, told + 1)
