"""The backend's bucket in S3; backends/storage.py says what lies where."""

from __future__ import annotations

import base64
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from backends.base import BundleFile
from backends.sagemaker.aws import Aws
from backends.storage import LARGE, ROOT, BundleStore, Count
from launcher.errors import BackendError, JobNotFoundError

MOST_PARTS = 9000
"""S3 takes 10,000."""
DELETED_AT_ONCE = 1000
CHECKSUM = "SHA256"
"""Said when an upload begins, of every part, and of every part once more at the end: S3 refuses it otherwise, and
botocore's own default is another (CRC32, botocore 1.44.8).
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html (read 2026-11-25)
"""


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
        for item in self.listed(prefix):
            yield item["Key"], item["Size"]

    def listed(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Every object below `prefix` as S3 lists it: Key, Size, LastModified, ..."""
        doing = self.doing("listing", prefix)
        for page in self._aws.pages("s3", "list_objects_v2", doing, Bucket=self.bucket, Prefix=prefix):
            yield from page.get("Contents") or ()

    def dated(self, prefix: str) -> Iterator[tuple[str, datetime]]:
        """(key, when it was last written) of every object below `prefix`."""
        doing = self.doing("listing", prefix)
        for page in self._aws.pages("s3", "list_objects_v2", doing, Bucket=self.bucket, Prefix=prefix):
            yield from ((item["Key"], item["LastModified"]) for item in page.get("Contents") or ())

    def drop_bundle(self, sha256: str, token: str) -> None:
        super().drop_bundle(sha256, token)
        if not any(True for _ in self.keys(f"{ROOT}/uses/{sha256}/")):
            self.abort_uploads(f"{ROOT}/bundles/{sha256}/")

    def abort_uploads(self, prefix: str, before: datetime | None = None) -> int:
        """Give up uploads in parts below `prefix` that began before then, or all; how many. Parts cost money."""
        found = [
            upload
            for page in self._uploads(prefix, self.doing("listing uploads of", prefix))
            for upload in page.get("Uploads") or ()
            if before is None or upload["Initiated"] < before
        ]
        for upload in found:
            self._abort(upload["Key"], upload["UploadId"])
        return len(found)

    def sweep(self, before: datetime, is_job: Callable[[str], bool]) -> int:
        """Remove uploads broken off, marks of what is no job, and bundles without a mark, all from before then."""
        count = self.abort_uploads(f"{ROOT}/", before)
        for key, written in list(self.dated(f"{ROOT}/uses/")):
            sha256, _, token = key.removeprefix(f"{ROOT}/uses/").partition("/")
            if written < before and not is_job(token):
                self.withdraw(sha256, token)
                count += 1
        last: dict[str, datetime] = {}
        for key, written in self.dated(f"{ROOT}/bundles/"):
            sha256 = key.split("/")[2].removesuffix(".json")
            last[sha256] = max(written, last.get(sha256, written))
        used = {key.split("/")[2] for key, _ in self.keys(f"{ROOT}/uses/")}
        unused = [sha256 for sha256, written in last.items() if written < before and sha256 not in used]
        for sha256 in unused:
            self.drop_bundle(sha256, "nobody")
        return count + len(unused)

    def _uploads(self, prefix: str, doing: str) -> Iterator[dict[str, Any]]:
        return self._aws.pages("s3", "list_multipart_uploads", doing, Bucket=self.bucket, Prefix=prefix)

    def read_from(self, key: str, start: int) -> Iterator[bytes]:
        doing = self.doing("downloading", key)
        found = self._aws.call("s3", "get_object", doing, Bucket=self.bucket, Key=key, Range=f"bytes={start}-")
        with self._aws.errors(doing):
            yield from found["Body"].iter_chunks(2**20)

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), DELETED_AT_ONCE):
            objects = [{"Key": key} for key in keys[start : start + DELETED_AT_ONCE]]
            answer = self._aws.call(
                "s3", "delete_objects", self.doing("removing", keys[start]),
                Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True},
            )  # fmt: skip
            if errors := answer.get("Errors"):
                raise BackendError(
                    f"{errors[0]['Key']} could not be removed: {errors[0].get('Message')}",
                    "the same command again; launch setup sagemaker --advice shows the policy that is needed",
                )

    def send_small(self, file: BundleFile, key: str) -> None:
        """S3 itself compares the bytes with the hash."""
        content, checksum = self.content(file), _base64(bytes.fromhex(file.sha256))
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
        """Parts that an earlier try has sent are kept where their hash is the one of what is to be sent."""
        size = max(LARGE, math.ceil(file.size / MOST_PARTS))
        upload, sent = self._open_upload(key)
        asked: dict[str, Any] = {"Bucket": self.bucket, "Key": key, "UploadId": upload}
        doing, parts = self.doing("uploading", file.path), []
        for number, content in enumerate(self.parts(file, size, lambda: self._abort(key, upload)), 1):
            part: dict[str, Any] = {"PartNumber": number, "ChecksumSHA256": _base64(sha256(content).digest())}
            known = sent.get(number, {})
            if known.get("ChecksumSHA256") != part["ChecksumSHA256"]:
                known = self._aws.call("s3", "upload_part", doing, **asked, **part, Body=content)
            parts.append({**part, "ETag": known["ETag"]})
            moved.add(len(content))
        self._aws.call("s3", "complete_multipart_upload", doing, **asked, MultipartUpload={"Parts": parts})

    def _abort(self, key: str, upload: str) -> None:
        doing = self.doing("giving up", key)
        with contextlib.suppress(JobNotFoundError):
            self._aws.call("s3", "abort_multipart_upload", doing, Bucket=self.bucket, Key=key, UploadId=upload)

    def _open_upload(self, key: str) -> tuple[str, Mapping[int, Mapping[str, Any]]]:
        """(id, part number -> part) of the upload that was broken off, or of a new one."""
        doing = self.doing("uploading", key)
        for page in self._uploads(key, doing):
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


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
