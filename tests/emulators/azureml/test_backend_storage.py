"""The Azure ML backend's datastore, on emulated Blob Storage: blocks, signatures that end, a race."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from backends import storage as common
from backends.azureml import storage as own
from backends.azureml.azure import Azure, workspace_path
from backends.azureml.storage import Storage
from backends.base import Bundle
from launcher.errors import BackendError, UnreachableError
from tests.emulators.azureml.emulator import AzureMLEmulator
from tests.emulators.bundles import bundle

PART = 2**16


@pytest.fixture
def storage(signed_in: AzureMLEmulator, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for module in (common, own):
        monkeypatch.setattr(module, "LARGE", PART)
    path = workspace_path(f"{signed_in.subscription}:{signed_in.group}:{signed_in.workspace}")
    return Storage(Azure(), path, "workspaceblobstore")


def key_of(wanted: Bundle) -> str:
    return f"finelaunch/bundles/{wanted.sha256}/{wanted.files[0].path}"


@pytest.mark.parametrize("size", [10, 3 * PART])
def test_a_file_that_changed_meanwhile_is_not_sent(storage: Storage, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    wanted = bundle(tmp_path, f"edited-{size}", content)
    wanted.files[0].source.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # type: ignore[union-attr]
    with pytest.raises(BackendError, match="has changed"):
        storage.put_bundle(wanted, "job-1", lambda _: None)
    assert list(storage.keys(f"finelaunch/bundles/{wanted.sha256}")) == []
    wanted.files[0].source.write_bytes(content)  # type: ignore[union-attr]
    storage.put_bundle(wanted, "job-1", lambda _: None)
    assert storage.get(key_of(wanted)) == content


def test_a_job_keeps_its_bundle_when_one_whose_name_it_begins_with_is_released(
    storage: Storage, tmp_path: Path
) -> None:
    wanted = bundle(tmp_path, "kept", b"x")
    for job in ("kept", "kept-r2"):
        storage.put_bundle(wanted, job, lambda _: None)
    storage.drop_bundle(wanted.sha256, "kept")
    assert storage.get(key_of(wanted)) == b"x"
    storage.drop_bundle(wanted.sha256, "kept-r2")
    assert list(storage.keys(f"finelaunch/uses/{wanted.sha256}")) == []


def test_of_two_launchers_that_send_one_file_both_succeed(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(3 * PART)
    wanted, real, begun = bundle(tmp_path, "race", content), Storage._blocks, []

    def blocks(self: Storage, key: str) -> dict[str, int]:
        found = real(self, key)
        if not begun:  # the other one sends and joins the blocks that this one has just seen
            begun.append(key)
            storage.put_bundle(wanted, "job-2", lambda _: None)
            found = dict.fromkeys((f"{n:08d}-{_short(content, n)}" for n in range(3)), PART)
        return found

    monkeypatch.setattr(Storage, "_blocks", blocks)
    storage.put_bundle(wanted, "job-3", lambda _: None)
    assert storage.get(key_of(wanted)) == content


def _short(content: bytes, number: int) -> str:
    return sha256(content[number * PART : (number + 1) * PART]).hexdigest()[:32]


def test_an_upload_and_a_download_that_take_longer_than_a_signature_go_on(
    storage: Storage, signed_in: AzureMLEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(8 * PART)
    wanted = bundle(tmp_path, "long", content)
    monkeypatch.setattr(own, "SECRET_S", 0.5)
    monkeypatch.setattr(own, "PIECE", PART)
    signed_in.set(signature_s=1.5)
    signed_in.fault("slow", "PutBlock", times=8, seconds=0.3)
    storage.put_bundle(wanted, "job-4", lambda _: None)
    signed_in.fault("slow", "GetBlob", times=9, seconds=0.3)
    assert b"".join(storage.read_from(key_of(wanted), 7)) == content[7:]
    assert len(signed_in.calls("ListSecrets")) > 4


@pytest.mark.parametrize(("secrets", "asked"), [("none", 0), ("key", 1), ("sas", 1)])
def test_a_datastore_is_used_with_what_it_has_a_signature_a_key_or_the_users_sign_in(
    storage: Storage, signed_in: AzureMLEmulator, tmp_path: Path, secrets: str, asked: int
) -> None:
    signed_in.set(secrets=secrets)
    content = os.urandom(3 * PART)
    first, second = (bundle(tmp_path, f"{mark}-{secrets}", content) for mark in ("first", "second"))
    storage.put_bundle(first, "job-5", lambda _: None)
    storage.put_bundle(second, "job-6", lambda _: None)  # the large file is copied
    storage.drop_bundle(first.sha256, "job-5")
    assert b"".join(storage.read_from(key_of(second), 1)) == content[1:]
    storage.drop_bundle(second.sha256, "job-6")
    assert [key for each in (first, second) for key, _ in storage.keys(f"finelaunch/bundles/{each.sha256}")] == []
    assert len(signed_in.calls("ListSecrets")) == asked
    assert len(signed_in.calls("CopyBlob")) == 1


def test_a_secret_that_cannot_be_asked_for_now_is_not_taken_for_one_that_may_not(
    storage: Storage, signed_in: AzureMLEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.azureml.azure.ATTEMPTS", 0)
    signed_in.fault("unavailable", "ListSecrets")
    with pytest.raises(UnreachableError):
        storage.get("x/none")
    assert storage.get("x/none") is None
    assert len(signed_in.calls("ListSecrets")) == 2
    signed_in.deny("arm:ListSecrets")
    storage._client = None
    storage.put("x/own-sign-in", b"x")
    assert storage.get("x/own-sign-in") == b"x"


def test_a_blob_is_read_from_anywhere_to_its_end(storage: Storage) -> None:
    given: dict[str, Any] = {"x/empty": b"", "x/some": b"abc"}
    for key, content in given.items():
        storage.put(key, content)
        for start in range(len(content) + 1):
            assert b"".join(storage.read_from(key, start)) == content[start:]
