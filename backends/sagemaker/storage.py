"""The backend's bucket: bundles under their hash, a folder a job; uploads that go on where they were broken off.

finelaunch/bundles/SHA/PATH          the files of a bundle, as the job's input channel has them
finelaunch/bundles/SHA.json          its list of files, written last: with it the bundle is whole
finelaunch/uses/SHA/TOKEN            a job that needs the bundle
finelaunch/large/SHA256              the key under which a large file lies, so that another bundle copies it there
finelaunch/jobs/TOKEN/...            record.json, and what the job itself writes
"""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from backends.base import Bundle, BundleFile, Moved, Progress
from backends.sagemaker.aws import Aws
from launcher.errors import BackendError, JobNotFoundError

ROOT = "finelaunch"
LARGE = 16 * 2**20
"""From this many bytes on a file is sent in parts, and found again in other bundles."""
MOST_PARTS = 9000
"""S3 takes 10,000."""
WORKERS = 4
DELETED_AT_ONCE = 1000


class Storage:
    """One bucket, through one region's clients. `kms_key` encrypts what is written, where it is set."""

    def __init__(self, aws: Aws, bucket: str, kms_key: str | None = None) -> None:
        self._aws = aws
        self.bucket = bucket
        self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}

    def put_bundle(self, bundle: Bundle, token: str, progress: Progress) -> None:
        """Upload what is not there yet. Raises BackendError when a file is neither there nor here."""
        self.put(f"{ROOT}/uses/{bundle.sha256}/{token}", b"")  # first: so that nobody removes it meanwhile
        home = f"{ROOT}/bundles/{bundle.sha256}"
        there = {key: size for key, size in self.keys(f"{home}/")}
        missing = [f for f in bundle.files if there.get(f"{home}/{f.path}") != f.size]
        total, known = bundle.size, bundle.size - sum(f.size for f in missing)
        moved = _Count(known, total, progress)
        if missing:
            progress(f"{len(missing)} of {len(bundle.files)} files to send to s3://{self.bucket}/{home}/")
        with ThreadPoolExecutor(WORKERS) as pool:
            for done in [pool.submit(self._send, file, f"{home}/{file.path}", moved) for file in missing]:
                done.result()
        listed = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in bundle.files]
        if missing or self.get(f"{home}.json") is None:
            self.put(f"{home}.json", json.dumps(listed).encode())

    def put(self, key: str, content: bytes) -> None:
        self._aws.call("s3", "put_object", self._doing("writing", key), Bucket=self.bucket, Key=key, Body=content,
                       **self._encryption)  # fmt: skip

    def get(self, key: str) -> bytes | None:
        """An object's bytes, None where there is none."""
        try:
            found = self._aws.call("s3", "get_object", self._doing("reading", key), Bucket=self.bucket, Key=key)
        except JobNotFoundError:
            return None
        with self._aws.errors(self._doing("reading", key)):
            content: bytes = found["Body"].read()
        return content

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every object below `prefix`."""
        doing = self._doing("listing", prefix)
        for page in self._aws.pages("s3", "list_objects_v2", doing, Bucket=self.bucket, Prefix=prefix):
            for item in page.get("Contents") or ():
                yield item["Key"], item["Size"]

    def fetch(self, key: str, to: Path, size: int) -> None:
        """Download an object to `to`, going on behind the bytes of `.NAME.part` that an earlier try left."""
        part = to.with_name(f".{to.name}.part")
        to.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            have = 0
        if have < size:
            found = self._aws.call(
                "s3", "get_object", self._doing("downloading", key),
                Bucket=self.bucket, Key=key, Range=f"bytes={have}-",
            )  # fmt: skip
            with self._aws.errors(self._doing("downloading", key)), part.open("ab") as file:
                for chunk in found["Body"].iter_chunks(2**20):
                    file.write(chunk)
        elif not part.exists():
            part.touch()
        part.replace(to)

    def remove(self, prefix: str) -> None:
        """Delete every object below `prefix`."""
        found = [key for key, _ in self.keys(prefix)]
        for start in range(0, len(found), DELETED_AT_ONCE):
            objects = [{"Key": key} for key in found[start : start + DELETED_AT_ONCE]]
            answer = self._aws.call(
                "s3", "delete_objects", self._doing("removing", prefix),
                Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True},
            )  # fmt: skip
            if errors := answer.get("Errors"):
                raise BackendError(
                    f"{errors[0]['Key']} could not be removed: {errors[0].get('Message')}",
                    "the same command again; launch setup sagemaker --advice shows the policy that is needed",
                )

    def drop_bundle(self, sha256: str, token: str) -> None:
        """The job needs its bundle no more; the last one to say so removes it."""
        self.remove(f"{ROOT}/uses/{sha256}/{token}")
        if not any(True for _ in self.keys(f"{ROOT}/uses/{sha256}/")):
            self.remove(f"{ROOT}/bundles/{sha256}.json")  # first: a half-removed bundle is not whole
            self.remove(f"{ROOT}/bundles/{sha256}/")

    def _send(self, file: BundleFile, key: str, moved: _Count) -> None:
        if file.size < LARGE:
            self._send_small(file, key)
            moved.add(file.size)
            return
        pointer = f"{ROOT}/large/{file.sha256}"
        if not self._copy(pointer, key, file.size):
            self._send_parts(file, key, moved)
            self.put(pointer, key.encode())
        else:
            moved.add(file.size)

    def _send_small(self, file: BundleFile, key: str) -> None:
        """S3 itself compares the bytes with the hash."""
        content = self._source(file).read_bytes()
        checksum = base64.b64encode(bytes.fromhex(file.sha256)).decode()
        self._aws.call(
            "s3", "put_object", self._doing("uploading", file.path),
            Bucket=self.bucket, Key=key, Body=content, ChecksumSHA256=checksum, **self._encryption,
        )  # fmt: skip

    def _copy(self, pointer: str, key: str, size: int) -> bool:
        """Copy the file from another bundle, inside S3; False when it lies in none."""
        other = (self.get(pointer) or b"").decode()
        if not other:
            return False
        if dict(self.keys(other)).get(other) != size:
            return False
        with self._aws.errors(self._doing("copying", other)):
            self._aws.client("s3").copy(
                {"Bucket": self.bucket, "Key": other}, self.bucket, key, ExtraArgs=self._encryption or None
            )
        return True

    def _send_parts(self, file: BundleFile, key: str, moved: _Count) -> None:
        """Parts that an earlier try has sent are kept: the key stands for the content, so equal size is equal."""
        part_size = max(LARGE, math.ceil(file.size / MOST_PARTS))
        upload, sent = self._open_upload(key)
        parts = []
        with self._source(file).open("rb") as source:
            for number in range(1, math.ceil(file.size / part_size) + 1):
                size = min(part_size, file.size - (number - 1) * part_size)
                known = sent.get(number)
                if known is None or known["Size"] != size:
                    source.seek((number - 1) * part_size)
                    known = self._aws.call(
                        "s3", "upload_part", self._doing("uploading", file.path),
                        Bucket=self.bucket, Key=key, UploadId=upload, PartNumber=number, Body=source.read(size),
                    )  # fmt: skip
                parts.append({"PartNumber": number, "ETag": known["ETag"]})
                moved.add(size)
        self._aws.call(
            "s3", "complete_multipart_upload", self._doing("uploading", file.path),
            Bucket=self.bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts},
        )  # fmt: skip

    def _open_upload(self, key: str) -> tuple[str, Mapping[int, Mapping[str, Any]]]:
        """(id, part number -> part) of the upload that was broken off, or of a new one."""
        doing = self._doing("uploading", key)
        for page in self._aws.pages("s3", "list_multipart_uploads", doing, Bucket=self.bucket, Prefix=key):
            for upload in page.get("Uploads") or ():
                if upload["Key"] == key:
                    asked = {"Bucket": self.bucket, "Key": key, "UploadId": upload["UploadId"]}
                    found = [
                        part
                        for page in self._aws.pages("s3", "list_parts", doing, **asked)
                        for part in page.get("Parts") or ()
                    ]
                    return upload["UploadId"], {part["PartNumber"]: part for part in found}
        made = self._aws.call(
            "s3", "create_multipart_upload", doing, Bucket=self.bucket, Key=key, **self._encryption
        )
        return made["UploadId"], {}

    def _source(self, file: BundleFile) -> Path:
        if file.source is None:
            raise BackendError(
                f"{file.path} of this bundle is no longer in s3://{self.bucket}, and not on this machine",
                "launch run with the job file",
            )
        return file.source

    def _doing(self, what: str, key: str) -> str:
        return f"{what} s3://{self.bucket}/{key}" if "/" in key else f"{what} {key}"


class _Count:
    """Bytes moved so far, told as they come; workers share it."""

    def __init__(self, done: int, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = done, total, progress
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._progress(Moved("uploading", self._done, self._total))
