"""What every store does alike, on a folder of this machine."""

from __future__ import annotations

import threading
from hashlib import sha256
from pathlib import Path

import pytest

from backends import storage as common
from backends.base import Bundle, BundleFile
from backends.skypilot.shared import SharedPath
from backends.storage import Count
from launcher.errors import BackendError, JobNotFoundError, UnreachableError


def packed(folder: Path, count: int = 1) -> Bundle:
    files = []
    for number in range(count):
        content = b"%d" % number
        (folder / f"{number}").write_bytes(content)
        digest = sha256(content).hexdigest()
        files.append(BundleFile(path=f"{number}", size=len(content), sha256=digest, source=folder / f"{number}"))
    return Bundle(sha256="ab" * 32, files=tuple(files))


class Recorded(SharedPath):
    """Notes what is sent; the file named `bad` meets `problem`, the others wait until that has happened."""

    def __init__(self, folder: Path, bad: str, problem: BaseException) -> None:
        super().__init__(str(folder / "store"), None, folder / "ssh")
        self.bad, self.problem = bad, problem
        self.sent: list[str] = []
        self.happened = threading.Event()

    def send_small(self, file: BundleFile, key: str) -> None:
        self.sent.append(file.path)
        if file.path == self.bad:
            self.happened.set()
            raise self.problem
        self.happened.wait(10)
        super().send_small(file, key)


@pytest.mark.parametrize("problem", [UnreachableError("the cable is out"), KeyboardInterrupt()])
def test_what_waits_to_be_sent_is_not_sent_after_an_error(tmp_path: Path, problem: BaseException) -> None:
    store = Recorded(tmp_path, "1", problem)
    with pytest.raises(type(problem)):
        store.put_bundle(packed(tmp_path, 60), "job-1", lambda line: None)
    assert len(store.sent) < 30
    assert store.get(f"finelaunch/bundles/{'ab' * 32}.json") is None


def test_a_large_file_that_is_being_sent_stops_with_its_part() -> None:
    moved = Count(0, 10, lambda line: None)
    moved.add(5)
    moved.stop()
    with pytest.raises(BackendError, match="stopped"):
        moved.add(5)


def test_releasing_a_job_leaves_the_bundle_to_one_whose_name_begins_alike(tmp_path: Path) -> None:
    store = SharedPath(str(tmp_path / "store"), None, tmp_path / "ssh")
    bundle = packed(tmp_path)
    for token in ("x", "x-r2"):
        store.put_bundle(bundle, token, lambda line: None)
    store.drop_bundle(bundle.sha256, "x")
    assert store.get(f"finelaunch/bundles/{bundle.sha256}/0") == b"0"
    store.drop_bundle(bundle.sha256, "x-r2")
    assert list(store.keys("finelaunch/")) == []


class Raced(SharedPath):
    """Another launcher is faster: the parts are gone, `times` times; with `whole` the file is there then."""

    def __init__(self, folder: Path, times: int, whole: bytes = b"") -> None:
        super().__init__(str(folder / "store"), None, folder / "ssh")
        self.times, self.whole, self.tries = times, whole, 0

    def send_parts(self, file: BundleFile, key: str, moved: Count) -> None:
        self.tries += 1
        if self.tries <= self.times:
            if self.whole:
                self.put(key, self.whole)
            raise JobNotFoundError("the parts are gone")
        super().send_parts(file, key, moved)


@pytest.mark.parametrize(("times", "whole", "tries"), [(1, b"0", 1), (1, b"", 2), (2, b"", 3), (1, b"00", 2)])
def test_a_file_whose_parts_another_launcher_joined_is_there_or_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, whole: bytes, tries: int
) -> None:
    monkeypatch.setattr(common, "LARGE", 1)
    store, bundle = Raced(tmp_path, times, whole), packed(tmp_path)
    store.put_bundle(bundle, "job-1", lambda line: None)
    assert store.get(f"finelaunch/bundles/{bundle.sha256}/0") == b"0"
    assert store.tries == tries


def test_parts_that_are_gone_again_and_again_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "LARGE", 1)
    with pytest.raises(JobNotFoundError):
        Raced(tmp_path, 99).put_bundle(packed(tmp_path), "job-1", lambda line: None)
