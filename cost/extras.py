"""What a job costs beside its machines: disks, the bucket that keeps its results, and bringing them home.

Public list prices of US regions, read 2026-11-25. Small beside the machines; for a small model on a cheap GPU they
are what is left of the bill.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cost.phases import STATE_BYTES, Hours, result_gb
from cost.recipe import Recipe
from cost.work import Work

HOURS_A_MONTH = 730.0
KEPT_MONTHS = 1.0
"""How long results are assumed to lie in the bucket; launch release removes them."""


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """US dollars a GB: out to the internet, a month in a bucket, a month on a disk (None: not known)."""

    egress: float
    bucket: float
    disk: float | None
    disk_gib: int = 0
    """Disk of one machine when the job names none; 0: the machine's own, not billed apart."""


CLOUDS: Mapping[str, Cloud] = {
    "sagemaker": Cloud(egress=0.09, bucket=0.023, disk=0.14),
    "aws": Cloud(egress=0.09, bucket=0.023, disk=0.08, disk_gib=256),
    "gcp": Cloud(egress=0.12, bucket=0.020, disk=0.10, disk_gib=256),
    "vertex": Cloud(egress=0.12, bucket=0.020, disk=0.196, disk_gib=100),
    "azureml": Cloud(egress=0.087, bucket=0.018, disk=0.154, disk_gib=128),
    "azure": Cloud(egress=0.087, bucket=0.018, disk=0.154, disk_gib=256),
    "lambda": Cloud(egress=0.09, bucket=0.023, disk=0.0),
    "runpod": Cloud(egress=0.09, bucket=0.023, disk=0.10, disk_gib=256),
    "nebius": Cloud(egress=0.09, bucket=0.023, disk=None, disk_gib=256),
}  # fmt: skip
"""SageMaker's GPU machines bring NVMe disks. Vertex: 0.0002678 an hour for SSD, fee included (a bill, 2025-08).
https://aws.amazon.com/s3/pricing/ https://aws.amazon.com/ebs/pricing/ https://cloud.google.com/storage/pricing
https://cloud.google.com/compute/disks-image-pricing https://azure.microsoft.com/pricing/details/bandwidth/
https://azure.microsoft.com/pricing/details/managed-disks/ (P10). Machines of lambda, runpod and nebius keep their
results in a bucket of yours, counted as S3."""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """One further item of the bill, in US dollars; `dollars` None: not known."""

    what: str
    dollars: float | None
    less: float = 0.0
    """Share by which it may be less."""


def extras_of(work: Work, recipe: Recipe, hours: Hours, backend: str, provider: str) -> Iterator[Extra]:
    """Disks while the job runs, a month in the bucket, one download. Your own machine has none of them.

    Example: an adapter of 0.17 GB and two checkpoints of 0.50 GB on SageMaker: 1.17 GB x $0.023 = $0.027 in the
    bucket, 0.17 GB x $0.09 = $0.015 out; no disk.
    """
    if work.judged_elsewhere:
        yield Extra(what=f"judging the rows of {work.judged_elsewhere}", dollars=None)
    cloud = CLOUDS.get(backend) or CLOUDS.get(provider)
    if backend == "local":
        return
    if cloud is None:
        yield Extra(what=f"disk, bucket and transfer of {provider}", dollars=None)
        return
    size = cloud.disk_gib and (work.job.resources.disk_gib or cloud.disk_gib)
    if size and cloud.disk is None:
        yield Extra(what=f"the disk at {provider}", dollars=None)
    elif size and cloud.disk:
        used = size * cloud.disk * hours.expected / HOURS_A_MONTH * recipe.nodes
        yield Extra(what=f"a disk of {size} GiB", dollars=used)
    result = result_gb(work, recipe)
    kept = result + work.job.train.keep_checkpoints * recipe.trained * STATE_BYTES / 1e9
    if work.job.model.cache:
        kept += 2.0 * work.shape.params / 1e9
    yield Extra(what=f"a month of {kept:.1f} GB in the bucket", dollars=kept * cloud.bucket * KEPT_MONTHS)
    # Clouds give the first 100 GB a month away, to an account that has not used them up.
    yield Extra(what=f"download of {result:.1f} GB", dollars=result * cloud.egress, less=1.0)
