"""The backend's bucket in Cloud Storage; backends/storage.py says what lies where."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any
from uuid import uuid4

from backends.base import BundleFile
from backends.storage import LARGE, ROOT, BundleStore, Count
from backends.vertex.google import Google

MOST_COMPOSED = 32
"""https://cloud.google.com/storage/docs/composite-objects (2026-11-25)"""
MOST_PARTS = 1000
PIECE = 8 * 2**20


class Storage(BundleStore):
    """One bucket. `kms_key` encrypts what is written, where it is set."""

    scheme = "gs"

    def __init__(self, google: Google, bucket: str, kms_key: str | None = None) -> None:
        super().__init__(bucket)
        self._google = google
        self._kms_key = kms_key

    def put(self, key: str, content: bytes) -> None:
        with self._google.errors(self.doing("writing", key)):
            self._blob(key).upload_from_string(content, content_type="application/octet-stream")

    def get(self, key: str) -> bytes | None:
        from google.api_core.exceptions import NotFound

        with self._google.errors(self.doing("reading", key)):
            try:
                content: bytes = self._blob(key).download_as_bytes()
            except NotFound:
                return None
        return content

    def version(self, key: str) -> int | None:
        """A number that changes with the object; None where there is none."""
        with self._google.errors(self.doing("looking at", key)):
            found = self._bucket().get_blob(key)
        return None if found is None else int(found.generation)

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        for blob in self.listed(prefix):
            yield blob.name, int(blob.size)

    def listed(self, prefix: str) -> Iterator[Any]:
        """google-cloud-storage's Blob of every object below `prefix`."""
        with self._google.errors(self.doing("listing", prefix)):
            yield from self._google.storage().list_blobs(self.bucket, prefix=prefix)

    def delete(self, keys: Sequence[str]) -> None:
        from google.api_core.exceptions import NotFound

        for key in keys:
            with self._google.errors(self.doing("removing", key)), contextlib.suppress(NotFound):
                self._blob(key).delete()

    def read_from(self, key: str, start: int) -> Iterator[bytes]:
        with (
            self._google.errors(self.doing("downloading", key)),
            self._blob(key).open("rb", chunk_size=PIECE) as source,
        ):
            source.seek(start)
            while piece := source.read(PIECE):
                yield piece

    def send_small(self, file: BundleFile, key: str) -> None:
        self.put(key, self.content(file))  # compared with its CRC32C by both ends

    def copy(self, other: str, key: str) -> None:
        with self._google.errors(self.doing("copying", other)):
            target, source = self._blob(key), self._blob(other)
            token, _, _ = target.rewrite(source)
            while token is not None:
                token, _, _ = target.rewrite(source, token=token)

    def send_parts(self, file: BundleFile, key: str, moved: Count) -> None:
        """Parts under the file's hash and each one's own, joined inside Cloud Storage when all are there."""
        size = max(LARGE, math.ceil(file.size / MOST_PARTS))
        home = f"{ROOT}/parts/{file.sha256}/{size}"
        there = dict(self.keys(f"{home}/"))
        names = []
        for number, part in enumerate(self.parts(file, size, lambda: self.remove(f"{home}/"))):
            name = f"{home}/{number:05d}-{sha256(part).hexdigest()}"
            if there.get(name) != len(part):
                self.put(name, part)
            names.append(name)
            moved.add(len(part))
        self._join(names, key, f"{home}/joined-{uuid4().hex}")
        self.remove(f"{home}/")

    def _join(self, names: list[str], key: str, between: str) -> None:
        """`between`: a key of this launcher's own for what is half joined, as another may join the same parts."""
        with self._google.errors(self.doing("joining", key)):
            while names:
                now, names = names[:MOST_COMPOSED], names[MOST_COMPOSED:]
                # A blob that knows the checksum of what it held sends it as that of what it will hold.
                self._blob(between if names else key).compose([self._blob(name) for name in now])
                names = [between, *names] if names else []

    def _bucket(self) -> Any:
        return self._google.storage().bucket(self.bucket)

    def _blob(self, key: str) -> Any:
        return self._bucket().blob(key, kms_key_name=self._kms_key)
