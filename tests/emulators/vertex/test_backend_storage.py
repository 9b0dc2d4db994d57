"""The Vertex backend's bucket, on emulated Cloud Storage: large files in parts, kept and copied."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from backends import storage as common
from backends.base import Bundle
from backends.vertex import storage as own
from backends.vertex.google import Google
from backends.vertex.storage import Storage
from launcher.errors import BackendError, UnreachableError
from tests.emulators.bundles import bundle
from tests.emulators.vertex.conftest import Project

PART = 2**16


@pytest.fixture
def storage(project: Project, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in project.google.environment.items():
        monkeypatch.setenv(name, value)
    for module in (common, own):
        monkeypatch.setattr(module, "LARGE", PART)
    return Storage(Google(project.google.project, project.google.region), project.bucket)


def uploads(project: Project) -> int:
    return sum((c.service, c.operation) == ("storage", "Upload") for c in project.google.calls)


def fetched(storage: Storage, wanted: Bundle, to: Path) -> bytes:
    file = wanted.files[0]
    storage.fetch(f"finelaunch/bundles/{wanted.sha256}/{file.path}", to, file.size)
    return to.read_bytes()


def test_a_large_file_is_joined_from_more_parts_than_one_call_joins(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(40 * PART + 17)
    wanted = bundle(tmp_path, "large", content)
    said: list[str] = []
    storage.put_bundle(wanted, "job-1", said.append)
    assert fetched(storage, wanted, tmp_path / "back") == content
    assert list(storage.keys("finelaunch/parts/")) == []
    assert said[-1].startswith("uploading")


def test_what_was_sent_before_the_network_went_is_not_sent_again(
    storage: Storage, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(10 * PART)
    wanted = bundle(tmp_path, "resumed", content)
    real, sent = Storage.put, []

    def put(self: Storage, key: str, data: bytes) -> None:
        if "/parts/" in key:
            if len(sent) == 6:
                raise UnreachableError("the cable is out", "put it in")
            sent.append(key)
        real(self, key, data)

    monkeypatch.setattr(Storage, "put", put)
    with pytest.raises(UnreachableError):
        storage.put_bundle(wanted, "job-2", lambda _: None)
    monkeypatch.setattr(Storage, "put", real)
    before = uploads(project)
    storage.put_bundle(wanted, "job-2", lambda _: None)
    assert uploads(project) - before == 4 + 3  # parts; the use, the pointer and the list
    assert fetched(storage, wanted, tmp_path / "back") == content


def test_another_bundle_has_it_by_a_copy(storage: Storage, project: Project, tmp_path: Path) -> None:
    content = os.urandom(3 * PART)
    storage.put_bundle(bundle(tmp_path, "first", content), "job-3", lambda _: None)
    before = uploads(project)
    second = bundle(tmp_path, "second", content)
    storage.put_bundle(second, "job-4", lambda _: None)
    assert uploads(project) - before == 2  # the use and the list
    assert fetched(storage, second, tmp_path / "back") == content


def test_a_download_goes_on_behind_what_is_there(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(2 * PART)
    wanted = bundle(tmp_path, "cut", content)
    storage.put_bundle(wanted, "job-5", lambda _: None)
    (tmp_path / ".back.part").write_bytes(content[:1000])
    assert fetched(storage, wanted, tmp_path / "back") == content


def test_a_file_that_changed_meanwhile_is_not_sent(storage: Storage, tmp_path: Path) -> None:
    wanted = bundle(tmp_path, "small", b"as it was")
    (tmp_path / "small").write_bytes(b"otherwise")
    with pytest.raises(BackendError, match="has changed"):
        storage.put_bundle(wanted, "job-6", lambda _: None)


def test_a_large_file_that_changed_meanwhile_is_not_joined_and_leaves_no_parts(
    storage: Storage, tmp_path: Path
) -> None:
    content = os.urandom(3 * PART)
    wanted = bundle(tmp_path, "edited", content)
    (tmp_path / "edited").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BackendError, match="has changed"):
        storage.put_bundle(wanted, "job-9", lambda _: None)
    assert (
        list(storage.keys(f"finelaunch/bundles/{wanted.sha256}")) == list(storage.keys("finelaunch/parts/")) == []
    )


def test_parts_of_a_file_that_was_changed_and_is_mended_are_not_taken_for_its_own(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(3 * PART)
    wanted = bundle(tmp_path, "mended", content)
    (tmp_path / "mended").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with monkeypatch.context() as patch, pytest.raises(UnreachableError):
        patch.setattr(Storage, "remove", lambda *_: (_ for _ in ()).throw(UnreachableError("the cable is out")))
        storage.put_bundle(wanted, "job-10", lambda _: None)
    (tmp_path / "mended").write_bytes(content)
    storage.put_bundle(wanted, "job-10", lambda _: None)
    assert fetched(storage, wanted, tmp_path / "back") == content


@pytest.mark.parametrize("same", [True, False])
def test_of_two_launchers_that_send_one_file_both_succeed(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    content = os.urandom(40 * PART)
    mine = bundle(tmp_path, f"race-{same}", content)
    other = mine if same else bundle(tmp_path, "race-other", content)
    real, begun = Storage._join, []

    def join(self: Storage, *given: Any) -> None:
        if not begun:  # the other one sends, joins and removes the parts at this very moment
            begun.append(self)
            storage.put_bundle(other, "job-12", lambda _: None)
        real(self, *given)

    monkeypatch.setattr(Storage, "_join", join)
    storage.put_bundle(mine, "job-11", lambda _: None)
    for number, wanted in enumerate((mine, other)):
        assert fetched(storage, wanted, tmp_path / f"back-{number}") == content
    assert list(storage.keys("finelaunch/parts/")) == []


def test_a_job_keeps_its_bundle_when_one_whose_name_it_begins_with_is_released(
    storage: Storage, tmp_path: Path
) -> None:
    wanted = bundle(tmp_path, "kept", b"x")
    for job in ("kept", "kept-r2"):
        storage.put_bundle(wanted, job, lambda _: None)
    storage.drop_bundle(wanted.sha256, "kept")
    assert fetched(storage, wanted, tmp_path / "back") == b"x"


def test_the_last_job_that_needs_a_bundle_removes_it(storage: Storage, tmp_path: Path) -> None:
    wanted = bundle(tmp_path, "shared", b"x")
    for job in ("job-7", "job-8"):
        storage.put_bundle(wanted, job, lambda _: None)
    there: Any = lambda: list(storage.keys(f"finelaunch/bundles/{wanted.sha256}"))  # noqa: E731
    storage.drop_bundle(wanted.sha256, "job-7")
    assert there()
    storage.drop_bundle(wanted.sha256, "job-8")
    assert not there()
