"""A shared path as a store, and the logs of nodes in it, by the shell that would run on the login node."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from backends.base import BundleFile
from backends.skypilot import logs, shared
from backends.skypilot.logs import Part
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


def parts(store: SharedPath, **texts: bytes) -> list[Part]:
    """Parts in the store, by NODE_BEGAN_NUMBER."""
    found = []
    for name, text in texts.items():
        node, began, number = name.removeprefix("node").split("_")
        key = f"told/node-{node}.log.{began}.{number}"
        store.put(key, text)
        found.append(Part(node=f"node-{node}", began=int(began), number=int(number), key=key, size=len(text)))
    return found


def test_lines_come_whole_node_by_node_from_any_cursor(store: SharedPath) -> None:
    there = parts(
        store, node1_5_0=b"uno\r\n", node0_7_0=b"vier\n", node0_5_1="zwei \u00e9\ndr".encode(), node0_5_0=b"ei",
        node0_5_2=b"ei\nha", node0_7_1=b"l",
    )  # fmt: skip
    there[3:4] = parts(store, node0_5_0=b"eins\n")
    found = list(logs.lines(store, there, False, None))
    assert [(line.source, line.text) for line in found] == [
        ("node-0", "eins"), ("node-0", "zwei \u00e9"), ("node-0", "drei"),
        ("node-0", "ha"),  # a start that was killed in the middle of a line
        ("node-0", "vier"), ("node-1", "uno"),
    ]  # fmt: skip
    for at, line in enumerate(found):
        assert list(logs.lines(store, there, False, line.cursor)) == found[at + 1 :]
    last = list(logs.lines(store, there, True, found[-1].cursor))
    assert [line.text for line in last] == ["l"]
    with pytest.raises(ConfigError):
        list(logs.lines(store, there, True, "no cursor of ours"))


def test_a_part_that_grows_while_it_is_read_is_read_on_from_there(store: SharedPath) -> None:
    begun = parts(store, node0_5_0=b"one\ntw")
    store.put(begun[0].key, b"one\ntwo\nthr")  # since it was listed
    first = list(logs.lines(store, begun, False, None))
    assert [line.text for line in first] == ["one", "two"]
    whole = parts(store, node0_5_0=b"one\ntwo\nthree\n", node0_5_1=b"four\n")
    assert [line.text for line in logs.lines(store, whole, False, first[-1].cursor)] == ["three", "four"]


def test_a_folder_is_looked_at_with_ages_and_without_what_is_being_written(store: SharedPath) -> None:
    assert list(store.look("jobs/x/told/")) == []
    store.put("jobs/x/told/staged", b"")
    store.put("jobs/x/told/a b", b"12")
    (Path(store.bucket) / "jobs/x/told/.part.77").touch()
    assert sorted((kept.key, kept.size) for kept in store.look("jobs/x/told/")) == [
        ("jobs/x/told/a b", 2), ("jobs/x/told/staged", 0)
    ]  # fmt: skip
    assert all(kept.age_s < 60 for kept in store.look("jobs/x/told/"))


def test_many_parts_are_read_in_order(store: SharedPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "AT_ONCE", 2)
    there = parts(store, **{f"node0_5_{n}": b"%d\n" % n for n in range(5)})
    assert [line.text for line in logs.lines(store, there, False, None)] == ["0", "1", "2", "3", "4"]


def test_a_folder_with_more_files_than_one_command_takes_is_seen_whole(store: SharedPath) -> None:
    store.put("told/.half", b"")
    folder = Path(store.bucket) / "told"
    for number in range(12_000):  # of long names, for the test to be short
        (folder / f"node-0.log.{number:0200d}").touch()
    found = list(store.look("told/"))
    assert len(found) == 12_000
    assert all(one.key.startswith("told/node-0.log.") and one.size == 0 and one.age_s < 600 for one in found)
