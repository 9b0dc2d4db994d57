"""Where a job's things are in the container, and the labels by which the job itself is found again."""

from __future__ import annotations

MOUNTS = {"gs://": "/gcs/"}
"""Every bucket that the job's service account may read is mounted in every container by Cloud Storage FUSE.
https://cloud.google.com/vertex-ai/docs/training/cloud-storage-file-system
"""
JOB_LABEL, LINEAGE_LABEL, OWNER_LABEL = "finelaunch_job", "finelaunch_lineage", "finelaunch_owner"
OUR_LABELS = (JOB_LABEL, LINEAGE_LABEL, OWNER_LABEL)
