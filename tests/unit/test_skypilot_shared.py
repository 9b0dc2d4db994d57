"""A shared path as a store, and the logs of nodes in it, by the shell that would run on the login node."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from backends.base import BundleFile
from backends.skypilot import logs
from backends.skypilot.shared import SharedPath
from backends.storage import Count
from launcher.errors import BackendError, ConfigError


@pytest.fixture
def store(tmp_path: Path) -> SharedPath:
    return SharedPath(str(tmp_path / "shared place"), None, tmp_path / "ssh")


def large(tmp_path: Path, content: bytes) -> BundleFile:
    (tmp_path / "large").write_bytes(content)
    return BundleFile(
        path="large", size=len(content), sha256=hashlib.sha256(content).hexdigest(), source=tmp_path / "large"
    )


def test_what_is_put_is_read_listed_and_removed(store: SharedPath) -> None:
    store.put("a/b c/one", b"1\n")
    store.put("a/b c/two", b"")
    assert (store.get("a/b c/one"), store.get("a/b c/two"), store.get("a/none")) == (b"1\n", b"", None)
    assert sorted(store.keys("a/")) == [("a/b c/one", 2), ("a/b c/two", 0)]
    assert list(store.keys("a/b c/two")) == [("a/b c/two", 0)]
    assert list(store.keys("nowhere/")) == []
    store.remove("a/b c/")
    store.remove("a/b c/")
    assert list(store.keys("a/")) == []


def test_a_large_file_goes_on_where_it_broke_off_and_is_whole(store: SharedPath, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    file = large(tmp_path, content)
    moved: list[str] = []
    folder = Path(store.bucket) / "x"
    folder.mkdir(parents=True)
    (folder / ".big.part").write_bytes(content[:1000])
    store.send_parts(file, "x/big", Count(0, file.size, moved.append))
    assert store.get("x/big") == content
    (folder / ".bad.part").write_bytes(b"?" * 1000)
    with pytest.raises(BackendError, match="did not arrive whole"):
        store.send_parts(file, "x/bad", Count(0, file.size, moved.append))
    assert [key for key, _ in store.keys("x/")] == ["x/big"]


def test_lines_come_whole_node_by_node_from_any_cursor(store: SharedPath) -> None:
    store.put("logs/node-0.log", "eins\nzwei é\nhal".encode())
    store.put("logs/node-1.log", b"uno\r\n")
    sizes = {key.removeprefix("logs/"): size for key, size in store.keys("logs/")}
    found = list(logs.lines(store, "logs/", sizes, False, None))
    assert [(line.source, line.text) for line in found] == [
        ("node-0", "eins"), ("node-0", "zwei é"), ("node-1", "uno")
    ]  # fmt: skip
    for at, line in enumerate(found):
        assert list(logs.lines(store, "logs/", sizes, False, line.cursor)) == found[at + 1 :]
    last = list(logs.lines(store, "logs/", sizes, True, found[-1].cursor))
    assert [line.text for line in last] == ["hal"]
    with pytest.raises(ConfigError):
        list(logs.lines(store, "logs/", sizes, True, "no cursor of ours"))
