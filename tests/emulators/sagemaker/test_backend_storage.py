"""The SageMaker backend's bucket, on emulated S3: large files in parts, marks of jobs."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from backends import storage as common
from backends.base import Bundle, BundleFile
from backends.sagemaker import storage as own
from backends.sagemaker.aws import Aws
from backends.sagemaker.storage import Storage
from launcher.errors import BackendError
from tests.emulators.sagemaker.conftest import Account

PART = 5 * 2**20
"""S3 takes no smaller ones, but for the last."""


@pytest.fixture
def storage(account: Account, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in account.aws.environment.items():
        monkeypatch.setenv(name, value)
    for module in (common, own):
        monkeypatch.setattr(module, "LARGE", PART)
    return Storage(Aws(account.aws.region), account.bucket)


def bundle(folder: Path, name: str, content: bytes) -> Bundle:
    (folder / name).write_bytes(content)
    digest = sha256(content).hexdigest()
    file = BundleFile(path=f"model/{name}", size=len(content), sha256=digest, source=folder / name)
    return Bundle(sha256=sha256(name.encode() + content).hexdigest(), files=(file,))


def content_of(storage: Storage, wanted: Bundle) -> bytes | None:
    return storage.get(f"finelaunch/bundles/{wanted.sha256}/{wanted.files[0].path}")


def test_a_large_file_that_changed_meanwhile_is_not_joined_and_leaves_no_parts(
    storage: Storage, account: Account, tmp_path: Path
) -> None:
    content = os.urandom(PART + 17)
    wanted = bundle(tmp_path, "edited", content)
    (tmp_path / "edited").write_bytes(content[:-1] + b"?")
    with pytest.raises(BackendError, match="has changed"):
        storage.put_bundle(wanted, "job-1", lambda _: None)
    assert content_of(storage, wanted) is None
    assert not account.aws.client("s3").list_multipart_uploads(Bucket=account.bucket).get("Uploads")
    (tmp_path / "edited").write_bytes(content)
    storage.put_bundle(wanted, "job-1", lambda _: None)
    assert content_of(storage, wanted) == content


def test_of_two_launchers_that_send_one_file_both_succeed(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(PART + 17)
    wanted, real, begun = bundle(tmp_path, "race", content), Aws.pages, []
    storage._open_upload(f"finelaunch/bundles/{wanted.sha256}/model/race")  # as one that broke off leaves it

    def pages(self: Aws, service: str, operation: str, *given: Any, **asked: Any) -> Any:
        if operation == "list_parts" and not begun:  # the other one goes on with the same upload and ends it
            begun.append(operation)
            storage.put_bundle(wanted, "job-2", lambda _: None)
        return real(self, service, operation, *given, **asked)

    monkeypatch.setattr(Aws, "pages", pages)
    storage.put_bundle(wanted, "job-3", lambda _: None)
    assert content_of(storage, wanted) == content


def test_a_job_keeps_its_bundle_when_one_whose_name_it_begins_with_is_released(
    storage: Storage, tmp_path: Path
) -> None:
    wanted = bundle(tmp_path, "kept", b"x")
    for job in ("kept", "kept-r2"):
        storage.put_bundle(wanted, job, lambda _: None)
    storage.drop_bundle(wanted.sha256, "kept")
    assert content_of(storage, wanted) == b"x"
    storage.drop_bundle(wanted.sha256, "kept-r2")
    assert content_of(storage, wanted) is None
