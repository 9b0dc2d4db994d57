"""What a node runs, as the real bash that it is: its words and marks in the store. Its python is a script."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from backends.skypilot import node

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it runs on Linux machines, with GNU's tools")


class Node:
    """A machine with a home, a python that is a script, and the store at a path."""

    def __init__(self, folder: Path) -> None:
        self.told = folder / "store" / "job 1" / "told"
        self.job, self.bin, self.home = f"'{self.told.parent}'", folder / "bin", folder / "home"
        for place in (self.bin, self.home / ".local" / "bin", folder / "tmp"):
            place.mkdir(parents=True)
        self.env = {
            **os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.home),
            "TMPDIR": str(folder / "tmp"),
        }  # fmt: skip

    def program(self, path: Path, text: str) -> None:
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def start(self, python: str, stop_s: int = 60, **env: str) -> subprocess.Popen[str]:
        self.program(self.bin / "python3", python)
        script = node.run(self.job, "/bundle", node.PATH_S, stop_s, image=True)
        return subprocess.Popen(["bash", "-c", script], env={**self.env, **env}, stdout=subprocess.PIPE, text=True)

    def run(self, python: str, stop_s: int = 60, **env: str) -> tuple[int, str]:
        with self.start(python, stop_s, **env) as process:
            said = process.communicate(timeout=30)[0]
        return process.returncode, said

    def names(self) -> list[str]:
        """Of what lies in the store, its times as T."""
        return sorted(re.sub(r"\d{13}", "T", path.name) for path in self.told.iterdir())

    def left(self) -> list[psutil.Process]:
        """What still runs of it."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                ours = process.environ().get("TMPDIR") == self.env["TMPDIR"]
                found += [process] if ours and process.status() != psutil.STATUS_ZOMBIE else []
        return found

    def words(self, rank: int = 0) -> bytes:
        return b"".join(path.read_bytes() for path in sorted(self.told.glob(f"node-{rank}.log.*")))


@pytest.fixture
def machine(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_what_a_job_says_and_how_it_ends_is_in_the_store(machine: Node) -> None:
    code, said = machine.run('echo "$PYTHONPATH $*"; printf "\\000 no end of line" >&2; exit 3')
    assert (code, said) == (3, "/bundle/code -m train_entry\n\0 no end of line")
    assert machine.words() == said.encode()
    assert [n for n in machine.names() if ".log." not in n] == ["node-0.end.3.T", "node-0.start.T"]
    assert list((machine.home.parent / "tmp").iterdir()) == []


def test_words_come_while_the_job_runs_each_part_a_new_file_that_stays_as_it_is(machine: Node) -> None:
    with machine.start("echo one; sleep 4; echo two", SKYPILOT_NODE_RANK="1") as process:
        until = time.monotonic() + 20
        while not (machine.told.is_dir() and machine.words(1)):
            assert time.monotonic() < until
            time.sleep(0.05)
        (first,) = machine.told.glob("node-1.log.*")
        before = (first.read_bytes(), first.stat().st_mtime_ns)
        process.wait(30)
    assert before[0] == b"one\n"
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert machine.words(1) == b"one\ntwo\n"
    assert [n for n in machine.names() if ".log." in n] == ["node-1.log.T.000000", "node-1.log.T.000001"]


def test_a_second_start_adds_to_what_the_first_has_told(machine: Node) -> None:
    machine.run("echo first; exit 143")
    machine.run("echo second")
    assert machine.words() == b"first\nsecond\n"
    assert machine.names().count("node-0.start.T") == 2


@pytest.mark.parametrize("how", ["the mark in the store", "a signal", "the hard stop"])
def test_a_job_that_is_asked_to_stop_checkpoints_first(machine: Node, how: str) -> None:
    trains = "trap 'echo checkpointed; exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    with machine.start(trains, stop_s=4 if how == "the hard stop" else 60) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        if how == "the mark in the store":
            (machine.told / "cancel").touch()
        elif how == "a signal":
            process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[0]
    assert (process.returncode, said) == (143, "checkpointed\n")
    assert "node-0.end.143.T" in machine.names()


def test_a_set_up_that_fails_leaves_its_words_and_one_that_does_not_no_mark(machine: Node) -> None:
    uv = machine.home / ".local" / "bin" / "uv"
    machine.program(uv, 'echo "uv $1"; [ "$1" = venv ] || exit 2')
    script = ["bash", "-c", node.setup(machine.job, "/bundle", node.PATH_S)]
    failed = subprocess.run(script, env=machine.env, capture_output=True, text=True, timeout=30, check=False)
    assert (failed.returncode, failed.stdout) == (2, "uv venv\nuv pip\n")
    assert machine.words() == b"uv venv\nuv pip\n"
    assert "node-0.setup.2.T" in machine.names()
    shutil.rmtree(machine.told)
    machine.program(uv, "echo fine")
    subprocess.run(script, env=machine.env, capture_output=True, timeout=30, check=True)
    assert all(".log." in name for name in machine.names())
    assert machine.left() == []


def test_nothing_is_left_running_by_a_job_that_was_killed(machine: Node) -> None:
    with machine.start("echo one; exec sleep 30") as process:
        until = time.monotonic() + 20
        while not machine.words():
            assert time.monotonic() < until
            time.sleep(0.05)
        process.kill()
        process.wait()
        for child in machine.left():
            if "sleep 30" in " ".join(child.cmdline()):
                child.kill()
        while machine.left():
            assert time.monotonic() < until, machine.left()
            time.sleep(0.1)


def test_a_part_that_could_not_be_written_comes_with_the_next(machine: Node) -> None:
    """The mount is gone for a moment, as when its network is."""
    with machine.start("sleep 1.5; echo one; sleep 3; echo two") as process:
        until = time.monotonic() + 20
        while not list(machine.told.glob("*.start.*")):
            assert time.monotonic() < until
            time.sleep(0.05)
        away = machine.told.rename(machine.told.with_name("away"))
        time.sleep(3)
        away.rename(machine.told)
        process.wait(30)
    assert machine.words() == b"one\ntwo\n"


def test_the_last_words_and_the_end_wait_for_a_store_that_comes_back(machine: Node) -> None:
    """Its writes are refused when the job ends, and for some seconds after."""
    with machine.start("sleep 1.5; echo last; sleep 0.2") as process:
        until = time.monotonic() + 20
        while not list(machine.told.glob("*.start.*")):
            assert time.monotonic() < until
            time.sleep(0.05)
        away = machine.told.rename(machine.told.with_name("away"))
        assert process.stdout is not None and process.stdout.readline() == "last\n"
        time.sleep(2.5)
        away.rename(machine.told)
        process.wait(30)
    assert machine.words() == b"last\n"
    assert "node-0.end.0.T" in machine.names()
    assert machine.left() == []


def test_an_end_that_is_refused_is_marked_again_under_its_first_name(machine: Node) -> None:
    machine.program(
        machine.bin / "cat",
        f"""
tries={machine.home}/tries; echo x >>"$tries"
[ "$(wc -l <"$tries")" != 2 ] || exit 1  # the first mark is the start
exec /bin/cat "$@"
""",
    )
    code, _ = machine.run("exit 0")
    assert code == 0
    assert machine.names() == ["node-0.end.0.T", "node-0.start.T"]
    (end,) = machine.told.glob("*.end.*")
    assert end.read_text() == "end.0\n"


def test_parts_come_at_least_as_often_as_the_store_bears() -> None:
    """SECONDS is set ahead: a job that has run for hours."""
    for often in (node.PATH_S, node.BUCKET_S):
        script = node.run("/job", "/bundle", often, 60, image=True)
        (pause,) = re.findall(r"pause=(\$\(\(SECONDS.*?\)\))", script)
        said = subprocess.run(["bash", "-c", f"SECONDS=90000; echo {pause}"], capture_output=True, check=True)
        assert int(said.stdout) == often
