"""The workspace's blob datastore as the backend's bucket; backends/storage.py says what lies where."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from backends.azureml.azure import ATTEMPTS, CONNECT_S, READ_S, Azure, installed
from backends.base import BundleFile
from backends.storage import LARGE, BundleStore, Count
from launcher.errors import BackendError, CredentialsError, JobNotFoundError, UnreachableError

API_VERSION = "2024-10-01-preview"
"""What azure-ai-ml 1.35.2 asks for datastores with."""
MOST_BLOCKS = 45_000
"""A blob has 50,000 at most. https://learn.microsoft.com/rest/api/storageservices/put-block (read 2026-11-25)"""
SECRET_S = 40 * 60
"""How long a datastore's signature is used; it is asked for with a life of one hour."""
COPY_S = 600
PIECE = 8 * 2**20


class Storage(BundleStore):
    """One datastore of a workspace, which is given by its ARM path."""

    scheme = "azureml"

    def __init__(self, azure: Azure, workspace: str, datastore: str) -> None:
        super().__init__(f"datastores/{datastore}/paths")
        self._azure = azure
        self._path = f"{workspace}/datastores/{datastore}"
        self.name = datastore
        self._client: Any = None
        self._signature = ""
        self._made = 0.0
        self._lock = threading.Lock()

    def put(self, key: str, content: bytes) -> None:
        with self._errors("writing", key):
            self._blob(key).upload_blob(content, overwrite=True, validate_content=True)

    def get(self, key: str) -> bytes | None:
        """A blob's bytes, None where there is none."""
        try:
            with self._errors("reading", key):
                found: bytes = self._blob(key).download_blob().readall()
        except JobNotFoundError:
            return None
        return found

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every blob below `prefix`."""
        with self._errors("listing", prefix):
            # An account with a hierarchical namespace lists its folders, too.
            for item in self.container().list_blobs(name_starts_with=prefix, include=["metadata"]):
                if (item.metadata or {}).get("hdi_isfolder") != "true":
                    yield item.name, item.size

    def read_from(self, key: str, start: int) -> Iterator[bytes]:
        from azure.core import MatchConditions

        with self._errors("downloading", key):
            found = self._blob(key).get_blob_properties()
        while start < found.size:
            with self._errors("downloading", key):  # a client a piece, as in send_parts
                piece = self._blob(key).download_blob(
                    offset=start, length=PIECE, etag=found.etag, match_condition=MatchConditions.IfNotModified
                ).readall()  # fmt: skip
            yield piece
            start += len(piece)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                with self._errors("removing", key):
                    self._blob(key).delete_blob(delete_snapshots="include")
            except JobNotFoundError:  # somebody else was first
                continue

    def send_small(self, file: BundleFile, key: str) -> None:
        """Azure compares the bytes with an MD5."""
        self.put(key, self.content(file))

    def send_parts(self, file: BundleFile, key: str, moved: Count) -> None:
        """Blocks that an earlier try has sent are kept; the name of each says what is in it.

        Every call asks for its client: one that is kept has a signature that ends within the hour.
        """
        from azure.storage.blob import BlobBlock

        size = max(LARGE, math.ceil(file.size / MOST_BLOCKS))
        sent, blocks = self._blocks(key), []
        for number, part in enumerate(self.parts(file, size)):
            name = f"{number:08d}-{sha256(part).hexdigest()[:32]}"
            if sent.get(name) != len(part):
                with self._errors("uploading", file.path):
                    self._blob(key).stage_block(name, part, validate_content=True)
            blocks.append(BlobBlock(name))
            moved.add(len(part))
        try:
            with self._errors("uploading", file.path):
                self._blob(key).commit_block_list(blocks)
        except BackendError as exc:
            if "InvalidBlockList" not in exc.message:
                raise
            raise JobNotFoundError(f"{file.path}: its blocks are gone", "the same command again") from exc

    def copy(self, other: str, key: str) -> None:
        with self._errors("copying", other):
            blob = self._blob(key)
            source = self._blob(other).url.partition("?")[0]
            blob.start_copy_from_url(f"{source}?{self._signature}" if self._signature else source)
            until = time.monotonic() + COPY_S
            while (status := blob.get_blob_properties().copy.status) == "pending" and time.monotonic() < until:
                time.sleep(1)
            if status != "success":
                raise BackendError(f"copying {other} inside Azure ended as {status}", "the same command again")

    def container(self) -> Any:
        """azure-storage-blob's client of the datastore's container."""
        with self._lock:
            # The wall's clock: a laptop's other one stands still while it sleeps.
            if self._client is None or not 0 <= time.time() - self._made < SECRET_S:
                self._client, self._made = self._connect(), time.time()
            return self._client

    def _connect(self) -> Any:
        with installed():
            from azure.storage.blob import ContainerClient
        told = self._azure.call("GET", self._path, f"looking at datastore {self.name}", version=API_VERSION)
        store = told["properties"]
        if store.get("datastoreType") != "AzureBlob":
            raise BackendError(
                f"datastore {self.name} is {store.get('datastoreType')}, not AzureBlob",
                "launch setup azureml --datastore NAME names a blob datastore",
            )
        # TLS always, whatever the datastore says: a token or a signature goes along.
        account = f"https://{store['accountName']}.blob.{store.get('endpoint') or 'core.windows.net'}"
        return ContainerClient(
            account, store["containerName"], credential=self._secret(store),
            connection_timeout=CONNECT_S, read_timeout=READ_S, retry_total=ATTEMPTS, initial_backoff=1,
            increment_base=2, max_single_put_size=2 * LARGE,
        )  # fmt: skip

    def _secret(self, store: Mapping[str, Any]) -> Any:
        """The datastore's own signature or key; where it has none, or it is not told, the user's sign-in.

        https://learn.microsoft.com/rest/api/azureml/datastores/list-secrets (read 2026-11-25)
        """
        self._signature = ""
        if store.get("credentials", {}).get("credentialsType") == "None":
            return self._azure.credential
        try:
            told = self._azure.call(
                "POST", f"{self._path}/listSecrets", f"asking for the secret of datastore {self.name}",
                version=API_VERSION, body={"expirableSecret": True, "expireAfterHours": 1},
            )  # fmt: skip
        except UnreachableError:
            raise
        except BackendError:  # not allowed to: the storage account may still take the sign-in
            return self._azure.credential
        if told.get("secretsType") == "Sas":
            from azure.core.credentials import AzureSasCredential

            self._signature = str(told["sasToken"]).removeprefix("?")
            return AzureSasCredential(self._signature)
        return told.get("key") or self._azure.credential

    def _blob(self, key: str) -> Any:
        return self.container().get_blob_client(key)

    def _blocks(self, key: str) -> dict[str, int]:
        """Name -> size of the blocks that an upload which was broken off has left."""
        try:
            with self._errors("looking at", key):
                return {block.id: block.size for block in self._blob(key).get_block_list("uncommitted")[1]}
        except JobNotFoundError:
            return {}

    @contextlib.contextmanager
    def _errors(self, what: str, key: str) -> Iterator[None]:
        """As Azure.errors; a signature that is not accepted any more is asked for anew by the next call."""
        try:
            with self._azure.errors(self.doing(what, key)):
                yield
        except CredentialsError:
            self._client = None
            raise
