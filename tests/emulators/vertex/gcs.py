"""Cloud Storage's JSON API over folders: an object is a file, so that /gcs in a job's container is the same bytes.

https://cloud.google.com/storage/docs/json_api/v1 (2026-11-25)
"""

from __future__ import annotations

import base64
import email.parser
import email.policy
import hashlib
import json
import os
import re
import secrets
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import google_crc32c

from tests.emulators.vertex.world import Refused, World, invalid, not_found

Answer = tuple[int, dict[str, str], bytes]
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
MOST_COMPOSED = 32


class CloudStorage:
    """`answer` takes a request apart: the raw path matters, a name's slashes are %2F in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._uploads: dict[str, tuple[str, str, Path]] = {}
        self._sums: dict[tuple[str, int, int], tuple[str, str]] = {}
        self._temporary = world.folder / "uploads"
        self._temporary.mkdir(exist_ok=True)

    @staticmethod
    def operation(method: str, path: str, query: Mapping[str, str]) -> str:
        """Its name, for faults: Upload, Get, List, Delete, Compose, Rewrite, Bucket."""
        if path.startswith("/upload/"):
            return "Upload"
        rest = path.partition("/storage/v1/")[2].split("/")
        if len(rest) < 3:
            return "Bucket"
        if len(rest) == 3:
            return "List"
        if method == "DELETE":
            return "Delete"
        return {"compose": "Compose", "rewriteTo": "Rewrite"}.get(rest[4], "?") if len(rest) > 4 else "Get"

    def answer(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> Answer:
        rest = [unquote(part) for part in path.partition("/storage/v1/")[2].split("/")]
        if rest[0] != "b":
            raise not_found(path)
        if len(rest) == 1:
            return self.buckets(method, query, body)
        bucket = rest[1]
        if bucket not in self.world.buckets:
            raise not_found("The specified bucket does not exist.")
        if len(rest) == 2:
            return _told(self.bucket_told(bucket))
        if path.startswith("/upload/"):
            return self.upload(method, bucket, query, headers, body)
        if len(rest) == 3:
            return _told(self.listed(bucket, query))
        name = rest[3]
        if len(rest) > 4:
            return self.joined(rest, bucket, name, body)
        file = self.file(bucket, name)
        if method == "DELETE":
            self.there(bucket, name).unlink()
            self._prune(bucket, file.parent)
            return 204, {}, b""
        if query.get("alt") == "media":
            return self.content(bucket, name, headers)
        return _told(self.told(bucket, name))

    def buckets(self, method: str, query: Mapping[str, str], body: bytes) -> Answer:
        if method == "POST":
            asked = json.loads(body)
            self.world.buckets[asked["name"]] = asked.get("location", "US").upper()
            self.world.bucket(asked["name"]).mkdir(exist_ok=True)
            return _told(self.bucket_told(asked["name"]))
        return _told({"kind": "storage#buckets", "items": [self.bucket_told(b) for b in self.world.buckets]})

    def bucket_told(self, name: str) -> dict[str, Any]:
        return {"kind": "storage#bucket", "id": name, "name": name, "location": self.world.buckets[name]}

    def file(self, bucket: str, name: str) -> Path:
        root = self.world.bucket(bucket)
        found = root / name
        if ".." in Path(name).parts or not name:
            raise invalid(f"{name!r} is no name that is emulated")
        return found

    def there(self, bucket: str, name: str) -> Path:
        found = self.file(bucket, name)
        if not found.is_file():
            raise not_found(f"No such object: {bucket}/{name}")
        return found

    def told(self, bucket: str, name: str) -> dict[str, Any]:
        """The object's resource."""
        file = self.there(bucket, name)
        found = file.stat()
        crc32c, md5 = self._sums_of(file, found)
        at = datetime.fromtimestamp(found.st_mtime, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "kind": "storage#object", "id": f"{bucket}/{name}/{found.st_mtime_ns}", "name": name, "bucket": bucket,
            "generation": str(found.st_mtime_ns), "metageneration": "1", "size": str(found.st_size),
            "crc32c": crc32c, "md5Hash": md5, "etag": str(found.st_mtime_ns), "updated": at, "timeCreated": at,
            "contentType": "application/octet-stream", "storageClass": "STANDARD",
        }  # fmt: skip

    def listed(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        root, prefix = self.world.bucket(bucket), query.get("prefix", "")
        names = []
        for folder, _, files in os.walk(root / prefix.rpartition("/")[0]):
            base = Path(folder).relative_to(root).as_posix()
            names += [name if base == "." else f"{base}/{name}" for name in files]
        start = query.get("pageToken", "")
        found = sorted(name for name in names if name.startswith(prefix) and name > start)
        most = int(query.get("maxResults") or 1000)
        page: dict[str, Any] = {"kind": "storage#objects", "items": []}
        for name in found[:most]:
            try:
                page["items"].append(self.told(bucket, name))
            except (Refused, FileNotFoundError):  # gone meanwhile
                continue
        if len(found) > most:
            page["nextPageToken"] = found[most - 1]
        return page

    def content(self, bucket: str, name: str, headers: Mapping[str, str]) -> Answer:
        file = self.there(bucket, name)
        # The job may write meanwhile: what is told is of the bytes that are sent.
        generation, data = file.stat().st_mtime_ns, file.read_bytes()
        crc32c, md5 = _sums(data)
        sent = {
            "Content-Type": "application/octet-stream", "ETag": str(generation),
            "X-Goog-Hash": f"crc32c={crc32c},md5={md5}",
            "X-Goog-Generation": str(generation), "X-Goog-Stored-Content-Length": str(len(data)),
        }  # fmt: skip
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if match is None:
            return 200, sent, data
        first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            raise Refused(416, "OUT_OF_RANGE", "Requested range not satisfiable")
        return 206, {**sent, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]

    def upload(
        self, method: str, bucket: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes
    ) -> Answer:
        if query.get("upload_id"):
            return self._resumed(query["upload_id"], headers, body)
        if query["uploadType"] == "multipart":
            raw = b"Content-Type: " + headers["content-type"].encode() + b"\r\n\r\n" + body
            parts = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(raw).get_payload()
            described = json.loads(parts[0].get_payload(decode=True))  # type: ignore[union-attr]
            return self._stored(bucket, described, _second_part(headers["content-type"], body), query)
        described = json.loads(body or b"{}")
        upload = secrets.token_hex(12)
        name = described.get("name") or query["name"]
        self._check(bucket, name, query)
        self._uploads[upload] = (bucket, name, self._temporary / upload)
        (self._temporary / upload).touch()
        there = f"http://{headers['host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload}"
        return 200, {"Location": there, "X-GUploader-UploadID": upload}, b""

    def _resumed(self, upload: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if upload not in self._uploads:
            raise not_found("no such upload")
        bucket, name, part = self._uploads[upload]
        match = CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        have = part.stat().st_size
        if match is not None and match[1] is not None:
            with part.open("r+b") as file:
                file.seek(int(match[1]))
                file.write(body)
            have = part.stat().st_size
        if match is not None and (match[3] == "*" or int(match[3]) > have):
            return 308, {"Range": f"bytes=0-{have - 1}"} if have else {}, b""
        if match is None:
            part.write_bytes(body)
        self._uploads.pop(upload)
        self._put(part, self.file(bucket, name))
        return _told(self.told(bucket, name))

    def _stored(self, bucket: str, described: Mapping[str, Any], data: bytes, query: Mapping[str, str]) -> Answer:
        name = described.get("name") or query["name"]
        self._check(bucket, name, query)
        if (crc := described.get("crc32c")) and crc != _crc32c(data):
            raise invalid("Provided CRC32C does not match calculated CRC32C")
        temporary = self._temporary / secrets.token_hex(12)
        temporary.write_bytes(data)
        self._put(temporary, self.file(bucket, name))
        return _told(self.told(bucket, name))

    def joined(self, rest: list[str], bucket: str, name: str, body: bytes) -> Answer:
        """compose, rewriteTo and copyTo."""
        temporary = self._temporary / secrets.token_hex(12)
        if rest[4] == "compose":
            asked = json.loads(body)
            sources = asked["sourceObjects"]
            if len(sources) > MOST_COMPOSED:
                raise invalid(
                    f"The number of source components provided ({len(sources)}) exceeds the maximum (32)"
                )
            with temporary.open("wb") as file:
                for source in sources:
                    file.write(self.there(bucket, source["name"]).read_bytes())
            if (crc := asked.get("destination", {}).get("crc32c")) and crc != _crc32c(temporary.read_bytes()):
                raise invalid("Provided CRC32C does not match calculated CRC32C")
            self._put(temporary, self.file(bucket, name))
            return _told(self.told(bucket, name))
        _, target, _, other = rest[5:9] if len(rest) >= 9 else ("", "", "", "")
        if rest[4] not in ("rewriteTo", "copyTo") or not other:
            raise invalid(f"{rest[4]} is not emulated")
        temporary.write_bytes(self.there(bucket, name).read_bytes())
        self._put(temporary, self.file(target, other))
        told = self.told(target, other)
        if rest[4] == "copyTo":
            return _told(told)
        size = told["size"]
        return _told({"kind": "storage#rewriteResponse", "done": True, "totalBytesRewritten": size,
                      "objectSize": size, "resource": told})  # fmt: skip

    def _check(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        """if_generation_match, as a lock needs it."""
        wanted = query.get("ifGenerationMatch")
        if wanted is None:
            return
        file = self.file(bucket, name)
        have = str(file.stat().st_mtime_ns) if file.is_file() else "0"
        if have != wanted:
            raise Refused(
                412, "FAILED_PRECONDITION", "At least one of the pre-conditions you specified did not hold."
            )

    def _put(self, temporary: Path, file: Path) -> None:
        with self.world.lock:
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(file)

    def _prune(self, bucket: str, folder: Path) -> None:
        """Folders are nothing of their own here."""
        root = self.world.bucket(bucket)
        with self.world.lock:
            while folder != root and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent

    def _sums_of(self, file: Path, found: os.stat_result) -> tuple[str, str]:
        key = (str(file), found.st_mtime_ns, found.st_size)
        if key not in self._sums:
            self._sums[key] = _sums(file.read_bytes())
        return self._sums[key]


def _second_part(content_type: str, body: bytes) -> bytes:
    """The bytes of a multipart/related upload, as they are: a mail parser would change line ends."""
    mark = content_type.partition("boundary=")[2].strip('"').encode()
    part = body.split(b"--" + mark, 2)[2]
    content = part.split(b"\r\n\r\n", 1)[1]
    return content.rpartition(b"\r\n--" + mark)[0]


def _sums(data: bytes) -> tuple[str, str]:
    """CRC32C and MD5, as Cloud Storage tells them."""
    return _crc32c(data), base64.b64encode(hashlib.md5(data).digest()).decode()


def _crc32c(data: bytes) -> str:
    return base64.b64encode(struct.pack(">I", google_crc32c.value(data))).decode()


def _told(resource: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(resource).encode()
