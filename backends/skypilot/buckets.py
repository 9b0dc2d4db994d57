"""Buckets of AWS and Google as the store of SkyPilot jobs: reached as the user, mounted by the nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from backends.sagemaker.aws import Aws, usual_region
from backends.sagemaker.storage import Storage as S3Storage
from backends.skypilot.stores import JobStore, Kept
from backends.vertex.google import Google
from backends.vertex.storage import Storage as GoogleStorage
from launcher.errors import ConfigError

ANY_REGION = "us-east-1"
"""Where S3 is asked when the user's profile names none; it says by itself where a bucket is."""


class S3Bucket(S3Storage, JobStore):
    """A bucket in S3."""

    def __init__(self, bucket: str) -> None:
        super().__init__(Aws(_region()), bucket)

    def look(self, prefix: str) -> Iterator[Kept]:
        for item in self.listed(prefix):
            if not item["Key"].endswith("/"):  # a mount's mark of a folder
                yield Kept(key=item["Key"], size=item["Size"], age_s=_age_s(item["LastModified"]))


class GoogleBucket(GoogleStorage, JobStore):
    """A bucket in Cloud Storage."""

    def __init__(self, bucket: str) -> None:
        super().__init__(Google(project="", region=""), bucket)

    def look(self, prefix: str) -> Iterator[Kept]:
        for blob in self.listed(prefix):
            if not blob.name.endswith("/"):
                yield Kept(key=blob.name, size=int(blob.size), age_s=_age_s(blob.updated))


BUCKETS: dict[str, Callable[[str], JobStore]] = {"s3": S3Bucket, "gs": GoogleBucket}
"""Scheme of the store -> who opens it."""


def _region() -> str:
    try:
        return usual_region()
    except ConfigError:
        return ANY_REGION


def _age_s(moment: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - moment).total_seconds())
