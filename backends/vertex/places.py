"""Where a job's things are in the container, and the labels by which the job itself is found again."""

from __future__ import annotations

from backends.base import Site

MOUNTS = {"gs://": "/gcs/"}
"""Every bucket that the job's service account may read is mounted in every container by Cloud Storage FUSE.
https://cloud.google.com/vertex-ai/docs/training/cloud-storage-file-system
"""
JOB_LABEL, LINEAGE_LABEL, OWNER_LABEL = "finelaunch_job", "finelaunch_lineage", "finelaunch_owner"
OUR_LABELS = (JOB_LABEL, LINEAGE_LABEL, OWNER_LABEL)
DEFAULT_DISK_GIB = 100
"""Vertex's boot disk, and the least that is asked for here (DiskSpec, google-cloud-aiplatform 2.7.0)."""


def home(site: Site, root: str) -> str:
    """What is ours in the bucket: under `gs:/` as Cloud Storage has it, under `/gcs` as a container does."""
    return f"{root}/{site.need('bucket')}/finelaunch"
