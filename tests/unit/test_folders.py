"""What a URI names is read where the container has it; working files stay off object stores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from train_entry.failure import JobError, tell_vendor
from train_entry.folders import mounted, move_tree, on_object_store, refuse_fetch, work_folder

MOUNTS = """\
overlay / overlay rw 0 0
/dev/nvme1n1 /opt/ml ext4 rw 0 0
gcsfuse /gcs fuse rw,nosuid 0 0
blobfuse2 /mnt/az\\040ure fuse.blobfuse2 rw 0 0
nas:/home /home/me nfs4 rw 0 0
scratch /gcs/scratch tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("gs://bucket/rows.jsonl", "/gcs/bucket/rows.jsonl"),
        ("s3://bucket/base", "/opt/ml/input/data/model"),
        ("s3://bucket/base/", "/opt/ml/input/data/model"),
        ("s3://bucket/base/v2/x", "/opt/ml/input/data/model/v2/x"),
        ("s3://bucket/base/deep/x", "/deep/x"),
        ("s3://bucket/base-2/x", None),
        ("hf://org/model", None),
    ],
)
def test_the_longest_prefix_that_ends_at_a_slash_decides(
    uri: str, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes = {
        "gs://": "/gcs/",
        "s3://bucket/base": "/opt/ml/input/data/model",
        "s3://bucket/base/deep/": "/deep",
    }
    monkeypatch.setenv("LAUNCH_MOUNTS", json.dumps(prefixes))
    assert mounted(uri) == (Path(path) if path else None)


def test_without_mounts_nothing_is_mounted_and_nonsense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH_MOUNTS", raising=False)
    assert mounted("gs://b/x") is None
    monkeypatch.setenv("LAUNCH_MOUNTS", "[1]")
    with pytest.raises(JobError, match="LAUNCH_MOUNTS is not a JSON mapping"):
        mounted("gs://b/x")


def test_only_an_offline_job_refuses_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH_OFFLINE", raising=False)
    refuse_fetch("data", "s3://b/x")
    monkeypatch.setenv("LAUNCH_OFFLINE", "1")
    with pytest.raises(JobError, match="offline and s3://b/x is not mounted") as refused:
        refuse_fetch("data", "s3://b/x")
    assert refused.value.kind == "data"


@pytest.mark.parametrize(
    ("path", "object_store"),
    [
        ("/opt/ml/model", False),
        ("/gcs/bucket/out", True),
        ("/gcsx/out", False),
        ("/gcs/scratch/out", False),
        ("/mnt/az ure/out", True),
        ("/home/me/out", False),
        ("/out", False),
    ],
)
def test_a_folder_on_an_object_store_is_known_by_its_mount(path: str, object_store: bool) -> None:
    assert on_object_store(Path(path), MOUNTS) is object_store


def test_a_link_to_an_object_store_is_one(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/gcs/bucket")
    assert on_object_store(tmp_path / "out" / "job", MOUNTS)


def test_each_node_has_working_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAUNCH_WORK_DIR", raising=False)
    assert work_folder(tmp_path, 0) == tmp_path / ".work"
    assert work_folder(tmp_path, 1) == tmp_path / ".work-node1"
    monkeypatch.setattr("train_entry.folders.on_object_store", lambda _: True)
    monkeypatch.setenv("LAUNCH_JOB_ID", "job-1")
    names = {work_folder(tmp_path, node) for node in (0, 1)}
    assert len(names) == 2 and not any(name.is_relative_to(tmp_path) for name in names)
    monkeypatch.setenv("LAUNCH_WORK_DIR", str(tmp_path / "chosen"))
    assert work_folder(tmp_path, 1) == tmp_path / "chosen"


@pytest.mark.parametrize("renames", [True, False])
def test_a_moved_folder_replaces_what_was_there(
    renames: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "new", tmp_path / "there"
    for folder, name in ((source, "deep/new"), (target, "old")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(name)
    if not renames:

        def refuse(*_: object) -> None:
            raise OSError(24, "too many files to rename")

        monkeypatch.setattr(Path, "rename", refuse)
    move_tree(source, target)
    assert [p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()] == ["deep/new"]
    assert not source.exists()


def test_the_vendors_failure_file_has_the_message_first_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = "s3cr" + "et-word"
    monkeypatch.setenv("LAUNCH_SECRET_NAMES", "WORD")
    monkeypatch.setenv("WORD", hidden)
    monkeypatch.setenv("LAUNCH_FAILURE_FILE", str(tmp_path / "failure"))
    tell_vendor(JobError("data", f"row 3 is {hidden} " + "x" * 2000, "the hint"))
    text = (tmp_path / "failure").read_text()
    assert text.startswith("row 3 is *** xxx") and len(text) == 1024
    tell_vendor(JobError("data", "later", None))
    assert (tmp_path / "failure").read_text() == text
    monkeypatch.setenv("LAUNCH_FAILURE_FILE", str(tmp_path / "short"))
    tell_vendor(JobError("data", "what", "the hint"))
    assert (tmp_path / "short").read_text() == "what\nthe hint"
    monkeypatch.delenv("LAUNCH_FAILURE_FILE")
    tell_vendor(JobError("data", "nowhere"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["failure", "short"]
