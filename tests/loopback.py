"""A server on this machine that stands for a vendor's, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Loopback:
    """`answers` maps a path to (status, body), `first` to those that come before, each once; all else is 404.

    With `silent` it takes requests and answers none.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.first: dict[str, list[tuple[int, Any]]] = {}
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        """(method, path with its query, headers in lower case, body) of every request."""
        self.silent = False
        self._over = threading.Event()
        server = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {k.lower(): v for k, v in self.headers.items()}
                server.seen.append((self.command, self.path, headers, body))
                if server.silent:
                    server._over.wait()
                    return
                status, answer = server._next(urlsplit(self.path).path)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"{server.url}/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _next(self, path: str) -> tuple[int, Any]:
        if before := self.first.get(path):
            return before.pop(0)
        return self.answers.get(path, (404, {"error": "none"}))

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
