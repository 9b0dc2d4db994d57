"""What SageMaker's agent does with S3: channels down, checkpoints up and down, artifacts up.

It reads and writes moto's buckets directly: these transfers are AWS's own and pass none of the faults.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from moto.s3.models import FakeDeleteMarker, s3_backends

Seen = dict[Path, tuple[int, int]]


class Nothing(Exception):
    """A channel without objects; the message is FailureReason."""


class Storage:
    """S3 as a job of `account` in `region` sees it."""

    def __init__(self, account: str, region: str) -> None:
        self._backend = s3_backends[account]["aws"]
        self.region = region

    def is_here(self, uri: str) -> bool:
        """Is the bucket there, and in the job's region?"""
        bucket = self._backend.buckets.get(split(uri)[0])
        return bucket is not None and bucket.region_name == self.region

    def nothing_there(self, uri: str, role: str) -> str:
        bucket = split(uri)[0]
        gone = (
            ""
            if bucket in self._backend.buckets
            else " Error message from S3: The specified bucket does not exist"
        )
        return (
            f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket '
            f"exists in the selected region ({self.region}), that objects exist under that S3 prefix, and that "
            f'the role "{role}" has "s3:ListBucket" permissions on bucket "{bucket}".{gone}'
        )

    def names(self, uri: str) -> list[str]:
        """Every key that starts with the URI's."""
        bucket, prefix = split(uri)
        store = self._backend.buckets[bucket].keys
        while True:
            try:
                found = [name for name in list(dict.keys(store)) if name.startswith(prefix)]
            except RuntimeError:  # changed by another thread meanwhile
                continue
            return sorted(name for name in found if not isinstance(store.get(name), FakeDeleteMarker))

    def read(self, bucket: str, key: str) -> bytes | None:
        found = self._backend.get_object(bucket, key)
        value: bytes | None = getattr(found, "value", None)  # a delete marker has none
        return value

    def write(self, uri: str, data: bytes) -> None:
        self._backend.put_object(*split(uri), data)

    def pull_channel(self, source: Mapping[str, Any], target: Path, host: int, hosts: int) -> None:
        """The objects of one channel for one host. Raises Nothing."""
        uri, bucket = source["S3Uri"], split(source["S3Uri"])[0]
        files = self._manifest(uri) if source["S3DataType"] == "ManifestFile" else _relative(uri, self.names(uri))
        if not files:
            raise Nothing(f"ClientError: Data download failed:No S3 objects found under S3 URL {uri}")
        if source.get("S3DataDistributionType") == "ShardedByS3Key":
            files = dict(sorted(files.items())[host::hosts])
        target.mkdir(parents=True, exist_ok=True)
        for relative, key in files.items():
            data = self.read(bucket, key)
            if data is None:
                raise Nothing(f"ClientError: Data download failed:NoSuchKey: s3://{bucket}/{key}")
            put(target / relative, data)

    def _manifest(self, uri: str) -> dict[str, str]:
        """Relative path -> key, of [{"prefix": uri}, path, ...]."""
        first, *paths = json.loads(self.read(*split(uri)) or b"[{}]")
        prefix = split(first["prefix"])[1] if first else ""
        return {path: prefix + path for path in paths}

    def pull_tree(self, uri: str, target: Path) -> Seen:
        """A prefix as a folder; what is there now, so that it is not sent back at once."""
        target.mkdir(parents=True, exist_ok=True)
        bucket, _ = split(uri)
        for relative, key in _relative(f"{uri.rstrip('/')}/", self.names(f"{uri.rstrip('/')}/")).items():
            put(target / relative, self.read(bucket, key) or b"")
        return {path: _mark(path) for path in target.rglob("*") if path.is_file()}

    def push_changes(self, source: Path, uri: str, seen: Seen) -> None:
        """Send up what is new or other than `seen`; a file may be sent while it is written, as it really is."""
        for path in _paths(source):
            try:
                if not path.is_file() or seen.get(path) == _mark(path):
                    continue
                mark = _mark(path)
                self.write(f"{uri.rstrip('/')}/{path.relative_to(source).as_posix()}", path.read_bytes())
                seen[path] = mark
            except FileNotFoundError:  # gone meanwhile
                continue

    def push_artifacts(self, sources: Sequence[Path], uri: str, packed: bool) -> str:
        """The folders of all hosts as URI.tar.gz, or as a tree; of two files at one place the first's stays."""
        files: dict[str, Path] = {}
        for source in sources:
            for path in _paths(source):
                files.setdefault(path.relative_to(source).as_posix(), path)
        if not packed:
            for relative, path in files.items():
                if path.is_file():
                    self.write(f"{uri}/{relative}", path.read_bytes())
            return f"{uri}/"
        with TemporaryFile() as made:
            with tarfile.open(fileobj=made, mode="w:gz", compresslevel=1) as archive:
                for relative, path in files.items():
                    archive.add(path, arcname=relative, recursive=False)
            made.seek(0)
            self.write(f"{uri}.tar.gz", made.read())
        return f"{uri}.tar.gz"


def split(uri: str) -> tuple[str, str]:
    """(bucket, key) of s3://bucket/key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _relative(uri: str, keys: Sequence[str]) -> dict[str, str]:
    """Where each key lies under the channel's folder: after the prefix, or after its last slash."""
    prefix = split(uri)[1]
    below = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
    cut = len(below) if all(key.startswith(below) for key in keys) else prefix.rfind("/") + 1
    return {key[cut:]: key for key in keys if key[cut:] and not key.endswith("/")}


def _paths(folder: Path) -> list[Path]:
    """Everything in a folder in which a job may remove things meanwhile."""
    while True:
        try:
            return sorted(folder.rglob("*"))
        except FileNotFoundError:
            continue


def _mark(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
