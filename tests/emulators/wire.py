"""The socket's side of an emulator: a quiet request handler, and connections that end when they should not."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.serving import WSGIRequestHandler

Environ = dict[str, Any]
Start = Callable[..., Any]


class QuietHandler(WSGIRequestHandler):
    """No line a request on stderr."""

    def log(self, type: str, message: str, *args: Any) -> None:
        if type == "error":
            super().log(type, message, *args)


def hang_up(environ: Environ) -> Iterable[bytes]:
    """The connection ends without an answer."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError("hung up on purpose")


def cut_off(body: bytes, environ: Environ) -> Iterable[bytes]:
    """The connection ends in the middle of the answer's body."""
    yield body[: len(body) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
