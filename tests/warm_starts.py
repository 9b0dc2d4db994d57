"""Starts of the training process without their imports, which are most of what a job of the tiny model costs.

A process makes the imports once an emulator or test run. A job's `python -m train_entry.train`, or torchrun over
several of them (see warm_client.py), hands it its environment, its open files and its namespaces; it forks, and
the child enters the container and is that process from there on: with the container's code, files, network,
process numbers and signals. Only the libraries' settings that are read as they are imported are this process's.
The jobs of the real model start as users' do.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tests.warm_client import SPACES, WARM

ROOT = Path(__file__).resolve().parent.parent
PATH_BYTES = 100
"""A socket's path has no more."""
MODULES = (
    "sklearn.metrics", "torch.distributed.launcher.api", "torch.profiler",
    "transformers.models.llama.modeling_llama", "train_entry.artifact", "train_entry.dropout",
    "train_entry.evaluate", "train_entry.general", "train_entry.loop", "train_entry.models",
    "train_entry.trainers", "train_entry.train",
)  # fmt: skip


class WarmStarts:
    """For the jobs of one emulator; the process is there from the first that asks for it."""

    def __init__(self, python: str, folder: Path) -> None:
        self._python = python
        self._address = folder / "warm"
        self._listening: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self, wanted: bool) -> dict[str, str]:
        """What a container must have set for its training process to start warm, where that is `wanted`."""
        if not wanted or len(os.fsencode(self._address)) > PATH_BYTES:
            return {}
        if self._listening is None:
            self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listening.bind(str(self._address))
            self._listening.listen(64)
            threading.Thread(target=self._begin, args=(self._listening,), daemon=True).start()
        return {WARM: str(self._address)}

    def _begin(self, listening: socket.socket) -> None:
        select.select([listening], [], [])
        quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        forks = [self._python, "-m", "tests.warm_starts", str(listening.fileno())]
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *forks],
            cwd=ROOT, env={**os.environ, **quiet, "PYTHONPATH": str(ROOT)}, pass_fds=[listening.fileno()],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self._process.wait()  # it would be killed with this thread

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
        if self._listening is not None:
            self._listening.close()


def serve(listening: socket.socket) -> None:
    for name in MODULES:
        importlib.import_module(name)
    for name in [n for n in sys.modules if n.partition(".")[0] in ("train_entry", "tests")]:
        del sys.modules[name]
    sys.path.remove(str(ROOT))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        asking, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                _start(asking)
            finally:
                os._exit(1)
        asking.close()


def _start(asking: socket.socket) -> None:
    """Enter where the asker is, fork there, and tell it the child's pid and end. Ends the child with the asker."""
    _, fds, _, _ = socket.recv_fds(asking, 1, 16)
    wanted = json.loads(asking.makefile("r").readline())
    stdio, spaces, (root, cwd) = fds[:3], fds[3 : 3 + len(SPACES)], fds[3 + len(SPACES) :]
    libc = ctypes.CDLL(None, use_errno=True)
    for fd in spaces:
        if libc.setns(fd, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(cwd)
    child = os.fork()
    if child == 0:
        asking.sendall(f"{os.getpid()}\n".encode())  # as it is called in there
        _become(wanted, stdio, [*spaces, root, cwd, asking.detach()])
    for fd in fds:
        os.close(fd)
    # No thread can be had any more: it would have to be in the other space of process numbers.
    ready, _, _ = select.select([asking, os.pidfd_open(child)], [], [])
    if asking in ready:  # it never says anything more: it is gone
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    asking.sendall(f"{code}\n".encode())
    os._exit(0)


def _become(wanted: dict[str, object], stdio: list[int], others: list[int]) -> None:
    """Be `python -m` of the words that were asked for, from here on."""
    for number, fd in enumerate(stdio):
        os.dup2(fd, number)
    for fd in (*stdio, *others):
        os.close(fd)
    os.environ.clear()
    os.environ.update(wanted["env"])  # type: ignore[arg-type]
    own = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    module, *arguments = wanted["words"]  # type: ignore[misc]
    sys.argv[:] = ["", *arguments]
    sys.path[:] = [str(wanted["cwd"]), *own, *(entry for entry in sys.path if entry)]
    if any(Path(entry, "sitecustomize.py").exists() for entry in own):  # as an interpreter begins
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    except BaseException:  # noqa: BLE001 - as the interpreter ends
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
