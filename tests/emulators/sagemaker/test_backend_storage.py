"""The SageMaker backend's bucket, on emulated S3: large files in parts, kept, compared and shared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from backends import storage as common
from backends.base import Bundle, Moved
from backends.sagemaker import storage as own
from backends.sagemaker.aws import Aws
from backends.sagemaker.storage import Storage
from launcher.errors import BackendError, UnreachableError
from tests.emulators.bundles import bundle
from tests.emulators.sagemaker.conftest import Account

PART = 5 * 2**20
"""S3 takes no smaller one but the last."""


@pytest.fixture
def storage(account: Account, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in account.aws.environment.items():
        monkeypatch.setenv(name, value)
    for module in (common, own):
        monkeypatch.setattr(module, "LARGE", PART)
    return Storage(Aws(account.aws.region), account.bucket)


def key(wanted: Bundle) -> str:
    return f"finelaunch/bundles/{wanted.sha256}/{wanted.files[0].path}"


def there(account: Account, wanted: Bundle) -> bytes:
    return account.get(f"s3://{account.bucket}/{key(wanted)}")


def called(account: Account, operation: str) -> int:
    return sum(call.operation == operation for call in account.aws.calls)


def unfinished(account: Account) -> list[Any]:
    return list(account.aws.client("s3").list_multipart_uploads(Bucket=account.bucket).get("Uploads") or ())


def test_a_large_file_arrives_whole_and_is_counted_once(
    storage: Storage, account: Account, tmp_path: Path
) -> None:
    content = os.urandom(2 * PART + 17)
    wanted, told = bundle(tmp_path, "large", content), []
    storage.put_bundle(wanted, "job-1", told.append)
    assert there(account, wanted) == content
    assert [one.done for one in told if isinstance(one, Moved)] == [PART, 2 * PART, len(content)]


def test_what_was_sent_before_the_network_went_is_not_sent_again(
    storage: Storage, account: Account, tmp_path: Path
) -> None:
    content = os.urandom(2 * PART + 17)
    wanted = bundle(tmp_path, "resumed", content)
    account.aws.fault("drop", "s3:UploadPart", skip=2, times=6)
    with pytest.raises(UnreachableError):
        storage.put_bundle(wanted, "job-2", lambda _: None)
    before = called(account, "UploadPart")
    storage.put_bundle(wanted, "job-2", lambda _: None)
    assert called(account, "UploadPart") - before == 1
    assert there(account, wanted) == content


def test_an_upload_that_another_launcher_has_ended_is_done(
    storage: Storage, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(PART + 17)
    wanted, told = bundle(tmp_path, "shared", content), []
    other, opened, ended = Storage(Aws(account.aws.region), account.bucket), Storage._open_upload, []

    def overtaken(self: Storage, name: str) -> Any:
        found = opened(self, name)
        if self is storage and not ended:
            ended.append(found[0])
            other.send_parts(wanted.files[0], name, common.Count(0, len(content), lambda _: None))
        return found

    monkeypatch.setattr(Storage, "_open_upload", overtaken)
    storage.put_bundle(wanted, "job-3", told.append)
    assert there(account, wanted) == content
    assert [one.done for one in told if isinstance(one, Moved)][-1] == len(content)
    assert unfinished(account) == []


def test_an_upload_that_another_has_given_up_begins_anew(
    storage: Storage, account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(PART + 17)
    wanted, opened, ended = bundle(tmp_path, "given-up", content), Storage._open_upload, []

    def given_up(self: Storage, name: str) -> Any:
        found = opened(self, name)
        if not ended:
            ended.append(found[0])
            client = account.aws.client("s3")
            client.abort_multipart_upload(Bucket=account.bucket, Key=name, UploadId=found[0])
        return found

    monkeypatch.setattr(Storage, "_open_upload", given_up)
    storage.put_bundle(wanted, "job-4", lambda _: None)
    assert there(account, wanted) == content


@pytest.mark.parametrize("size", [9, PART + 17])
def test_a_file_that_changed_meanwhile_is_not_sent(
    size: int, storage: Storage, account: Account, tmp_path: Path
) -> None:
    wanted = bundle(tmp_path, "changed", b"a" * size)
    (tmp_path / "changed").write_bytes(b"b" * size)
    with pytest.raises(BackendError, match="has changed"):
        storage.put_bundle(wanted, "job-6", lambda _: None)
    assert account.keys(key(wanted)) == []
    assert unfinished(account) == []


def test_parts_of_what_the_file_was_before_are_sent_again(
    storage: Storage, account: Account, tmp_path: Path
) -> None:
    content = os.urandom(2 * PART)
    wanted = bundle(tmp_path, "mended", content)
    (tmp_path / "mended").write_bytes(os.urandom(PART) + content[PART:])
    account.aws.fault("drop", "s3:UploadPart", skip=1, times=6)
    with pytest.raises(UnreachableError):
        storage.put_bundle(wanted, "job-7", lambda _: None)
    (tmp_path / "mended").write_bytes(content)
    storage.put_bundle(wanted, "job-7", lambda _: None)
    assert there(account, wanted) == content


def test_a_job_keeps_its_bundle_when_one_whose_name_it_begins_with_is_released(
    storage: Storage, tmp_path: Path
) -> None:
    wanted = bundle(tmp_path, "kept", b"x")
    for job in ("kept", "kept-r2"):
        storage.put_bundle(wanted, job, lambda _: None)
    storage.drop_bundle(wanted.sha256, "kept")
    assert storage.get(key(wanted)) == b"x"
    storage.drop_bundle(wanted.sha256, "kept-r2")
    assert storage.get(key(wanted)) is None
