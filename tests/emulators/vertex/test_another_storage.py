"""The Vertex backend's bucket on an implementation of Cloud Storage that others wrote: gcp-storage-emulator.

It enforces no preconditions, pages nothing and has no signatures, which are the own emulator's part.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from backends import storage as common
from backends.base import Bundle, BundleFile
from backends.vertex import storage as own
from backends.vertex.google import Google
from backends.vertex.storage import Storage

PART = 2**16

pytest.importorskip("gcp_storage_emulator", reason="make test installs gcp-storage-emulator")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    port = free_port()
    words = ["-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        until = time.monotonic() + 30
        while not answers(port):
            assert server.poll() is None and time.monotonic() < until, "it does not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def storage(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Storage:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    for module in (common, own):
        monkeypatch.setattr(module, "LARGE", PART)
    google, bucket = Google("demo-project", "us-central1"), f"bucket-{abs(hash(request.node.name))}"
    google.storage().create_bucket(bucket)
    return Storage(google, bucket)


def bundle(folder: Path, mark: str, **contents: bytes) -> Bundle:
    files = []
    for name, content in contents.items():
        source = folder / f"{mark}-{name}"
        source.write_bytes(content)
        digest = sha256(content).hexdigest()
        files.append(BundleFile(path=f"model/{name}", size=len(content), sha256=digest, source=source))
    return Bundle(sha256=sha256(mark.encode()).hexdigest(), files=tuple(files))


def fetched(storage: Storage, wanted: Bundle, number: int, to: Path) -> bytes:
    file = wanted.files[number]
    storage.fetch(f"finelaunch/bundles/{wanted.sha256}/{file.path}", to, file.size)
    return to.read_bytes()


def test_a_bundle_goes_there_and_comes_back_whole(storage: Storage, tmp_path: Path) -> None:
    large, small = os.urandom(70 * PART + 17), b"small"  # joined in three calls
    wanted = bundle(tmp_path, "one", large=large, small=small)
    storage.put_bundle(wanted, "job-1", lambda line: None)
    assert fetched(storage, wanted, 0, tmp_path / "large") == large
    assert fetched(storage, wanted, 1, tmp_path / "small") == small
    assert list(storage.keys("finelaunch/parts/")) == []


def test_what_another_bundle_has_is_copied_and_outlives_it(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(3 * PART)
    first, second = (bundle(tmp_path, mark, same=content) for mark in ("one", "two"))
    storage.put_bundle(first, "job-1", lambda line: None)
    storage.put_bundle(second, "job-2", lambda line: None)
    storage.drop_bundle(first.sha256, "job-1")
    assert [key for key, _ in storage.keys("finelaunch/") if first.sha256 in key] == []
    assert fetched(storage, second, 0, tmp_path / "back") == content
    storage.drop_bundle(second.sha256, "job-2")
    assert [key for key, _ in storage.keys("finelaunch/") if second.sha256 in key] == []


def test_an_object_is_read_replaced_and_removed(storage: Storage) -> None:
    assert (storage.get("x/y"), storage.version("x/y")) == (None, None)
    storage.put("x/y", b"one")
    first = storage.version("x/y")
    storage.put("x/y", b"another")
    assert (storage.get("x/y"), list(storage.keys("x/"))) == (b"another", [("x/y", 7)])
    assert first is not None and storage.version("x/y") != first
    assert b"".join(storage.read_from("x/y", 4)) == b"her"
    storage.remove("x/")
    assert list(storage.keys("x/")) == []
