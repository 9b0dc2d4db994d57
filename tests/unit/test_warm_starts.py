"""A warm start is the start that it stands for, but for the imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.emulators.namespaces import SPACES, prefix
from tests.warm_starts import WarmStarts

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it needs Linux's namespaces")

TRAIN = """
import json, os, signal, sys, time
def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    here = {"cwd": os.getcwd(), "colour": os.environ.get("COLOUR"), "torch": "torch" in sys.modules}
    print(json.dumps({**here, "pid": os.getpid(), "file": __file__, "argv": len(sys.argv)}), flush=True)
    print("to stderr", file=sys.stderr)
    if os.environ["COLOUR"] == "red":
        time.sleep(120)
    return 0 if os.environ["COLOUR"] == "green" else 7
if __name__ == "__main__":
    sys.exit(main())
"""


ALONE = ("-m", "train_entry.train")
UNDER_TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", *ALONE)


class Starts:
    def __init__(self, python: Path, folder: Path) -> None:
        (folder / "train_entry").mkdir()
        (folder / "train_entry" / "__init__.py").touch()
        (folder / "train_entry" / "train.py").write_text(TRAIN)
        self.python, self.folder = python, folder
        self.forking = WarmStarts(str(python), folder)
        self.warm = self.forking.environment(True)

    def start(self, colour: str, *before: str, words: Sequence[str] = ALONE, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*before, self.python, *words], cwd=self.folder, text=True,
            env={**os.environ, "COLOUR": colour, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture(scope="module")
def starts(image: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starts]:
    made = Starts(image("vertex"), tmp_path_factory.mktemp("warm"))
    yield made
    made.forking.close()


def test_a_warm_start_is_the_cold_one_but_for_the_imports(starts: Starts) -> None:
    told = []
    for env in ({}, starts.warm):
        process = starts.start("blue", **env)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (7, "to stderr\n")
        told.append(json.loads(out))
    cold, warm = told
    assert (cold.pop("torch"), warm.pop("torch")) == (False, True)
    assert cold.pop("pid") != warm.pop("pid")
    assert cold == warm


def test_a_signal_reaches_the_process_and_its_end_the_one_that_asked(starts: Starts) -> None:
    process = starts.start("red", **starts.warm)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_it_ends_with_the_one_that_asked(starts: Starts) -> None:
    process = starts.start("red", **starts.warm)
    assert process.stdout is not None
    pid = json.loads(process.stdout.readline())["pid"]
    assert psutil.pid_exists(pid)
    process.kill()
    process.communicate()
    until = time.monotonic() + 30
    while psutil.pid_exists(pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_it_has_the_process_numbers_of_the_container(starts: Starts) -> None:
    begin, problem = prefix()
    if problem:
        pytest.skip(problem)
    process = starts.start("blue", *begin, *SPACES, **starts.warm)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (7, "to stderr\n")
    assert json.loads(out)["pid"] < 10


def test_torchrun_starts_warm_with_its_words_and_so_do_its_ranks(starts: Starts) -> None:
    process = starts.start("green", words=UNDER_TORCHRUN, **starts.warm)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    assert len({one["pid"] for one in told}) == 2 and all(one["torch"] for one in told)
