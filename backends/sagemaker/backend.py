"""The sagemaker backend: a job as the request of boto3's create_training_job.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTrainingJob.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.base import Bundle, Capabilities, ContainerContract, Fact, Plan, Problem, Site
from backends.capabilities import refuse_unsupported
from backends.container import (
    DIGEST,
    hard_stop_s,
    launch_env,
    max_hours,
    merged,
    model_in_bundle,
    raw_field,
    refuse_offline_downloads,
)
from backends.sagemaker import images, machines, places, policies
from backends.sagemaker.account import Account
from backends.sagemaker.aws import usual_region
from backends.sagemaker.checks import LONGEST_S, check_request, is_tag
from backends.sagemaker.contract import contract
from backends.sagemaker.jobs import SageMakerJobs, region_of
from backends.sagemaker.places import BUNDLE_TAG, JOB_TAG, LINEAGE_TAG, OWN_TAGS, OWNER_TAG
from cost.offers import Offer
from launcher.errors import ConfigError, UnsupportedError
from launcher.spec import JobSpec, Resources

COMMAND = ("python3", "-m", "train_entry")
"""No shell: the process is PID 1 and gets SageMaker's SIGTERM, 120 seconds before SIGKILL."""
VOLUME_GB = 30
"""What AWS's own SDK asks for, on machines that are not known to bring an NVMe disk: there it has no meaning."""
RETRIES = 3
"""After a failure of SageMaker's own (InternalServerError); the job goes on from its checkpoints."""
WAIT_HOURS = 24.0
"""How long a spot job without max_wait_hours waits for capacity, all its waits together: it must say a number."""
LEAST_PENDING_S = 1800
"""MaxPendingTimeInSeconds (botocore 1.44.8)."""
MOST_TYPES = 5
"""InstancePreferences (botocore 1.44.8)."""
OURS = frozenset(
    [
        *("TrainingJobName", "InputDataConfig", "CheckpointConfig", "Tags"),
        *("OutputDataConfig.S3OutputPath", "OutputDataConfig.CompressionType"),
        *("EnableManagedSpotTraining", "EnableNetworkIsolation", "Environment.PYTHONPATH"),
        *(f"AlgorithmSpecification.{n}" for n in ("TrainingImage", "ContainerEntrypoint", "ContainerArguments")),
        *(
            f"Environment.LAUNCH_{name}"
            for name in (
                "JOB_ID", "INPUT_DIR", "OUTPUT_DIR", "CHECKPOINT_DIR", "MAX_HOURS", "MOUNTS", "SECRETS",
                "MODEL_CACHE", "OFFLINE", "FAILURE_FILE",
            )
        ),
    ]
)  # fmt: skip
"""What the job file has fields for, what makes submit idempotent, and where things are found again."""
REGION = r"[a-z]{2,4}(?:-[a-z]+)+-\d"


class SageMakerBackend(SageMakerJobs):
    """Amazon SageMaker training jobs."""

    name = "sagemaker"
    capabilities = Capabilities(spot=True, multi_node=True, dry_run=True, fallback=True, poll_s=5.0, drain_s=60.0)
    facts: tuple[Fact, ...] = (
        Fact(
            name="role", what="IAM role that the jobs run as",
            example="arn:aws:iam::123456789012:role/finelaunch-training",
            pattern=r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+",
        ),
        Fact(
            name="bucket", what="S3 bucket for bundles, outputs and checkpoints, in the jobs' region",
            example="my-training-bucket", pattern=r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
        ),
        Fact(name="region", what="region of the jobs", example="us-east-1", pattern=REGION),
        Fact(
            name="subnets", what="subnets of your VPC that the jobs join, with commas between", required=False,
            example="subnet-0123456789abcdef0", pattern=r"subnet-[0-9a-f]+(?:,subnet-[0-9a-f]+)*",
        ),
        Fact(
            name="security_groups", what="security groups of the jobs in that VPC, with commas between",
            required=False, example="sg-0123456789abcdef0", pattern=r"sg-[0-9a-f]+(?:,sg-[0-9a-f]+)*",
        ),
        Fact(
            name="kms_key", what="KMS key that encrypts what a job leaves in the bucket", required=False,
            example="arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            pattern=r"[a-zA-Z0-9:/_-]{1,2048}",
        ),
        Fact(
            name="image", what="training image of your own, best by digest, in place of AWS's", required=False,
            example="123456789012.dkr.ecr.us-east-1.amazonaws.com/finelaunch/train:1",
            pattern=r"[\w.-]+(?::\d+)?(?:/[\w.-]+)+(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?",
        ),
    )  # fmt: skip

    def check(self, site: Site, plan: Plan | None = None) -> list[Problem]:
        region = site.get("region") if plan is None else region_of(plan.job, site)
        return Account(self._aws(region)).problems(site, plan) if region else []

    def signed_in(self, site: Site) -> str:
        return Account(self._aws(site.get("region") or usual_region())).signed_in()

    def find_facts(self, known: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        return Account(self._aws(known.get("region") or usual_region())).facts()

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
        mounts = places.mounts(job)
        refuse_offline_downloads(job, mounts | model_in_bundle(bundle))
        algorithm = _algorithm(job, site)
        request: dict[str, Any] = {
            "TrainingJobName": token,
            "AlgorithmSpecification": algorithm,
            "RoleArn": site.need("role"),
            "InputDataConfig": places.channels(job, site, bundle.sha256),
            "OutputDataConfig": _output(site),
            "ResourceConfig": _machines(job, offer),
            "StoppingCondition": _stops(job),
            "CheckpointConfig": {
                "S3Uri": places.checkpoints_uri(site, lineage),
                "LocalPath": places.CHECKPOINTS,
            },
            "Environment": _environment(job, offer, site, token),
            "RetryStrategy": {"MaximumRetryAttempts": RETRIES},
            "Tags": _tags(job, bundle, site, token, lineage),
        }
        if job.resources.spot:
            request["EnableManagedSpotTraining"] = True
        if job.resources.offline:
            request["EnableNetworkIsolation"] = True
        if site.get("subnets") or site.get("security_groups") or "TrainingImageConfig" in algorithm:
            request["VpcConfig"] = _vpc(site)
        return merged(request, job.backend_options.get(self.name, {}), OURS)

    def validate(self, request: Mapping[str, Any]) -> None:
        check_request(request, self.facts)

    def explain(self, plan: Plan) -> Sequence[tuple[str, str]]:
        request, site = plan.request, plan.site
        count = f"{plan.bundle.size / 2**20:.1f} MiB in {len(plan.bundle.files)} files"
        mounts = ", ".join(places.mounts(plan.job))
        rows = [
            ("image", _image_in_words(request["AlgorithmSpecification"])),
            ("hardware", _hardware_in_words(request.get("ResourceConfig", {}))),
            ("disk", _disk_in_words(request.get("ResourceConfig", {}))),
            ("region", _region(plan.job, site)),
            ("runs as", request["RoleArn"]),
            ("network", _network_in_words(request)),
            ("uploaded to", f"{places.bundle_uri(site, plan.bundle.sha256)} ({count})"),
            ("copied from S3", mounts or "nothing else"),
            ("output", places.output_uri(site, plan.token)),
            ("checkpoints", f"{places.checkpoints_uri(site, plan.lineage)}/"),
            ("stops after", _stop_in_words(plan.job, request.get("StoppingCondition", {}))),
            ("capacity", _capacity_in_words(request)),
        ]
        if plan.job.secrets:
            names = ", ".join(plan.job.secrets)
            rows.append(("secrets", f"{names}: from Secrets Manager, read inside the container"))
        if key := request.get("OutputDataConfig", {}).get("KmsKeyId"):
            rows.append(("encrypted with", key))
        return [*rows, ("assumed", "; ".join(_assumptions(plan)))]


def _refuse_impossible(job: JobSpec) -> None:
    """What SageMaker's fields can't say, by the name of the job's field."""
    wanted = job.resources
    if wanted.region is not None and not re.fullmatch(REGION, wanted.region):
        raise UnsupportedError(
            f"resources.region: {wanted.region!r} is no AWS region", "--set resources.region=us-east-1"
        )
    if hard_stop_s(job) > LONGEST_S:
        raise UnsupportedError(
            "resources.max_hours: SageMaker ends a job after 28 days", "--set resources.max_hours=671"
        )
    if wanted.fallback and wanted.spot:
        raise UnsupportedError(
            "resources.fallback: SageMaker tries other machines on demand only, not on spot",
            "--set resources.fallback=[], or --set resources.spot=false",
        )
    if len(wanted.fallback) >= MOST_TYPES:
        raise UnsupportedError(
            f"resources.fallback: SageMaker tries {MOST_TYPES} machines at most, the first one counted",
            f"name {MOST_TYPES - 1} others",
        )
    pending = wanted.max_wait_hours
    if pending is not None and not wanted.spot and pending * 3600 < LEAST_PENDING_S:
        raise UnsupportedError(
            "resources.max_wait_hours: SageMaker waits half an hour at least, where it waits",
            "--set resources.max_wait_hours=0.5, or leave it out: then SageMaker alone says how long",
        )


def _algorithm(job: JobSpec, site: Site) -> dict[str, Any]:
    field = "resources.region" if job.resources.region else "site.sagemaker.region"
    image = job.resources.image or site.get("image") or images.reference(_region(job, site), field)
    algorithm = {"TrainingImage": image, "TrainingInputMode": "File", "ContainerEntrypoint": list(COMMAND)}
    if images.ECR.fullmatch(image):
        return algorithm
    return {**algorithm, "TrainingImageConfig": {"TrainingRepositoryAccessMode": "Vpc"}}


def _region(job: JobSpec, site: Site) -> str:
    return job.resources.region or site.need("region")


def _output(site: Site) -> dict[str, str]:
    """Files, not one gzip that is packed while the machine is paid, and that nobody can fetch in parts."""
    found = {"S3OutputPath": places.output_root(site), "CompressionType": "NONE"}
    key = site.get("kms_key")
    return {**found, "KmsKeyId": key} if key else found


def _vpc(site: Site) -> dict[str, list[str]]:
    return {
        "Subnets": site.need("subnets").split(","),
        "SecurityGroupIds": site.need("security_groups").split(","),
    }


def _machines(job: JobSpec, offer: Offer) -> dict[str, Any]:
    wanted = job.resources
    types = dict.fromkeys([offer.instance_type, *wanted.fallback])
    found: dict[str, Any] = {"InstanceCount": wanted.nodes}
    if not all(name in machines.BY_NAME and machines.BY_NAME[name].nvme_gb for name in types):
        found["VolumeSizeInGB"] = VOLUME_GB if wanted.disk_gib is None else wanted.disk_gib
    if not wanted.fallback:
        return {"InstanceType": offer.instance_type, **found}
    return {"InstancePreferences": [{"InstanceType": name} for name in types], **found}


def _stops(job: JobSpec) -> dict[str, int]:
    """Spot's wait counts the run too; on demand the wait is a limit of its own, or none at all."""
    run, wait = hard_stop_s(job), job.resources.max_wait_hours
    if job.resources.spot:
        longest = run + round((WAIT_HOURS if wait is None else wait) * 3600)
        return {"MaxRuntimeInSeconds": run, "MaxWaitTimeInSeconds": longest}
    return {"MaxRuntimeInSeconds": run} | ({} if wait is None else {"MaxPendingTimeInSeconds": round(wait * 3600)})


def _environment(job: JobSpec, offer: Offer, site: Site, token: str) -> dict[str, str]:
    region = _region(job, site)
    env = launch_env(
        job, token,
        gpus=0 if _has_own_machines(job) else machines.fewest_gpus(offer, job.resources),
        inputs=places.INPUTS, outputs=places.OUTPUTS, checkpoints=places.CHECKPOINTS,
        model_cache=places.MODEL_CACHE, mounts=places.mounts(job),
        secrets={name: f"aws-sm://{region}/{name}" for name in job.secrets},
    )  # fmt: skip
    scratch = {
        "HF_HOME": f"{places.SCRATCH}/huggingface",
        "LAUNCH_CACHE_DIR": f"{places.SCRATCH}/cache",
        "LAUNCH_WORK_DIR": f"{places.SCRATCH}/work",
    }
    return dict(sorted({**scratch, **env, "LAUNCH_FAILURE_FILE": places.FAILURE}.items()))


def _has_own_machines(job: JobSpec) -> bool:
    """Do raw fields name the machines? Then the offer does not say how many GPUs they have."""
    fields = "InstanceType", "InstancePreferences", "InstanceGroups"
    return any(raw_field(job, "sagemaker", "ResourceConfig", field) for field in fields)


def _tags(job: JobSpec, bundle: Bundle, site: Site, token: str, lineage: str) -> list[dict[str, str]]:
    """Ours, then the user's as they are: one that AWS does not take is refused, not rewritten."""
    own = {JOB_TAG: token, LINEAGE_TAG: lineage, BUNDLE_TAG: bundle.sha256}
    if site.owner:
        if not is_tag(OWNER_TAG, site.owner):
            raise ConfigError(
                f"the owner {site.owner!r} can't be a tag on AWS", "set LAUNCH_OWNER to a plain name"
            )
        own[OWNER_TAG] = site.owner
    for key, value in job.tags.items():
        if key.startswith(OWN_TAGS):
            raise ConfigError(f"tags.{key}: launch itself sets such tags", "choose another name")
        if not is_tag(key, value):
            raise UnsupportedError(
                f"tags.{key}: {value!r} can't be a tag on AWS",
                "use letters, digits, spaces and _ . : / = + - @; 128 for the name, which does not begin with "
                "aws:, and 256 for the value",
            )
    return [{"Key": key, "Value": value} for key, value in {**own, **job.tags}.items()]


def _image_in_words(algorithm: Mapping[str, Any]) -> str:
    image = algorithm["TrainingImage"]
    notes = [] if DIGEST.fullmatch(image) else ["no digest: what it holds may change between two jobs"]
    if "TrainingImageConfig" in algorithm:
        notes.append("not in ECR: pulled through your VPC")
    return f"{image} ({'; '.join(notes)})" if notes else image


def _hardware_in_words(resources: Mapping[str, Any]) -> str:
    if groups := resources.get("InstanceGroups"):
        return " and ".join(f"{g['InstanceCount']} x {machines.in_words(g['InstanceType'])}" for g in groups)
    count = resources.get("InstanceCount", 1)
    text = ", else ".join(machines.in_words(name) for name in machines.types_of(resources))
    return f"{count} x {text}" if count > 1 else text


def _disk_in_words(resources: Mapping[str, Any]) -> str:
    own = [machines.BY_NAME[name].nvme_gb for name in machines.types_of(resources) if name in machines.BY_NAME]
    if own:
        return f"{min(own)} GB of the machine's own NVMe; VolumeSizeInGB has no meaning there"
    return f"{resources.get('VolumeSizeInGB', 'no')} GB volume"


def _network_in_words(request: Mapping[str, Any]) -> str:
    vpc = request.get("VpcConfig")
    way = f"VPC: {', '.join(vpc['Subnets'])}; {', '.join(vpc['SecurityGroupIds'])}" if vpc else "SageMaker's own"
    if request.get("EnableNetworkIsolation"):
        return f"{way}; the container is isolated from it"
    return way if vpc else f"{way}, with a way to the internet"


def _stop_in_words(job: JobSpec, times: Mapping[str, Any]) -> str:
    run = times.get("MaxRuntimeInSeconds")
    ends = f"{run / 3600:g} h in all" if run else "a day, as nothing is said"
    return f"{max_hours(job):g} h by itself at each start; SageMaker ends it after {ends}"


def _capacity_in_words(request: Mapping[str, Any]) -> str:
    times, resources = request.get("StoppingCondition", {}), request.get("ResourceConfig", {})
    if request.get("EnableManagedSpotTraining"):
        hours = times.get("MaxWaitTimeInSeconds", 0) / 3600
        return f"spot: started again from its checkpoints; ends {hours:g} h after it was sent at the latest"
    if "TrainingPlanArn" in resources:
        return f"reserved: {resources['TrainingPlanArn']}"
    if pending := times.get("MaxPendingTimeInSeconds"):
        return f"on demand: waits {pending / 3600:g} h at most"
    return "on demand: waits as long as SageMaker sees fit; resources.max_wait_hours sets a limit"


def _assumptions(plan: Plan) -> Iterator[str]:
    job, site = plan.job, plan.site
    yield f"the bucket is in {_region(job, site)}, and the role may read and write it"
    yield "the quota covers the machine" + (" and every other in the list" if job.resources.fallback else "")
    if plan.offer.note:
        yield plan.offer.note
    if not job.resources.image and not site.get("image"):
        yield "the machine's NVIDIA driver runs CUDA 13 (580 or newer)"
    if job.resources.offline:
        yield "the image, or the bundle's wheels, have the pinned packages"
