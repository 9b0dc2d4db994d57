"""The Azure ML backend's datastore on Microsoft's own emulator of Blob Storage, its signatures checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from backends import storage as common
from backends.azureml import storage as own
from backends.azureml.azure import Azure, workspace_path
from backends.azureml.storage import Storage
from backends.base import Bundle, BundleFile
from launcher.errors import LaunchError
from tests.emulators.azureml import azurite
from tests.emulators.azureml.emulator import AzureMLEmulator

PART = 2**16

pytestmark = pytest.mark.skipif(
    azurite.found() is None, reason="needs Azurite: npm install -g azurite, or AZURITE_BLOB=.../azurite-blob"
)


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureMLEmulator]:
    program = azurite.found()
    assert program is not None
    with (
        azurite.running(program, tmp_path_factory.mktemp("azurite")) as port,
        AzureMLEmulator(azurite=port) as made,
    ):
        yield made


@pytest.fixture
def storage(azure: AzureMLEmulator, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in azure.environment.items():
        monkeypatch.setenv(name, value)
    for module in (common, own):
        monkeypatch.setattr(module, "LARGE", PART)
    return Storage(
        Azure(), workspace_path(f"{azure.subscription}:{azure.group}:{azure.workspace}"), "workspaceblobstore"
    )


def bundle(folder: Path, mark: str, **contents: bytes) -> Bundle:
    files = []
    for name, content in contents.items():
        source = folder / f"{mark}-{name}"
        source.write_bytes(content)
        digest = sha256(content).hexdigest()
        files.append(BundleFile(path=f"model/{name}", size=len(content), sha256=digest, source=source))
    return Bundle(sha256=sha256(mark.encode()).hexdigest(), files=tuple(files))


def test_a_bundle_goes_there_in_blocks_and_comes_back_whole(storage: Storage, tmp_path: Path) -> None:
    large, small = os.urandom(5 * PART + 17), b"small"
    wanted = bundle(tmp_path, "one", large=large, small=small)
    storage.put_bundle(wanted, "job-1", lambda line: None)
    for file, content in zip(wanted.files, (large, small), strict=True):
        key = f"finelaunch/bundles/{wanted.sha256}/{file.path}"
        assert storage.get(key) == content
        assert b"".join(storage.read_from(key, 3)) == content[3:]


def test_what_another_bundle_has_is_copied_and_outlives_it(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(3 * PART)
    first, second = (bundle(tmp_path, mark, same=content) for mark in ("first", "second"))
    storage.put_bundle(first, "job-1", lambda line: None)
    storage.put_bundle(second, "job-2", lambda line: None)
    storage.drop_bundle(first.sha256, "job-1")
    assert [key for key, _ in storage.keys("finelaunch/") if first.sha256 in key] == []
    assert storage.get(f"finelaunch/bundles/{second.sha256}/model/same") == content


def test_objects_are_read_and_removed_and_a_signature_that_is_not_the_accounts_is_refused(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put("x/y", b"one")
    assert (storage.get("x/y"), storage.get("x/none"), list(storage.keys("x/"))) == (b"one", None, [("x/y", 3)])
    storage.remove("x/")
    assert list(storage.keys("x/")) == []
    storage.container().credential.update(
        "sv=2021-08-06&ss=b&srt=co&sp=rwdlc&se=2099-01-01T00:00:00Z&sig=d3Jvbmc="
    )
    with pytest.raises(LaunchError, match="failed to authenticate") as refused:
        storage.put("x/y", b"two")
    assert "d3Jvbmc" not in str(refused.value)
