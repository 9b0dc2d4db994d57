"""The emulator's process: a proxy that takes CONNECT to Azure's public hosts and answers itself, over TLS.

Every other host is refused and noted, so that nothing leaks. Settings come as JSON in the first line of stdin, and
the port goes out as the first of stdout. It ends with its jobs when stdin is closed.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.emulators.azureml import pki, service
from tests.emulators.azureml.account import Account
from tests.emulators.azureml.azurite import Azurite
from tests.emulators.azureml.wire import Answer, Request, refused, refused_blob, told
from tests.emulators.azureml.world import Settings, World
from tests.emulators.faults import Fault

ENDING_S = 5
STATUS = {"throttle": 429, "error": 500, "unavailable": 503}


class Front(BaseHTTPRequestHandler):
    """Plain HTTP from this machine: CONNECT, the control surface, the managed identity's endpoint."""

    world: World
    tls: ssl.SSLContext

    def log_message(self, *_: Any) -> None:
        pass

    def do_CONNECT(self) -> None:
        host = self.path.rpartition(":")[0]
        if host not in service.SERVICES:
            if "Proxy-Authorization" not in self.headers:  # jobs may ask for whatever they like
                self.world.hosts.add(host)
            self.send_error(403, "not emulated")
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            inside = self.tls.wrap_socket(self.connection, server_side=True)
        except OSError:  # the client has gone, or does not know the authority
            return
        try:
            Inside(inside, self.client_address, self.server)  # type: ignore[arg-type]
        except OSError:
            pass
        finally:
            inside.close()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        verb = self.path.rpartition("/")[2]
        try:
            self._send(told({"answer": getattr(self.world, f"do_{verb}")(**json.loads(body or b"{}"))}))
        except Exception as exc:  # noqa: BLE001 - whatever a test got wrong, it must be told
            self._send(told({"problem": f"{type(exc).__name__}: {exc}"}))

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        if parts.path == "/msi/token":
            self._send(service.identity_token(self.world, query, self.headers.get("secret")))
        else:
            self._send(refused(404, "NotFound", parts.path))

    def _send(self, answer: Answer) -> None:
        _write(self, answer)


class Inside(BaseHTTPRequestHandler):
    """One of Azure's hosts."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        parts, world = urlsplit(self.path), Front.world
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(
            method=self.command, host=(self.headers.get("Host") or "").partition(":")[0], path=unquote(parts.path),
            query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            headers={name.lower(): value for name, value in self.headers.items()}, body=body,
        )  # fmt: skip
        if request.host not in service.SERVICES:
            self.close_connection = True
            return
        name, operation = service.SERVICES[request.host], service.operation(request)
        call = {"service": name, "operation": operation, "path": request.path, "time": time.time(), "status": None}
        world.calls.append(call)
        fault = world.fault_for(name, operation)
        if fault is not None and fault.kind == "slow":
            time.sleep(fault.seconds)
        if fault is not None and fault.kind == "drop":
            self.close_connection = True
            return
        answer = self._made(world, request, name, operation, fault)
        if fault is not None and fault.kind == "lose":
            self.close_connection = True
            return
        call["status"] = answer.status
        _write(self, answer, cut=fault is not None and fault.kind == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _answer

    def _made(self, world: World, request: Request, name: str, operation: str, fault: Fault | None) -> Answer:
        refuse = refused_blob if name == "blob" else refused
        if fault is not None and fault.kind in STATUS:
            busy = refuse(STATUS[fault.kind], "ServerBusy", "emulated trouble")
            busy.headers["Retry-After"] = "0"
            return busy
        if world.is_denied(name, operation):
            code = world.settings.blob_denial if name == "blob" else "AuthorizationFailed"
            return refuse(403, code, f"The client does not have authorization for {operation}")
        try:
            return service.answer(world, request)
        except Exception as exc:  # noqa: BLE001 - a fault of the emulator's must be seen as one
            return refused(501, "EmulatorBroke", f"{type(exc).__name__}: {exc}")


def _write(handler: BaseHTTPRequestHandler, answer: Answer, cut: bool = False) -> None:
    handler.send_response(answer.status)
    headers = {"x-ms-request-id": "emulated", "Content-Length": str(len(answer.body)), **answer.headers}
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    body = b"" if handler.command == "HEAD" else answer.body
    handler.wfile.write(body[: len(body) // 2] if cut else body)
    if cut:
        handler.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no news."""


def main() -> None:
    world = World(Settings(**json.loads(sys.stdin.readline())))
    world.authority, pair = pki.make(world.folder)
    azurite = Azurite(world.authority, pair)
    world.account = Account(azurite)
    Front.world, Front.tls = world, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    Front.tls.load_cert_chain(pair)
    server = Server(("127.0.0.1", 0), Front)
    world.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    late = threading.Timer(world.settings.life_s, os._exit, (3,))
    late.daemon = True
    late.start()
    print(world.port, flush=True)
    sys.stdin.read()
    world.closing.set()
    for job in list(world.jobs.values()):
        job.join(ENDING_S)
    azurite.stop()
    os._exit(0)


if __name__ == "__main__":
    main()
