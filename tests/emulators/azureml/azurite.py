"""Azurite, Microsoft's own emulator of Blob Storage (MIT, on npm): installed once, and run as a process.

`make test` installs what azurite_packages/ pins, with npm, into the cache folder, named by the hash of the pins.
Their lock is npm's (`npm install --package-lock-only --omit-lockfile-registry-resolved`), less what `npm ci` never
reads. 3.35 is the last Azurite that runs on Debian's Node.js.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

from launcher.home import cache
from tests.emulators.azureml.names import ACCOUNT
from tests.emulators.azureml.wire import Answer, Request

PINS = Path(__file__).with_name("azurite_packages")
NEEDED = "FINELAUNCH_TESTS_NEED_AZURITE"
"""Set where a skip is a failure."""
KEY = "ZW11bGF0ZWQta2V5LW9mLWEtc3RvcmFnZS1hY2NvdW50LW5vLXNlY3JldA=="
PUBLIC = f"{ACCOUNT}.blob.core.windows.net"
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")
CALL_S = 60
MEMORY_MB = 4096
"""Of what is stored, for it is kept in memory."""


def folder() -> Path:
    pins = b"".join(path.read_bytes() for path in sorted(PINS.iterdir()))
    return cache() / "tests" / f"azurite-{hashlib.sha256(pins).hexdigest()[:16]}"


def program() -> Path:
    return folder() / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


def lacking() -> str | None:
    """What this machine lacks to run it; None where it can."""
    if shutil.which("node") is None:
        return "the Azure ML emulator keeps blobs in Azurite, which needs Node.js (Debian: nodejs npm)"
    return None if program().exists() else "make test installs Azurite for the Azure ML emulator, where npm is"


def build(tell: Callable[[str], None]) -> None:
    """Install it if it is not there; needs npm and its registry."""
    npm = shutil.which("npm")
    if program().exists() or npm is None or shutil.which("node") is None:
        return
    tell("installing Azurite for the Azure ML emulator's tests (190 MB; once, half a minute)")
    building = folder().with_name(f"{folder().name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(PINS, building)
    # Nothing of the packages runs while they are installed.
    words = ["--ignore-scripts", "--no-bin-links", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run([npm, "ci", *words], cwd=building, capture_output=True, text=True, check=False)
    if done.returncode:
        tell(f"without Azurite: {(done.stderr or done.stdout).strip()[-300:]}")
        shutil.rmtree(building)
        return
    building.rename(folder())


class Azurite:
    """One process on a free port of 127.0.0.1, over TLS, that checks signatures and tokens; with one account."""

    def __init__(self, authority: Path, pair: Path) -> None:
        """`pair`: certificate and key for 127.0.0.1, signed by `authority`."""
        words = [
            "--blobPort", "0", "--inMemoryPersistence", "--extentMemoryLimit", str(MEMORY_MB), "--cert", str(pair),
            "--key", str(pair), "--oauth", "basic", "--skipApiVersionCheck", "--disableTelemetry", "--silent",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [*_dying(), "node", program(), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            # A copy's source with a signature is fetched by itself.
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}", "NODE_EXTRA_CA_CERTS": str(authority)},
        )  # fmt: skip
        assert self._process.stdout is not None
        said: list[str] = []
        for line in self._process.stdout:
            said.append(line)
            if found := re.search(r"successfully listens on https://127\.0\.0\.1:(\d+)", line):
                self._port = int(found[1])
                break
        else:
            raise RuntimeError(f"Azurite did not start: {''.join(said)}")
        self._tls = ssl.create_default_context(cafile=authority)
        self._local = threading.local()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def forward(self, request: Request) -> Answer:
        """Its answer to a request for the account's public name."""
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        path, source = request.path, headers.get("x-ms-copy-source", "")
        if "sig=" in source:  # Azurite fetches it, and would look for the public name
            path, headers["host"] = f"/{ACCOUNT}{path}", f"127.0.0.1:{self._port}"
            headers["x-ms-copy-source"] = source.replace(PUBLIC, f"{headers['host']}/{ACCOUNT}")
        return self.ask(request.method, path, request.query, request.body, headers)

    def ask(
        self, method: str, path: str, query: Mapping[str, str], body: bytes, headers: Mapping[str, str]
    ) -> Answer:
        """`path`: without escapes; the account's, where `host` is not another name than its own."""
        address = quote(path, safe="/$-_.~")
        if query:
            address += f"?{urlencode(query, quote_via=quote)}"
        answer = self._answer(method, address, body, {"host": PUBLIC, **headers})
        content = answer.read()
        told = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        if method == "HEAD" and (length := answer.getheader("Content-Length")):
            told["Content-Length"] = length
        return Answer(status=answer.status, body=content, headers=told)

    def _answer(
        self, method: str, address: str, body: bytes, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        """Through this thread's own connection; one that Azurite has closed meanwhile is opened anew."""
        connection: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=CALL_S, context=self._tls)
            self._local.connection = connection
        was_open = connection.sock is not None
        try:
            connection.request(method, address, body=body, headers=dict(headers))
            return connection.getresponse()
        except (http.client.HTTPException, OSError):
            connection.close()
            if not was_open:
                raise
        return self._answer(method, address, body, headers)


def _dying() -> list[str]:
    """What ends a process when the one that has started it ends."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
