"""The azureml backend: a job as the bodies that are PUT: an environment (the image) and a command job.

https://learn.microsoft.com/rest/api/azureml/jobs/create-or-update
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.azureml import images, machines, places
from backends.azureml.account import Account
from backends.azureml.checks import API_VERSION, DAY_S, LONGEST_S, LONGEST_SPOT_S, check_request
from backends.azureml.contract import contract
from backends.azureml.jobfile import duration, seconds
from backends.azureml.jobs import AzureMLJobs
from backends.azureml.places import JOB_TAG, LINEAGE_TAG, OWNER_TAG
from backends.azureml.roles import advice
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
from cost.offers import Offer
from launcher.errors import ConfigError, UnsupportedError
from launcher.spec import JobSpec, Resources

SIZE_PROPERTY = "finelaunch_instance_type"
"""The size that a named compute must have: the request has no other place for it."""
OURS = frozenset(
    [
        *("api-version", "job.id", "environment.id"),
        *(f"job.properties.{n}" for n in ("jobType", "displayName", "command", "codeId", "distribution")),
        *(f"job.properties.tags.{n}" for n in (JOB_TAG, LINEAGE_TAG, OWNER_TAG)),
        "job.properties.resources.instanceCount",
        f"job.properties.inputs.{places.BUNDLE}",
        *(f"job.properties.outputs.{n}" for n in (places.OUTPUT, places.CHECKPOINTS, places.MODEL_CACHE)),
        *(f"job.properties.environmentVariables.LAUNCH_{n}" for n in ("JOB_ID", "SECRETS", "PROCESSES")),
    ]
)
GUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
COMPUTE = r"[A-Za-z](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
REGION = r"[a-z]+[a-z0-9]*"


class AzureMLBackend(AzureMLJobs):
    """Azure Machine Learning: serverless compute, or a cluster of the workspace."""

    name = "azureml"
    # Nothing in a job limits its wait for quota or capacity.
    capabilities = Capabilities(
        spot=True, multi_node=True, dry_run=True, wait_for_capacity=False, resubmits=True, poll_s=5.0,
        drain_s=60.0,
    )  # fmt: skip
    facts: tuple[Fact, ...] = (
        Fact(
            name="subscription", what="Azure subscription id", pattern=GUID,
            example="00000000-0000-0000-0000-000000000000",
        ),
        Fact(
            name="resource_group", what="resource group of the workspace", example="my-group",
            pattern=r"[\w.()-]{0,89}[\w()-]",
        ),
        Fact(
            name="workspace", what="Azure Machine Learning workspace", example="my-workspace",
            pattern=r"[A-Za-z0-9][A-Za-z0-9_-]{2,32}",
        ),
        Fact(
            name="region", what="the workspace's region", required=False, example="eastus", pattern=REGION,
        ),
        Fact(
            name="datastore", what="blob datastore for bundles, outputs and checkpoints; else the workspace's own",
            required=False, example="workspaceblobstore", pattern=r"[A-Za-z0-9_]{1,255}",
        ),
        Fact(
            name="compute", what="cluster of the workspace for the jobs; else serverless compute", required=False,
            example="gpu-cluster", pattern=COMPUTE,
        ),
        Fact(
            name="spot_compute", what="low-priority cluster for spot jobs; else serverless compute",
            required=False, example="spot-cluster", pattern=COMPUTE,
        ),
        Fact(
            name="identity", what="client id of the managed identity that jobs run as; needed with secrets",
            required=False, example="00000000-0000-0000-0000-000000000000", pattern=GUID,
        ),
        Fact(
            name="key_vault", what="key vault of the secrets", required=False, example="my-vault",
            pattern=r"[A-Za-z](?:[A-Za-z0-9-]{1,22})[A-Za-z0-9]",
        ),
        Fact(
            name="image", what="training image of your own, best by digest; else Azure ML builds one",
            required=False, example="myregistry.azurecr.io/finelaunch/train:1",
            pattern=r"[\w.-]+(?::\d+)?(?:/[\w.-]+)+(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?",
        ),
    )  # fmt: skip

    def check(self, site: Site, plan: Plan | None = None) -> list[Problem]:
        if not all(site.get(name) for name in ("subscription", "resource_group", "workspace")):
            return []
        return Account(self._azure).problems(site, plan)

    def signed_in(self, site: Site) -> str:
        who, subscription = self._azure.who(), site.get("subscription")
        places = (("tenant", who.tenant), ("subscription", subscription))
        return ", ".join([str(who), *(f"{what} {value}" for what, value in places if value)])

    def find_facts(self, known: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
        return Account(self._azure).facts(known)

    def advice(self, known: Mapping[str, str]) -> str:
        return advice(known)

    def contract(self, plan: Plan, root: Path, node: int) -> ContainerContract:
        return contract(plan, root, node)

    def offers(self, resources: Resources) -> Iterable[Offer]:
        return machines.offers(self.name, resources)

    def render(
        self, job: JobSpec, offer: Offer, bundle: Bundle, site: Site, token: str, lineage: str
    ) -> Mapping[str, Any]:
        refuse_unsupported(job, self.name, self.capabilities)
        _refuse_impossible(job, site)
        mounts = places.mounts(job)
        refuse_offline_downloads(job, mounts | model_in_bundle(bundle))
        properties = {
            "jobType": "Command",
            "displayName": token,
            "experimentName": job.name,
            **_process(job, offer, site, token, mounts),
            "inputs": places.inputs(job, bundle, site),
            "outputs": places.outputs(job, site, token, lineage),
            **_where(job, offer, site),
            "limits": {"jobLimitsType": "Command", "timeout": duration(hard_stop_s(job))},
            "tags": _tags(job, site, token, lineage),
            "isArchived": False,
        }
        if job.resources.nodes > 1:
            # One process a machine: it starts a process a GPU by itself.
            properties["distribution"] = {"distributionType": "PyTorch", "processCountPerInstance": 1}
        if identity := _identity(job, site):
            properties["identity"] = identity
        return _with_options(job, site, {"id": f"{places.workspace(site)}/jobs/{token}", "properties": properties})

    def validate(self, request: Mapping[str, Any]) -> None:
        check_request(request, self.facts)

    def explain(self, plan: Plan) -> Sequence[tuple[str, str]]:
        job, properties = plan.job, plan.request["job"]["properties"]
        outputs, stop = properties["outputs"], seconds(properties.get("limits", {}).get("timeout"))
        count = f"{plan.bundle.size / 2**20:.1f} MiB in {len(plan.bundle.files)} files"
        own = [data["uri"] for name, data in properties["inputs"].items() if name != places.BUNDLE]
        rows = [
            ("image", _image_in_words(plan.request)),
            ("hardware", _hardware_in_words(plan, properties)),
            ("workspace", plan.request["job"]["id"].partition("/jobs/")[0].rpartition("/")[2]),
            ("runs as", _identity_in_words(properties)),
            ("network", "as the workspace, or its named compute, has it"),
            ("uploaded to", f"{properties['inputs'][places.BUNDLE]['uri']} ({count})"),
            ("output", outputs[places.OUTPUT]["uri"]),
            ("checkpoints", outputs[places.CHECKPOINTS]["uri"]),
            (
                "stops after",
                f"{max_hours(job):g} h by itself; Azure ML cancels it after "
                f"{'21 days' if stop is None else f'{stop / 3600:g} h'} of running",
            ),
            ("spot", _spot_in_words(job)),
        ]
        if own:
            rows.append(("read in place", ", ".join(own)))
        if job.secrets:
            names = ", ".join(job.secrets)
            rows.append(
                ("secrets", f"{names}: read inside the container, in Key Vault {plan.site.need('key_vault')}")
            )
        return [*rows, ("assumed", "; ".join(_assumed(plan, own)))]


def _refuse_impossible(job: JobSpec, site: Site) -> None:
    """What Azure ML's fields can't say, by the name of the job's field."""
    wanted = job.resources
    if wanted.region is not None and wanted.region != site.get("region"):
        raise UnsupportedError(
            f"resources.region: jobs run in the workspace's region ({site.get('region') or 'not set'}), "
            f"not in {wanted.region}",
            "leave it out, or name a workspace there: --set site.azureml.workspace=... "
            "--set site.azureml.region=...",
        )
    if wanted.disk_gib is not None:
        raise UnsupportedError(
            "resources.disk_gib: an Azure ML machine has the disk of its size",
            "--set resources.disk_gib=null; model.cache: true keeps a large model in the datastore",
        )
    longest = LONGEST_SPOT_S if wanted.spot else LONGEST_S
    if hard_stop_s(job) > longest:
        raise UnsupportedError(
            f"resources.max_hours: a job lives {longest // DAY_S} days at most{' on spot' if wanted.spot else ''}",
            f"--set resources.max_hours={longest // 3600 - 1}",
        )
    if wanted.spot and site.get("compute") and not site.get("spot_compute"):
        raise UnsupportedError(
            f"resources.spot: whether {site.get('compute')} is low-priority is up to the cluster, not to the job",
            "launch setup azureml --spot-compute NAME names a low-priority cluster",
        )


def _has_own_machine(job: JobSpec) -> bool:
    """Do raw fields name the machine? Then the offer does not say how many GPUs it has."""
    fields = ("computeId",), ("resources", "instanceType")
    return any(raw_field(job, "azureml", "job", "properties", *field) for field in fields)


def _process(job: JobSpec, offer: Offer, site: Site, token: str, mounts: Mapping[str, str]) -> dict[str, Any]:
    """The command and its variables."""
    vault = site.need("key_vault")
    env = launch_env(
        job, token,
        gpus=0 if _has_own_machine(job) else offer.gpus,
        inputs=places.inside("inputs", places.BUNDLE),
        outputs=places.inside("outputs", places.OUTPUT),
        checkpoints=places.inside("outputs", places.CHECKPOINTS),
        model_cache=places.inside("outputs", places.MODEL_CACHE),
        mounts=mounts,
        secrets={name: f"azure-kv://{vault}/{places.vault_name(name)}" for name in job.secrets},
    )  # fmt: skip
    env["LAUNCH_PROCESSES"] = str(offer.gpus)
    if identity := site.get("identity"):
        # One of several on the machine; train_entry/secrets.py and azure-identity ask for it by this name.
        env.setdefault("AZURE_CLIENT_ID", identity)
    if job.resources.nodes > 1:
        # A mount remembers for ever what was not there: the nodes would not see each other's files.
        # https://learn.microsoft.com/azure/machine-learning/how-to-read-write-data-v2#available-mount-settings
        env.setdefault("DATASET_MOUNT_ATTRIBUTE_CACHE_TTL", "5000")
    command, variables = places.command(env)
    return {"command": command, "environmentVariables": dict(sorted(variables.items()))}


def _where(job: JobSpec, offer: Offer, site: Site) -> dict[str, Any]:
    """A named compute, or serverless compute of the offer's size."""
    spot = job.resources.spot
    resources = {"instanceCount": job.resources.nodes, "properties": {}}
    if name := site.get("spot_compute" if spot else "compute"):
        return {
            "computeId": f"{places.workspace(site)}/computes/{name}",
            "resources": resources,
            "properties": {SIZE_PROPERTY: offer.instance_type},
        }
    found: dict[str, Any] = {"resources": {**resources, "instanceType": offer.instance_type}, "properties": {}}
    if spot:
        found["queueSettings"] = {"jobTier": "Spot"}
    return found


def _tags(job: JobSpec, site: Site, token: str, lineage: str) -> dict[str, str]:
    ours = {JOB_TAG: token, LINEAGE_TAG: lineage} | ({OWNER_TAG: site.owner} if site.owner else {})
    for key in job.tags:
        if key in (JOB_TAG, LINEAGE_TAG, OWNER_TAG):
            raise ConfigError(f"tags.{key}: launch itself sets this tag", "choose another name")
    return {**job.tags, **ours}


def _identity(job: JobSpec, site: Site) -> dict[str, Any] | None:
    """The job's managed identity. None: storage is read with the datastore's own credentials.

    Serverless compute has no identity of its own (how-to-use-serverless-compute, read 2026-11-25); a cluster may.
    """
    client = site.get("identity")
    named = site.get("spot_compute" if job.resources.spot else "compute")
    if job.secrets and not client and not named:
        client = site.need("identity")
    if client:
        return {"identityType": "Managed", "clientId": client}
    return {"identityType": "Managed"} if job.secrets else None


def _with_options(job: JobSpec, site: Site, body: Mapping[str, Any]) -> dict[str, Any]:
    """The whole request, the user's raw fields over it; an environment is named by what it holds then."""
    options = dict(job.backend_options.get("azureml", {}))
    request: dict[str, Any] = {"api-version": API_VERSION, "job": body}
    if options.get("environment", {}) is None:  # the job's own environmentId names one that is there
        del options["environment"]
        return merged(request, options, OURS)
    request["environment"] = {"properties": images.environment(job, site)}
    whole = merged(request, options, OURS)
    version = images.version(whole["environment"].get("properties", {}))
    own = f"{places.workspace(site)}/environments/{images.NAME}/versions/{version}"
    properties = {"environmentId": own, **whole["job"]["properties"]}
    return {
        **whole,
        "environment": {"id": own, **whole["environment"]},
        "job": {**whole["job"], "properties": properties},
    }


def _image_in_words(request: Mapping[str, Any]) -> str:
    environment = request.get("environment", {}).get("properties", {})
    image = environment.get("image")
    if image is None:
        return f"the environment {request['job']['properties'].get('environmentId')}"
    if "condaFile" in environment:
        python = ".".join(map(str, images.PYTHON))
        return f"built by Azure ML at its first use: {image}, Python {python}, the pinned packages"
    return image if DIGEST.fullmatch(image) else f"{image} (no digest: what it holds may change between two jobs)"


def _hardware_in_words(plan: Plan, properties: Mapping[str, Any]) -> str:
    wanted = plan.job.resources
    nodes = f"{wanted.nodes} x " if wanted.nodes > 1 else ""
    gpus = f"{plan.offer.gpus} x {plan.offer.gpu}"
    if compute := properties.get("computeId"):
        return f"{nodes}a machine of compute {compute.rpartition('/')[2]}, which must have {gpus}"
    return f"{nodes}{properties['resources'].get('instanceType')} with {gpus}, serverless"


def _identity_in_words(properties: Mapping[str, Any]) -> str:
    identity = properties.get("identity")
    if identity is None:
        return "nobody: the datastore's own credentials reach the storage"
    client = identity.get("clientId", "the compute's own")
    return f"managed identity {client}" if identity["identityType"] == "Managed" else str(identity["identityType"])


def _spot_in_words(job: JobSpec) -> str:
    if not job.resources.spot:
        return "no; waits without limit for quota and machines"
    return "yes: may be interrupted; Azure ML starts it again or fails it, and it goes on from its checkpoints"


def _assumed(plan: Plan, own: Sequence[str]) -> Iterable[str]:
    environment = plan.request.get("environment", {}).get("properties", {})
    if "condaFile" in environment:
        yield "the image's build may reach conda-forge and a Python package index"
    else:
        yield "the workspace may pull the image, which has Python >= 3.11 and torch >= 2.6"
    yield "the nodes' NVIDIA driver is 580 or newer, or the image brings CUDA's forward compatibility"
    yield "the subscription has Azure ML's own quota for these machines (the virtual machines' quota is another)"
    if plan.request["job"]["properties"].get("identity"):
        yield "the managed identity may read and write the datastore"
    if any(not uri.startswith("azureml://") for uri in own):
        yield "the job's identity may read the storage that is named without a datastore"
    if "computeId" in plan.request["job"]["properties"]:
        yield "the compute has those machines, and scales down when it is idle"
    if plan.job.resources.offline:
        yield "the job needs no internet; that it has none is up to the workspace's network"
    if plan.offer.note:
        yield plan.offer.note
