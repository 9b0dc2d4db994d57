"""In the python of an emulated image: a process that has the imports made takes on the trainer and torchrun.

Imported by that python as it starts (see tests/images.py); standard library only. Without WARM in the
environment, or with nobody there, the start is what it would have been.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

WARM = "FINELAUNCH_TESTS_WARM"
"""The socket of the process that forks (tests/warm_starts.py)."""
SPACES = ("mnt", "uts", "net", "pid")
MODULES = ("train_entry.train", "train_entry.rejudge", "torch.distributed.run")
PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


def start() -> None:
    address = os.environ.get(WARM)
    words = [word for word in sys.orig_argv[1:] if word not in ("-u", "-I")]
    if not address or words[:1] != ["-m"] or words[1] not in MODULES:
        return
    numbers = [getattr(signal, name) for name in PASSED_ON]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # until there is somebody to pass them on to
        try:
            server.connect(address)
            _ask(server, words[1:])
            answers = server.makefile("r")
            pid = int(answers.readline())
        except (OSError, ValueError):  # nobody is there any more
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            return

        def pass_on(number: int, frame: Any) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

        for number in numbers:
            signal.signal(number, pass_on)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        # Not read at once: a signal that comes just before would be passed on only after the end.
        while not select.select([server], [], [], 0.2)[0]:
            pass
        code = int(answers.readline() or 1)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _ask(server: socket.socket, words: list[str]) -> None:
    """`words`: the module and its arguments."""
    opened = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in SPACES]
    opened += [os.open(place, os.O_PATH | os.O_DIRECTORY) for place in ("/", ".")]
    socket.send_fds(server, [b"."], [0, 1, 2, *opened])
    asked = {"words": words, "env": dict(os.environ), "cwd": str(Path.cwd())}
    server.sendall(json.dumps(asked).encode() + b"\n")
    for fd in opened:
        os.close(fd)


start()
