"""Linux namespaces: whether containers can be made here, and a network with nothing in it but loopback."""

from __future__ import annotations

import ctypes
import functools
import os
import socket
import struct
import subprocess
import sys
import threading

CLONE_NEWNET = 0x40000000
GET_FLAGS, SET_FLAGS, IFF_UP = 0x8913, 0x8914, 0x1
MAP_ROOT = ["unshare", "--user", "--map-root-user"]
SPACES = ["unshare", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child"]


@functools.cache
def prefix() -> tuple[tuple[str, ...], str | None]:
    """What a process must be started with to be able to make containers; or why none can be made here."""
    if not sys.platform.startswith("linux"):
        return (), "an emulator needs Linux's namespaces"
    said = ""
    for start in ([], MAP_ROOT):
        # A bind mount over a folder, a host name and an empty network: all that a job's machine has.
        script = "mount --bind /tmp /opt && hostname algo-1"
        probe = [*start, *SPACES, "--net", "setpriv", "--pdeathsig", "KILL", "nsenter", "--net=/proc/self/ns/net"]
        try:
            tried = subprocess.run(
                [*probe, "sh", "-c", script], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            return (), f"an emulator needs util-linux's unshare: {exc}"
        if tried.returncode == 0:
            return tuple(start), None
        said = tried.stderr.strip()
    return (), f"an emulator may not make namespaces here ({said})"


class EmptyNetwork:
    """A network namespace; `listening` is a socket in it, at 127.0.0.1:port, where a port is given.

    A socket belongs to the namespace in which it was made, whoever accepts on it.
    """

    def __init__(self, port: int | None) -> None:
        self.fd = -1
        self.listening: socket.socket | None = None
        self._problem: OSError | None = None
        # A thread can have a network namespace of its own; what it has opened outlives it.
        maker = threading.Thread(target=self._make, args=(port,))
        maker.start()
        maker.join()
        if self._problem is not None:
            raise self._problem

    def _make(self, port: int | None) -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "no network namespace")
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            _raise_loopback()
            if port is not None:
                self.listening = socket.create_server(("127.0.0.1", port), backlog=64)
        except OSError as exc:
            self._problem = exc

    def close(self) -> None:
        if self.listening is not None:
            self.listening.close()
        os.close(self.fd)


def _raise_loopback() -> None:
    import fcntl  # no Windows has it

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(handle, GET_FLAGS, request))[1]
        fcntl.ioctl(handle, SET_FLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))
