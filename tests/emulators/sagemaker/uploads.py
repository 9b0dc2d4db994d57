"""S3's uploads in parts: their checksums, which moto forgets (told by ListParts, asked of each part and at
the end), and when they began, which is 2010 to moto.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html (read 2026-11-25)
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from moto.s3.exceptions import NoSuchUpload, S3ClientError
from moto.s3.models import FakeMultipart
from moto.s3.responses import S3Response

UPLOAD = re.compile(r"<Upload>.*?</Upload>", re.S)
INITIATED = re.compile(r"<Initiated>[^<]*")
NUMBER = re.compile(r"<PartNumber>(\d+)</PartNumber>")


def methods() -> dict[str, Callable[..., Any]]:
    """Replacements for methods of moto's class."""
    list_all, complete = S3Response.list_parts, S3Response._complete_multipart_body
    take, list_uploads, make = S3Response.upload_part, S3Response.list_multipart_uploads, FakeMultipart.__init__

    def upload_part(self: Any) -> Any:
        upload = _upload(self)
        if upload is None:
            raise NoSuchUpload(upload_id=self._get_param("uploadId"))
        if _is_checked(upload) and "x-amz-checksum-sha256" not in self.headers:
            raise S3ClientError(
                "InvalidRequest",
                "Checksum Type mismatch occurred, expected checksum Type: sha256, actual: another",
            )
        return take(self)

    def list_parts(self: Any) -> Any:
        status, headers, body = list_all(self)
        upload = _upload(self)
        if not _is_checked(upload):
            return status, headers, body
        text = body.decode() if isinstance(body, bytes) else body
        return status, headers, NUMBER.sub(lambda m: f"{m[0]}{_checksum(upload.parts[int(m[1])].value)}", text)

    def list_multipart_uploads(self: Any) -> Any:
        status, headers, body = list_uploads(self)
        known = self.backend.get_bucket(self.bucket_name).multiparts.values()
        began = {upload.id: upload.began for upload in known}

        def dated(match: re.Match[str]) -> str:
            at = next(at for id_, at in began.items() if f">{id_}<" in match[0])
            return INITIATED.sub(f"<Initiated>{at:%Y-%m-%dT%H:%M:%S.000Z}", match[0])

        return status, headers, UPLOAD.sub(dated, body.decode() if isinstance(body, bytes) else body)

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.began = datetime.now(UTC)

    FakeMultipart.__init__ = begin

    def complete_multipart_body(self: Any, body: bytes) -> Any:
        if _is_checked(_upload(self)) and body.count(b"<Part>") != body.count(b"<ChecksumSHA256>"):
            raise S3ClientError(
                "InvalidRequest",
                "The upload was created using a sha256 checksum. The complete request must include the checksum "
                "for each part.",
            )
        return complete(self, body)

    return {
        "upload_part": upload_part,
        "list_parts": list_parts,
        "list_multipart_uploads": list_multipart_uploads,
        "_complete_multipart_body": complete_multipart_body,
    }


def _upload(response: Any) -> Any:
    """None where there is none: moto's own answer says so."""
    bucket = response.backend.get_bucket(response.bucket_name)
    return bucket.multiparts.get(response._get_param("uploadId"))


def _is_checked(upload: Any) -> bool:
    return upload is not None and upload.metadata.get("x-amz-checksum-algorithm") == "SHA256"


def _checksum(value: bytes) -> str:
    return f"<ChecksumSHA256>{base64.b64encode(sha256(value).digest()).decode()}</ChecksumSHA256>"
