"""The vertex backend: a job as the JSON body of customJobs.create.

https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.customJobs/create
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.base import Bundle, Capabilities, ContainerContract, Fact, Plan, Problem, Site
from backends.capabilities import refuse_unsupported
from backends.container import (
    hard_stop_s,
    launch_env,
    merged,
    model_in_bundle,
    refuse_offline_downloads,
)
from backends.vertex import identity, machines, policies, words
from backends.vertex.account import Account, facts_of
from backends.vertex.checks import FLEX_LIMIT_S, MOST_LABEL, check_request, is_label
from backends.vertex.contract import contract
from backends.vertex.google import Google
from backends.vertex.jobs import VertexJobs, scope_of
from backends.vertex.places import (
    DEFAULT_DISK_GIB,
    JOB_LABEL,
    LINEAGE_LABEL,
    MOUNTS,
    OUR_LABELS,
    OWNER_LABEL,
    home,
)
from cost.offers import Offer
from launcher.errors import ConfigError, UnsupportedError
from launcher.spec import JobSpec, Resources

COMMAND = ("python3", "-m", "train_entry")
"""No shell: the process is PID 1 and gets Vertex's SIGTERM."""
PREBUILT = re.compile(r"^(?:[a-z]+-docker\.pkg\.dev/vertex-ai|(?:[a-z]+\.)?gcr\.io/cloud-aiplatform)/training/")
"""Google's own training images end with Python 3.10 and torch 2.4 and are withdrawn since 2026-07-24.
https://cloud.google.com/vertex-ai/docs/training/pre-built-containers (read 2026-11-23)
"""
OURS = frozenset(
    [
        *("parent", "customJob.displayName", "customJob.jobSpec.baseOutputDirectory"),
        *(f"customJob.labels.{name}" for name in OUR_LABELS),
        *(
            f"customJob.jobSpec.scheduling.{name}"
            for name in ("timeout", "strategy", "maxWaitDuration", "restartJobOnWorkerRestart")
        ),
    ]
)
POOL_OURS = frozenset(
    (
        "replicaCount", "pythonPackageSpec", "machineSpec.acceleratorType", "machineSpec.acceleratorCount",
        "containerSpec.imageUri", "containerSpec.command", "containerSpec.args", "containerSpec.env",
        "diskSpec.bootDiskSizeGb",
    )
)  # fmt: skip
"""What the job file has fields for, and what finds the job and its files again."""
SEGMENT = r"[A-Za-z0-9_-]+"
PROJECT = r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]"
REGION = r"[a-z]+-[a-z]+\d+"


class VertexBackend(VertexJobs):
    """Vertex AI custom training (serverless training)."""

    name = "vertex"
    capabilities = Capabilities(spot=True, multi_node=True, dry_run=True, poll_s=10.0, drain_s=60.0)
    facts: tuple[Fact, ...] = (
        Fact(name="project", what="Google Cloud project id", example="my-project", pattern=PROJECT),
        Fact(name="region", what="region of the jobs", example="us-central1", pattern=REGION),
        Fact(
            name="bucket", what="Cloud Storage bucket for bundles, outputs and checkpoints, in that region",
            example="my-training-bucket", pattern=r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]",
        ),
        Fact(
            name="service_account", what="service account that the jobs run as",
            example="trainer@my-project.iam.gserviceaccount.com",
            pattern=r"[a-z0-9-]+@[a-z0-9.-]+\.gserviceaccount\.com",
        ),
        Fact(
            name="image", what="training image that you built with docker/Dockerfile, best by digest",
            example="us-central1-docker.pkg.dev/my-project/finelaunch/train:1",
            pattern=r"[\w.-]+(?::\d+)?(?:/[\w.-]+)+(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?",
        ),
        Fact(
            name="network", what="VPC network to peer with, by project number", required=False,
            example="projects/123456789012/global/networks/training",
            pattern=rf"projects/\d+/global/networks/{SEGMENT}",
        ),
        Fact(
            name="kms_key", what="Cloud KMS key, in the jobs' region, that encrypts what a job keeps",
            required=False,
            example="projects/my-project/locations/us-central1/keyRings/training/cryptoKeys/jobs",
            pattern=rf"projects/{PROJECT}/locations/[a-z0-9-]+/keyRings/{SEGMENT}/cryptoKeys/{SEGMENT}",
        ),
    )  # fmt: skip

    def check(self, site: Site, plan: Plan | None = None) -> list[Problem]:
        project, region = site.get("project"), site.get("region")
        if plan is not None:
            region, _, project = scope_of(plan.request["parent"]).partition(".")
        return Account(Google(project, region)).problems(site, plan) if project and region else []

    def signed_in(self, site: Site) -> str:
        return identity.signed_in(Google(site.need("project"), site.get("region") or "global"))

    def find_facts(self, known: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        return facts_of(known)

    def advice(self, known: Mapping[str, str]) -> str:
        return policies.advice(known)

    def contract(self, plan: Plan, root: Path, node: int) -> ContainerContract:
        return contract(plan, root, node)

    def offers(self, resources: Resources) -> Iterable[Offer]:
        return machines.offers(self.name, resources)

    def render(
        self, job: JobSpec, offer: Offer, bundle: Bundle, site: Site, token: str, lineage: str
    ) -> Mapping[str, Any]:
        refuse_unsupported(job, self.name, self.capabilities)
        _refuse_impossible(job)
        refuse_offline_downloads(job, MOUNTS | model_in_bundle(bundle))
        region = job.resources.region or site.need("region")
        body: dict[str, Any] = {
            "displayName": token,
            "labels": _labels(job, site, token, lineage),
            "jobSpec": {
                "workerPoolSpecs": _pools(job, offer, bundle, site, token, lineage),
                "scheduling": _scheduling(job),
                "serviceAccount": site.need("service_account"),
                "baseOutputDirectory": {"outputUriPrefix": f"{home(site, 'gs:/')}/jobs/{token}/output"},
            },
        }
        if network := site.get("network"):
            body["jobSpec"]["network"] = network
        if key := site.get("kms_key"):
            body["encryptionSpec"] = {"kmsKeyName": key}
        request = {"parent": f"projects/{site.need('project')}/locations/{region}", "customJob": body}
        return _with_options(request, job.backend_options.get(self.name, {}), job.tags)

    def validate(self, request: Mapping[str, Any]) -> None:
        check_request(request, self.facts)

    def explain(self, plan: Plan) -> Sequence[tuple[str, str]]:
        return words.explain(plan)


def _refuse_impossible(job: JobSpec) -> None:
    """What Vertex's fields can't say, by the name of the job's field."""
    wanted = job.resources
    if wanted.region is not None and not re.fullmatch(REGION, wanted.region):
        raise UnsupportedError(
            f"resources.region: {wanted.region!r} is no Google Cloud region", "--set resources.region=us-central1"
        )
    if wanted.max_wait_hours is None:
        return
    if wanted.spot:
        raise UnsupportedError(
            "resources.max_wait_hours: Vertex limits the wait in strategy FLEX_START only, which is not spot",
            "set resources.spot: false (flex-start is discounted too), or leave max_wait_hours out",
        )
    if hard_stop_s(job) > FLEX_LIMIT_S:
        raise UnsupportedError(
            "resources.max_hours: a job with max_wait_hours (FLEX_START) runs 7 days at most",
            "--set resources.max_hours=167, or leave max_wait_hours out",
        )


def _labels(job: JobSpec, site: Site, token: str, lineage: str) -> dict[str, str]:
    """The tags as labels, as they are: one that Vertex does not take is refused, not rewritten."""
    for key, value in job.tags.items():
        if key in OUR_LABELS:
            raise ConfigError(f"tags.{key}: launch itself sets this label", "choose another name")
        if not is_label(key, value):
            raise UnsupportedError(
                f"tags.{key}: {value!r} can't be a label on Vertex",
                "use lower-case letters, digits, - and _, at most 63; a name begins with a letter",
            )
    labels = {JOB_LABEL: token, LINEAGE_LABEL: lineage, **job.tags}
    if site.owner:
        labels[OWNER_LABEL] = re.sub(r"[^a-z0-9_-]", "-", site.owner.lower())[:MOST_LABEL]
    return labels


def _pools(
    job: JobSpec, offer: Offer, bundle: Bundle, site: Site, token: str, lineage: str
) -> list[dict[str, Any]]:
    """Pool 0 is the first node (Vertex wants exactly one replica there), pool 1 the others."""
    pool: dict[str, Any] = {
        "machineSpec": {
            "machineType": offer.instance_type,
            "acceleratorType": machines.accelerator_of(offer),
            "acceleratorCount": offer.gpus,
        },
        "replicaCount": 1,
        "containerSpec": {
            "imageUri": _image(job, site),
            "command": list(COMMAND),
            "env": _environment(job, offer, bundle, site, token, lineage),
        },
    }
    if job.resources.disk_gib is not None:
        pool["diskSpec"] = {"bootDiskSizeGb": max(DEFAULT_DISK_GIB, job.resources.disk_gib)}
    others = job.resources.nodes - 1
    return [pool, {**pool, "replicaCount": others}] if others else [pool]


def _image(job: JobSpec, site: Site) -> str:
    image = job.resources.image or site.need("image")
    if PREBUILT.match(image):
        field = "resources.image" if job.resources.image else "site.vertex.image"
        raise UnsupportedError(
            f"{field}: Google's prebuilt training images end with Python 3.10 and torch 2.4; "
            "the job needs Python 3.11 and torch 2.6",
            "build docker/Dockerfile and name that image (docs/container.md, Images)",
        )
    return image


def _environment(
    job: JobSpec, offer: Offer, bundle: Bundle, site: Site, token: str, lineage: str
) -> list[dict[str, str]]:
    place = home(site, "/gcs")
    project = site.need("project")
    env = launch_env(
        job, token,
        gpus=offer.gpus,
        inputs=f"{place}/bundles/{bundle.sha256}",
        outputs=f"{place}/jobs/{token}/output",
        checkpoints=f"{place}/jobs/{lineage}/checkpoints",
        model_cache=f"{place}/models",
        mounts=MOUNTS,
        secrets={name: f"gcp-sm://{project}/{name}" for name in job.secrets},
    )  # fmt: skip
    # A GPU image may lack nvidia-smi on its PATH; and __pycache__ would be written into the bundle's bucket.
    env = {"LAUNCH_PROCESSES": str(offer.gpus), "PYTHONDONTWRITEBYTECODE": "1", **env}
    # Vertex replaces $(NAME) in a value; $$( is a plain $( (EnvVar, google-cloud-aiplatform 2.7.0).
    for name, value in job.env.items():
        if "$$" in value:
            raise UnsupportedError(
                f"env.{name}: Vertex reads $$ in a value as a mark of its own",
                "write the value without $$, or read it from a file in the job",
            )
    return [{"name": name, "value": value.replace("$(", "$$(")} for name, value in sorted(env.items())]


def _scheduling(job: JobSpec) -> dict[str, Any]:
    wanted = job.resources
    strategy = "SPOT" if wanted.spot else "STANDARD" if wanted.max_wait_hours is None else "FLEX_START"
    # Without a timeout Vertex stops a job after 7 days only.
    scheduling: dict[str, Any] = {"timeout": f"{hard_stop_s(job)}s", "strategy": strategy}
    if wanted.max_wait_hours is not None:
        scheduling["maxWaitDuration"] = f"{max(1, round(wanted.max_wait_hours * 3600))}s"
    if wanted.nodes > 1:  # the nodes' process group can't take back a node that was started again
        scheduling["restartJobOnWorkerRestart"] = True
    return scheduling


def _with_options(request: Mapping[str, Any], options: Mapping[str, Any], tags: Iterable[str]) -> dict[str, Any]:
    """The user's raw fields over the request; those under workerPoolSpecs go over every pool."""
    _refuse_second_spelling(options, "backend_options.vertex")
    rest, pool = _without_pools(options)
    whole = merged(request, rest, OURS | {f"customJob.labels.{tag}" for tag in tags})
    if pool:
        spec = whole["customJob"]["jobSpec"]
        pools = [merged(p, pool, POOL_OURS) for p in spec["workerPoolSpecs"]]
        whole["customJob"] = {**whole["customJob"], "jobSpec": {**spec, "workerPoolSpecs": pools}}
    return whole


def _refuse_second_spelling(options: Mapping[str, Any], at: str) -> None:
    """The API also takes display_name for displayName, and of the two the later one: ours would not count."""
    for name, value in options.items():
        if "_" in str(name):
            head, *rest = str(name).split("_")
            raise ConfigError(
                f"{at}.{name}: fields are written as in the REST API",
                f"write {head}{''.join(part.capitalize() for part in rest)}",
            )
        if isinstance(value, Mapping) and name != "labels":
            _refuse_second_spelling(value, f"{at}.{name}")


def _without_pools(options: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(options without workerPoolSpecs, what stands there)."""
    body = options.get("customJob", {})
    spec = body.get("jobSpec", {}) if isinstance(body, Mapping) else None
    if not isinstance(spec, Mapping):
        raise ConfigError(
            "backend_options.vertex: customJob and customJob.jobSpec are mappings",
            "launch plan --backend vertex --json shows what they are laid over",
        )
    if "workerPoolSpecs" not in spec:
        return options, {}
    pool = spec["workerPoolSpecs"]
    if not isinstance(pool, Mapping):
        raise ConfigError(
            "backend_options.vertex.customJob.jobSpec.workerPoolSpecs: the list of pools is set by launch itself",
            "write a mapping, such as {machineSpec: {machineType: g2-standard-32}}: it is laid over every pool",
        )
    others = {key: value for key, value in spec.items() if key != "workerPoolSpecs"}
    return {**options, "customJob": {**body, "jobSpec": others}}, pool
