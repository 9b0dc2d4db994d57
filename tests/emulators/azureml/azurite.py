"""The storage account as Microsoft's own emulator has it: Azurite, where this machine has it, in place of ours.

Azurite (MIT, on npm) checks signatures, block lists and copies by itself. A job's mounts are folders of ours, so
that jobs don't run on it.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlencode

from tests.emulators.azureml.wire import Answer, Request
from tests.emulators.azureml.world import ACCOUNT, DATASTORES

KEY = "ZW11bGF0ZWQta2V5LW9mLWEtc3RvcmFnZS1hY2NvdW50LW5vLXNlY3JldA=="
START_S = 60
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


def found() -> str | None:
    """AZURITE_BLOB, or azurite-blob on the PATH; None without one."""
    return os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")


@contextmanager
def running(program: str, folder: Path) -> Iterator[int]:
    """Azurite with the account's containers in it, on a free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent"]
    command = [program, *words, "--skipApiVersionCheck", "--disableTelemetry"]
    env = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with (
        (folder / "azurite.log").open("wb") as log,
        subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            until = time.monotonic() + START_S
            while not _answers(port):
                assert process.poll() is None and time.monotonic() < until, "Azurite does not start"
                time.sleep(0.1)
            _make_containers(port)
            yield port
        finally:
            process.terminate()


def signature() -> str:
    """A signed query for the whole account, as listSecrets tells it."""
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    return generate_account_sas(
        ACCOUNT, KEY, ResourceTypes(container=True, object=True), AccountSasPermissions.from_string("rwdlcx"),
        datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip


def forward(port: int, request: Request) -> Answer:
    """Azurite's answer to a request for the storage account's public name."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    query = urlencode(request.query, quote_via=quote)
    path = f"/{ACCOUNT}" + quote(request.path, safe="/$-_.~") + (f"?{query}" if query else "")
    headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
    headers["host"] = f"127.0.0.1:{port}"
    if source := headers.get("x-ms-copy-source"):  # Azurite fetches it, and would look for the public name
        public, own = f"https://{ACCOUNT}.blob.core.windows.net", f"http://127.0.0.1:{port}/{ACCOUNT}"
        headers["x-ms-copy-source"] = source.replace(public, own)
    try:
        connection.request(request.method, path, body=request.body, headers=headers)
        answer = connection.getresponse()
        content = answer.read()
        told = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        if request.method == "HEAD" and (length := answer.getheader("Content-Length")):
            told["Content-Length"] = length
        return Answer(status=answer.status, body=content, headers=told)
    finally:
        connection.close()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _make_containers(port: int) -> None:
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient(f"http://127.0.0.1:{port}/{ACCOUNT}", credential=KEY) as client:
        for name in DATASTORES.values():
            client.create_container(name)
