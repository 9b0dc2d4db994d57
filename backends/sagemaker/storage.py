"""The backend's bucket in S3; backends/storage.py says what lies where."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from backends.base import BundleFile
from backends.sagemaker.aws import Aws, code_of
from backends.storage import LARGE, BundleStore, Count
from launcher.errors import BackendError, JobNotFoundError, LaunchError

MOST_PARTS = 9000
"""S3 takes 10,000."""
DELETED_AT_ONCE = 1000
CHECKSUM = "SHA256"
"""Said when an upload begins, of every part, and of every part once more at the end: S3 refuses it otherwise, and
botocore's own default is another (CRC32, botocore 1.44.8).
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html (read 2026-11-25)
"""
OVERTAKEN = frozenset(("NoSuchUpload", "InvalidPart"))
"""Another launcher has ended the upload, or sent a part anew."""
TRIES = 3


class Storage(BundleStore):
    """One bucket, through one region's clients. `kms_key` encrypts what is written, where it is set."""

    scheme = "s3"

    def __init__(self, aws: Aws, bucket: str, kms_key: str | None = None) -> None:
        super().__init__(bucket)
        self._aws = aws
        self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}

    def put(self, key: str, content: bytes) -> None:
        self._aws.call("s3", "put_object", self.doing("writing", key), Bucket=self.bucket, Key=key, Body=content,
                       **self._encryption)  # fmt: skip

    def get(self, key: str) -> bytes | None:
        """An object's bytes, None where there is none."""
        try:
            found = self._aws.call("s3", "get_object", self.doing("reading", key), Bucket=self.bucket, Key=key)
        except JobNotFoundError:
            return None
        with self._aws.errors(self.doing("reading", key)):
            content: bytes = found["Body"].read()
        return content

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every object below `prefix`."""
        doing = self.doing("listing", prefix)
        for page in self._aws.pages("s3", "list_objects_v2", doing, Bucket=self.bucket, Prefix=prefix):
            for item in page.get("Contents") or ():
                yield item["Key"], item["Size"]

    def read_from(self, key: str, start: int) -> Iterator[bytes]:
        doing = self.doing("downloading", key)
        found = self._aws.call("s3", "get_object", doing, Bucket=self.bucket, Key=key, Range=f"bytes={start}-")
        with self._aws.errors(doing):
            yield from found["Body"].iter_chunks(2**20)

    def remove(self, prefix: str) -> None:
        """Delete every object below `prefix`."""
        found = [key for key, _ in self.keys(prefix)]
        for start in range(0, len(found), DELETED_AT_ONCE):
            objects = [{"Key": key} for key in found[start : start + DELETED_AT_ONCE]]
            answer = self._aws.call(
                "s3", "delete_objects", self.doing("removing", prefix),
                Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True},
            )  # fmt: skip
            if errors := answer.get("Errors"):
                raise BackendError(
                    f"{errors[0]['Key']} could not be removed: {errors[0].get('Message')}",
                    "the same command again; launch setup sagemaker --advice shows the policy that is needed",
                )

    def send_small(self, file: BundleFile, key: str) -> None:
        """S3 itself compares what arrives with the hash."""
        content = self.source(file).read_bytes()
        if sha256(content).hexdigest() != file.sha256:
            raise _changed(file)
        checksum = _base64(bytes.fromhex(file.sha256))
        self._aws.call(
            "s3", "put_object", self.doing("uploading", file.path),
            Bucket=self.bucket, Key=key, Body=content, ChecksumSHA256=checksum, **self._encryption,
        )  # fmt: skip

    def copy(self, other: str, key: str) -> None:
        with self._aws.errors(self.doing("copying", other)):
            self._aws.client("s3").copy(
                {"Bucket": self.bucket, "Key": other}, self.bucket, key, ExtraArgs=self._encryption or None
            )

    def send_parts(self, file: BundleFile, key: str, moved: Count) -> None:
        """Parts that an earlier try has sent are kept. Others may send the same file at the same time."""
        for tries_left in reversed(range(TRIES)):
            counted = Tally(moved)
            try:
                self._send_parts(file, key, counted)
                return
            except LaunchError as exc:
                if code_of(exc.__cause__ or exc) not in OVERTAKEN or not tries_left:
                    raise
                there = dict(self.keys(key)).get(key) == file.size
                counted.add((file.size if there else 0) - counted.done)
                if there:  # the other was faster
                    return

    def _send_parts(self, file: BundleFile, key: str, moved: Tally) -> None:
        """Every part and the whole are compared with their hashes. Raises BackendError for a file that changed."""
        part_size = max(LARGE, math.ceil(file.size / MOST_PARTS))
        upload, sent = self._open_upload(key)
        asked: dict[str, Any] = {"Bucket": self.bucket, "Key": key, "UploadId": upload}
        doing, whole, parts = self.doing("uploading", file.path), sha256(), []
        with self.source(file).open("rb") as source:
            for number in range(1, math.ceil(file.size / part_size) + 1):
                content = source.read(part_size)
                whole.update(content)
                part: dict[str, Any] = {"PartNumber": number, "ChecksumSHA256": _base64(sha256(content).digest())}
                known = sent.get(number, {})
                if known.get("ChecksumSHA256") != part["ChecksumSHA256"]:
                    known = self._aws.call("s3", "upload_part", doing, **asked, **part, Body=content)
                parts.append({**part, "ETag": known["ETag"]})
                moved.add(len(content))
        if whole.hexdigest() != file.sha256:
            self._aws.call("s3", "abort_multipart_upload", doing, **asked)
            raise _changed(file)
        self._aws.call("s3", "complete_multipart_upload", doing, **asked, MultipartUpload={"Parts": parts})

    def _open_upload(self, key: str) -> tuple[str, Mapping[int, Mapping[str, Any]]]:
        """(id, part number -> part) of the upload that was broken off, or of a new one."""
        doing = self.doing("uploading", key)
        for page in self._aws.pages("s3", "list_multipart_uploads", doing, Bucket=self.bucket, Prefix=key):
            for upload in page.get("Uploads") or ():
                if upload["Key"] == key and upload.get("ChecksumAlgorithm") == CHECKSUM:
                    asked = {"Bucket": self.bucket, "Key": key, "UploadId": upload["UploadId"]}
                    found = [
                        part
                        for page in self._aws.pages("s3", "list_parts", doing, **asked)
                        for part in page.get("Parts") or ()
                    ]
                    return upload["UploadId"], {part["PartNumber"]: part for part in found}
        made = self._aws.call(
            "s3", "create_multipart_upload", doing,
            Bucket=self.bucket, Key=key, ChecksumAlgorithm=CHECKSUM, **self._encryption,
        )  # fmt: skip
        return made["UploadId"], {}


class Tally:
    """What one try has counted, so that it can be taken back."""

    def __init__(self, moved: Count) -> None:
        self.done = 0
        self._moved = moved

    def add(self, size: int) -> None:
        self.done += size
        self._moved.add(size)


def _changed(file: BundleFile) -> BackendError:
    return BackendError(f"{file.path} has changed while it was packed", "the same command again")


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
