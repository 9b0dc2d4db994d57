"""The emulator's process: moto's own application behind wire.py, on a free port of 127.0.0.1.

Settings come as JSON in the first line of stdin, the port goes out as the first of stdout. It ends with its
jobs when stdin is closed, and so when whoever started it is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from moto.iam.models import iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.emulators.sagemaker import api
from tests.emulators.sagemaker.rules import model
from tests.emulators.sagemaker.wire import MotoHandler, Wire
from tests.emulators.sagemaker.world import ACCOUNT, Settings, World

ENDING_S = 5


def main() -> None:
    world = World(Settings(**json.loads(sys.stdin.readline())))
    api.install(world)
    iam_backends[ACCOUNT]["aws"].create_user("us-east-1", "developer")
    model()  # read now, not in the first request
    world.app = Wire(world, DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, world.app, threaded=True, request_handler=MotoHandler)
    world.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    late = threading.Timer(world.settings.life_s, os._exit, (3,))
    late.daemon = True
    late.start()
    print(world.port, flush=True)
    sys.stdin.read()
    world.closing.set()
    for thread in threading.enumerate():
        if thread.name in world.jobs:
            thread.join(ENDING_S)
    os._exit(0)  # threads may still wait for sockets; the containers die with this process


if __name__ == "__main__":
    main()
