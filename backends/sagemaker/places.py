"""Where a job's things are: in the container, as SageMaker lays it out, and in the account's bucket.

https://docs.aws.amazon.com/sagemaker/latest/dg/model-train-storage-env-var-summary.html (read 2026-11-25)
"""

from __future__ import annotations

from typing import Any

from backends.base import Site
from backends.container import remote_uris
from launcher.spec import JobSpec

BASE = "/opt/ml"
CHANNELS = f"{BASE}/input/data"
"""A channel's files lie in the folder of its name."""
BUNDLE = "bundle"
INPUTS = f"{CHANNELS}/{BUNDLE}"
OUTPUTS = f"{BASE}/model"
"""What lies here at the end is the job's model to SageMaker and to everything that deploys or registers it."""
CHECKPOINTS = f"{BASE}/checkpoints"
"""Copied to the bucket while the job runs and back before it starts; nothing else outlives an interruption."""
MODEL_CACHE = f"{CHECKPOINTS}/model"
FAILURE = f"{BASE}/output/failure"
SCRATCH = "/tmp/finelaunch"
"""On the job's large volume, as everything of the table above is; the image's own disk may be full of it."""

OWN_TAGS = "finelaunch:"
JOB_TAG, LINEAGE_TAG, BUNDLE_TAG, OWNER_TAG = (f"{OWN_TAGS}{n}" for n in ("job", "lineage", "bundle", "owner"))

CHANNEL_OF = {"data.train": "train", "data.eval": "eval", "model.id": "model"}


def root(site: Site) -> str:
    """Everything of ours in the account's bucket."""
    return f"s3://{site.need('bucket')}/finelaunch"


def bundle_uri(site: Site, sha256: str) -> str:
    """A bundle's folder. It ends in a slash: SageMaker takes every object whose key begins so."""
    return f"{root(site)}/bundles/{sha256}/"


def output_root(site: Site) -> str:
    """SageMaker appends the job's name, and `output/model/` for the files of OUTPUTS."""
    return f"{root(site)}/jobs"


def output_key(token: str) -> str:
    """What the keys of the files of OUTPUTS begin with after the job."""
    return f"finelaunch/jobs/{token}/output/model/"


def output_uri(site: Site, token: str) -> str:
    """The folder in which the files of OUTPUTS are after the job."""
    return f"s3://{site.need('bucket')}/{output_key(token)}"


def checkpoints_uri(site: Site, lineage: str) -> str:
    """The checkpoints that a job shares with its resumes."""
    return f"{root(site)}/jobs/{lineage}/checkpoints"


def channels(job: JobSpec, site: Site, sha256: str) -> list[dict[str, Any]]:
    """The bundle, then the job's data and model in S3, each copied whole to every node."""
    found = {BUNDLE: bundle_uri(site, sha256)}
    for uri, name in _own_storage(job).items():
        # A model is a folder: not the objects of llama-2 too.
        found[name] = f"{uri.rstrip('/')}/" if name == CHANNEL_OF["model.id"] else uri
    return [_channel(name, uri) for name, uri in found.items()]


def mounts(job: JobSpec) -> dict[str, str]:
    """URI -> the folder where the container has it."""
    return {uri: f"{CHANNELS}/{name}" for uri, name in _own_storage(job).items()}


def _own_storage(job: JobSpec) -> dict[str, str]:
    """URI in S3 -> its channel; what the training process reads itself is not here."""
    found: dict[str, str] = {}
    for field, uri in remote_uris(job).items():
        if uri.startswith("s3://"):
            found.setdefault(uri, CHANNEL_OF[field])
    return found


def _channel(name: str, uri: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": "File"}
