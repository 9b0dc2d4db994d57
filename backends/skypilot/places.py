"""Where a SkyPilot job runs and where its files are: infra, the store, what is mounted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.base import Site
from backends.container import remote_uris
from launcher.errors import UnsupportedError
from launcher.spec import JobSpec

CLOUDS = (
    "aws", "azure", "gcp", "ibm", "lambda", "scp", "oci", "runpod", "vast", "vsphere", "cudo", "fluidstack",
    "paperspace", "primeintellect", "do", "nebius", "ssh", "slurm", "hyperbolic", "seeweb", "shadeform", "yotta",
    "mithril", "verda", "kubernetes", "k8s",
)  # fmt: skip
"""What `infra` may begin with: the pattern of sky/utils/schemas.py in SkyPilot 0.14.1."""
OWN = ("kubernetes", "k8s", "slurm", "ssh")
"""Machines of the user's own, not a cloud's."""
KUBERNETES = ("kubernetes", "k8s")
LABELLED = (*KUBERNETES, "ssh", "aws", "azure", "gcp", "mithril", "verda")
"""Where SkyPilot passes labels on: the templates in sky/templates that hold them (0.14.1)."""
FIXED_DISK = ("slurm", "lambda", "fluidstack", "hyperbolic", "ibm", "mithril", "shadeform", "vsphere")
"""Where SkyPilot sets no disk size: the templates that hold none, and Slurm, which does not read it (0.14.1)."""
STAYS_UP = ("hyperbolic", "primeintellect", "verda", "yotta")
"""Whose machines can't take themselves down: AUTODOWN in sky/clouds (0.14.1)."""
BUCKET = re.compile(r"(s3|gs)://[^/]+")
INPUT = "/launch/input"
STORE = "/launch/store"
MOUNTS = "/launch/mounts"


@dataclass(frozen=True, kw_only=True)
class Infra:
    """`text`: SkyPilot's `infra`, None: whatever is cheapest of what the user has; `cloud`: its first part."""

    text: str | None
    cloud: str | None

    @property
    def own(self) -> bool:
        return self.cloud in OWN

    @property
    def kubernetes(self) -> bool:
        return self.cloud in KUBERNETES


def infra(job: JobSpec, site: Site) -> Infra:
    """The account's infra, in the job's region; a region may also be a whole infra (gcp/us-central1)."""
    return infra_of(job.resources.region, site)


def infra_of(region: str | None, site: Site) -> Infra:
    """The account's infra in `region`."""
    text = site.get("infra")
    if region is not None:
        if region.partition("/")[0].casefold() in CLOUDS:
            text = region
        else:
            text = f"{text.partition('/')[0] if text else '*'}/{region}"
    head = text.partition("/")[0].casefold() if text else None
    return Infra(text=text, cloud=None if head in (None, "*") else head)


def refuse(job: JobSpec, where: Infra, managed: bool) -> None:
    """What this infra can't do. Raises UnsupportedError naming the field."""
    wanted, cloud = job.resources, where.cloud
    if wanted.spot and cloud == "slurm":
        raise UnsupportedError(
            "resources.spot: Slurm has no spot machines for SkyPilot", "--set resources.spot=false"
        )
    if wanted.disk_gib is not None and cloud in FIXED_DISK:
        raise UnsupportedError(
            f"resources.disk_gib: SkyPilot sets no disk on {cloud}", "--set resources.disk_gib=null"
        )
    if job.tags and cloud is not None and cloud not in LABELLED:
        raise UnsupportedError(
            f"tags: SkyPilot puts no labels on {cloud}", f"take tags out, or choose one of {', '.join(LABELLED)}"
        )
    if wanted.max_wait_hours is not None and not where.kubernetes:
        raise UnsupportedError(
            "resources.max_wait_hours: SkyPilot limits a job's wait on Kubernetes only",
            "--set resources.max_wait_hours=null, or --set resources.region=k8s",
        )
    if cloud in STAYS_UP and not managed:
        raise UnsupportedError(
            f"backend_options.skypilot.managed: a machine on {cloud} can't take itself down after the job",
            "--set backend_options.skypilot.managed=true: SkyPilot's controller then does",
        )
    _refuse_offline(job, where)


def _refuse_offline(job: JobSpec, where: Infra) -> None:
    if not job.resources.offline:
        return
    if not where.own:
        raise UnsupportedError(
            "resources.offline: SkyPilot's own set-up of a cloud's machine needs the internet",
            "choose another backend, or a cluster of your own: --set resources.region=k8s",
        )
    if job.resources.image is None:
        raise UnsupportedError(
            "resources.offline: without an image SkyPilot's machines have no torch",
            "--set resources.image=REGISTRY/NAME@sha256:... with Python >= 3.11 and torch >= 2.6",
        )


@dataclass(frozen=True, kw_only=True)
class Store:
    """The job's storage: a bucket (mounted whole, the only way SkyPilot mounts one) or a shared path.

    `inside`: the path at which the job has the store.
    """

    root: str
    inside: str

    @property
    def shared_path(self) -> bool:
        return self.root.startswith("/")

    def inputs(self, sha256: str) -> str:
        """Where the job reads its bundle; a bucket's is copied to the machine, its small files are read often."""
        return self.source(sha256) if self.shared_path else INPUT

    def source(self, sha256: str) -> str:
        """Where stage puts the bundle."""
        return f"{self.root}/finelaunch/bundles/{sha256}"

    def of_job(self, token: str, what: str) -> str:
        """A folder of the job `token`, as the job sees it."""
        return f"{self.inside}/finelaunch/jobs/{token}/{what}"


def store(site: Site) -> Store:
    """The site's store, its placeholder standing for a bucket."""
    root = site.need("store").rstrip("/")
    return Store(root=root, inside=root if root.startswith("/") else STORE)


def file_mounts(job: JobSpec, where: Store, sha256: str) -> tuple[dict[str, Any], dict[str, str]]:
    """SkyPilot's file_mounts, and URI prefix -> path for LAUNCH_MOUNTS.

    Mode MOUNT: MOUNT_CACHED uploads after the job's script in a step that `exec` would skip
    (get_rclone_flush_script in sky/backends/task_codegen.py), and a killed machine would lose what it has cached.
    SkyPilot mounts whole buckets only (Storage._validate_source in sky/data/storage.py).
    """
    mounts: dict[str, Any] = {}
    seen: dict[str, str] = {}
    if not where.shared_path:
        mounts[INPUT] = where.source(sha256)
        mounts[STORE] = {"source": where.root, "mode": "MOUNT"}
    for uri in remote_uris(job).values():
        found = BUCKET.match(uri)
        if found is None:
            continue  # the training process fetches it itself
        bucket = found.group()
        if bucket == where.root:
            seen[f"{bucket}/"] = STORE
            continue
        place = f"{MOUNTS}/{bucket.replace('://', '/')}"
        seen[f"{bucket}/"] = place
        mounts[place] = {"source": bucket, "mode": "MOUNT", "config": {"mount": {"read_only": True}}}
    return mounts, seen


def prefixes(mounts: Mapping[str, Any]) -> list[str]:
    """The places of the job's own data, for a person."""
    return [v["source"] for k, v in mounts.items() if k.startswith(MOUNTS) and isinstance(v, Mapping)]
