"""The workspace's storage account: what is signed, and what the jobs' machines have of it.

A job's mount is a folder of its machine: brought from the account when the machine begins, and what changes in it
is sent back while the job runs and when it ends, as a whole file each.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl
from xml.etree import ElementTree

from tests.emulators.azureml.azurite import KEY, Azurite
from tests.emulators.azureml.names import ACCOUNT, DATASTORES
from tests.emulators.azureml.wire import Answer, Request

VERSION = "2023-11-03"
OWN_S = 24 * 3600
NUMBERS = itertools.count()


def operation(request: Request) -> str:
    """Its name in Azure's reference of Blob Storage."""
    comp, of_container = request.query.get("comp"), request.query.get("restype") == "container"
    if of_container:
        return "ListBlobs" if comp == "list" else f"{request.method.capitalize()}Container"
    if comp:
        return f"{request.method.capitalize()}{comp.capitalize()}"
    if request.method == "PUT" and "x-ms-copy-source" in request.headers:
        return "CopyBlob"
    return f"{request.method.capitalize()}Blob"


def located(uri: str) -> tuple[str, str]:
    """(container, key) of azureml://.../datastores/NAME/paths/PATH, or of a blob's URL."""
    if "datastores/" in uri:
        store, _, path = uri.partition("datastores/")[2].partition("/")
        return DATASTORES[store], path.removeprefix("paths/").strip("/")
    container, _, path = uri.partition("core.windows.net/")[2].partition("/")
    return container, path.strip("/")


class Account:
    """The account as its owner has it."""

    def __init__(self, azurite: Azurite) -> None:
        self.azurite = azurite
        self._signature = dict(parse_qsl(sign("rwdlac", OWN_S)))
        for container in DATASTORES.values():
            self.make(container)

    def make(self, container: str) -> None:
        with contextlib.suppress(FileExistsError):
            self._ask("PUT", container, "", {"restype": "container"})

    def put(self, container: str, key: str, content: bytes) -> None:
        self._ask("PUT", container, key, {}, content, {"x-ms-blob-type": "BlockBlob"})

    def append(self, container: str, key: str, content: bytes, first: bool) -> None:
        """To a blob that grows; the first time it is made."""
        if first:
            self._ask("PUT", container, key, {}, b"", {"x-ms-blob-type": "AppendBlob"})
        if content:
            self._ask("PUT", container, key, {"comp": "appendblock"}, content)

    def get(self, container: str, key: str) -> bytes:
        return self._ask("GET", container, key, {}).body

    def delete(self, container: str, key: str) -> None:
        self._ask("DELETE", container, key, {})

    def keys(self, container: str, prefix: str) -> Iterator[tuple[str, str]]:
        """(key, ETag) of every blob below."""
        marker = ""
        while True:
            query = {"restype": "container", "comp": "list", "prefix": prefix, "marker": marker}
            page = ElementTree.fromstring(self._ask("GET", container, "", query).body)
            for blob in page.iter("Blob"):
                yield str(blob.findtext("Name")), str(blob.findtext("Properties/Etag"))
            marker = page.findtext("NextMarker") or ""
            if not marker:
                return

    def _ask(
        self, method: str, container: str, key: str, query: dict[str, str], body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        answer = self.azurite.ask(
            method, f"/{container}/{key}".rstrip("/"), {**query, **self._signature}, body,
            {"x-ms-version": VERSION, **(headers or {})},
        )  # fmt: skip
        if answer.status >= 400:
            kind = {404: FileNotFoundError, 409: FileExistsError}.get(answer.status, RuntimeError)
            raise kind(f"{method} {container}/{key}: {answer.status} {answer.body.decode()[:300]}")
        return answer


class Mount:
    """One input or output on a job's machine."""

    def __init__(self, account: Account, uri: str, folder: Path, of_file: bool = False) -> None:
        self._account = account
        self._container, self._key = located(uri)
        self._folder, self._of_file = folder, of_file
        self._known: dict[str, tuple[int, int]] = {}
        """Path in the folder -> what its file is like in the account."""

    @property
    def path(self) -> Path:
        return self._folder / Path(self._key).name if self._of_file else self._folder

    def bring(self) -> bool:
        """Everything that is there now; False where nothing is. Raises FileNotFoundError for a missing file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._of_file:
            self.path.write_bytes(self._account.get(self._container, self._key))
            return True
        for key, _ in self._account.keys(self._container, f"{self._key}/"):
            name = key.removeprefix(f"{self._key}/")
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._account.get(self._container, key))
            self._known[name] = _like(path)
        return bool(self._known)

    def send(self) -> None:
        """What has changed since, and that a file is gone."""
        found = {}
        for path in self._folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # it may go while this looks
                if path.is_file():
                    found[path.relative_to(self._folder).as_posix()] = _like(path)
        for name in self._known.keys() - found.keys():
            with contextlib.suppress(FileNotFoundError):
                self._account.delete(self._container, f"{self._key}/{name}")
            del self._known[name]
        for name, like in found.items():
            if self._known.get(name) == like:
                continue
            try:
                content = (self._folder / name).read_bytes()
            except FileNotFoundError:
                continue
            self._account.put(self._container, f"{self._key}/{name}", content)
            self._known[name] = like


def sign(permissions: str, seconds: float) -> str:
    """The query of a signed URL, for the whole account."""
    from azure.storage.blob import ResourceTypes, generate_account_sas

    now = datetime.now(UTC).timestamp()
    ends, begins = (datetime.fromtimestamp(t, UTC) for t in (math.ceil(now + seconds), now - 3600 - next(NUMBERS)))
    kinds = ResourceTypes(container=True, object=True)
    return generate_account_sas(ACCOUNT, KEY, kinds, permissions, ends, begins)  # no two are equal


def _like(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
