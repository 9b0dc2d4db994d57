"""The machines of one attempt: a network of their own, and on each host the job's command as process 1."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from werkzeug.serving import make_server

from tests.emulators.namespaces import SPACES, EmptyNetwork
from tests.emulators.wire import QuietHandler

LINE_BYTES = 262_000
"""A longer line becomes several events.
https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutLogEvents.html
"""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INSIDE = Path(__file__).with_name("inside.py")


class Network:
    """The network of one attempt's hosts, with the emulator in it unless the job is isolated."""

    def __init__(self, port: int, app: Any, handler: type[QuietHandler] = QuietHandler) -> None:
        """`app`: what answers at 127.0.0.1:port inside; None for an isolated job."""
        self._space = EmptyNetwork(None if app is None else port)
        self._server: Any = None
        if self._space.listening is not None:
            self._server = make_server(
                "127.0.0.1",
                port,
                app,
                threaded=True,
                request_handler=handler,
                fd=self._space.listening.fileno(),
            )
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def fd(self) -> int:
        """The open namespace."""
        return self._space.fd

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._space.close()


class Host:
    """One machine of one attempt: `folder` holds what is its own, and `mounts` folder -> its place in there.

    A place is `/NAME` or `/OUTER/NAME`. The command starts in `cwd`.
    """

    def __init__(self, name: str, folder: Path, mounts: Mapping[Path, str], cwd: str) -> None:
        self.name = name
        self.folder = folder
        self.mounts = mounts
        self.cwd = cwd
        self.lines: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._killed = False

    def start(
        self, network: Network, command: Sequence[str], env: Mapping[str, str], python: str,
        hosts: Sequence[str], tell: Callable[[str], None], fuse: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Run the command; `tell` gets its lines. `fuse`: places that it is told are mounts of an object store."""
        addresses = "".join(f"127.0.0.{number} {host}\n" for number, host in enumerate(hosts, 1))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{addresses}", encoding="utf-8")
        for made in ("stage", "home", "bin", "tmp"):
            (self.folder / made).mkdir()
        for name in ("python", "python3"):
            shim = self.folder / "bin" / name
            shim.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n', encoding="utf-8")
            shim.chmod(0o755)
        path = f"{self.folder / 'bin'}:{Path(python).parent}:{SYSTEM_PATH}"
        spec = {
            "hostname": self.name, "stage": str(self.folder / "stage"), "cwd": self.cwd,
            "mounts": {str(folder): place for folder, place in self.mounts.items()}, "fuse": list(fuse),
            "hosts": str(self.folder / "hosts"), "tmp": str(self.folder / "tmp"), "command": list(command),
            "needed": [str(self.folder), python, sys.executable, os.environ.get("LAUNCH_CACHE_DIR", "")],
            "env": {
                "PATH": path, "HOME": str(self.folder / "home"), "HOSTNAME": self.name, "LANG": "C.UTF-8", **env,
                "LAUNCH_GPUS": "0",  # this machine has none of those that the request pays for
            },
        }  # fmt: skip
        (self.folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        outer = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/self/fd/{network.fd}", *SPACES]
        self._process = subprocess.Popen(
            [*outer, sys.executable, "-I", str(INSIDE), str(self.folder / "spec.json")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[network.fd],
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(tell,), daemon=True)
        self._reader.start()

    def _read(self, tell: Callable[[str], None]) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            text = line.rstrip(b"\r\n")
            for start in range(0, len(text) or 1, LINE_BYTES):
                piece = text[start : start + LINE_BYTES].decode(errors="replace") or " "
                self.lines.append(piece)
                tell(piece)

    def code(self) -> int | None:
        """The exit status, as a container runtime tells it; None while it runs."""
        assert self._process is not None
        code = self._process.poll()
        if code and self._killed:  # unshare can't end itself by SIGKILL, and answers 1
            return 128 + signal.SIGKILL
        return code if code is None or code >= 0 else 128 - code

    def send(self, number: signal.Signals) -> None:
        """A signal to process 1 of the host, which gets it as the kernel treats process 1."""
        if self._process is None or self._process.poll() is not None:
            return
        self._killed = self._killed or number == signal.SIGKILL
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        try:
            for pid in children.read_text(encoding="ascii").split():
                os.kill(int(pid), number)
        except (FileNotFoundError, ProcessLookupError):  # over meanwhile
            return

    def end(self) -> None:
        """Whatever still runs there is killed; all that it has said was told when this returns."""
        if self._process is None:
            return
        self.send(signal.SIGKILL)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # not even inside its namespaces yet
            self._process.kill()
            self._process.wait()
        if self._reader is not None:
            self._reader.join(5)


class LateLog:
    """One log stream; a line is in it `delay_s` after it was said."""

    def __init__(self, write: Callable[[int, str], None], delay_s: float) -> None:
        self._write = write
        self._delay_s = delay_s
        self._waiting: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        if delay_s > 0:
            threading.Thread(target=self._deliver, daemon=True).start()

    def tell(self, line: str) -> None:
        if self._delay_s > 0:
            self._waiting.put((time.time(), line))
        else:
            self._write(int(time.time() * 1000), line)

    def _deliver(self) -> None:
        while True:
            said, line = self._waiting.get()
            time.sleep(max(0.0, said + self._delay_s - time.time()))
            self._write(int(said * 1000), line)
