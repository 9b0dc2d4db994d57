"""The emulator's process: HTTP and gRPC on two free ports of 127.0.0.1.

Settings come as JSON in the first line of stdin, the ports go out as the first of stdout. It ends with its jobs
when stdin is closed, and so when whoever started it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from google.longrunning import operations_pb2
from werkzeug.serving import make_server

from tests.emulators.vertex import api
from tests.emulators.vertex.wire import Wire
from tests.emulators.vertex.world import Refused, Settings, World
from tests.emulators.wire import QuietHandler

ENDING_S = 5


def main() -> None:
    world = World(Settings(**json.loads(sys.stdin.readline())))
    world.app = Wire(world, api.METHODS, api.get_operation)
    server = make_server("127.0.0.1", 0, world.app, threaded=True, request_handler=QuietHandler)
    world.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    second, port = grpc_server(world)
    second.start()
    late = threading.Timer(world.settings.life_s, os._exit, (3,))
    late.daemon = True
    late.start()
    print(world.port, port, flush=True)
    sys.stdin.read()
    world.closing.set()
    for thread in threading.enumerate():
        if thread.name in world.jobs:
            thread.join(ENDING_S)
    os._exit(0)  # threads may still wait for sockets; the containers die with this process


def grpc_server(world: World) -> tuple[Any, int]:
    """The same methods, for Google's clients over gRPC."""

    def handler(call: Callable[[Any], Any], read: Any) -> Any:
        def answer(asked: Any, context: Any) -> bytes:
            try:
                found = call(asked)
            except Refused as exc:
                context.abort(grpc.StatusCode[exc.status], str(exc))
            data: bytes = getattr(found, "_pb", found).SerializeToString()
            return data

        return grpc.unary_unary_rpc_method_handler(answer, request_deserializer=read)

    server = grpc.server(futures.ThreadPoolExecutor(8))
    for service in ("Job", "Model"):
        methods = {
            m.name: handler(lambda asked, m=m: m.answer(world, asked), m.request.deserialize)
            for m in api.METHODS
            if m.service == service
        }
        name = f"google.cloud.aiplatform.v1.{service}Service"
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, methods)])
    operation = handler(
        lambda asked: api.get_operation(world, asked.name), operations_pb2.GetOperationRequest.FromString
    )
    known = grpc.method_handlers_generic_handler("google.longrunning.Operations", {"GetOperation": operation})
    server.add_generic_rpc_handlers([known])
    return server, server.add_insecure_port("127.0.0.1:0")


if __name__ == "__main__":
    main()
