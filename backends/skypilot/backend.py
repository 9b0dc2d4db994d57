"""The SkyPilot backend: one sky.Task for any GPU cloud, Kubernetes or Slurm.

The request is {"task": the YAML mapping of one sky.Task, "managed": whether SkyPilot's controller runs it}. A
managed job (spot) is started again when its machine is taken; another is one cluster that takes itself down.
Vendor facts: SkyPilot 0.14.1, https://docs.skypilot.co/en/latest/reference/yaml-spec.html.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends import container
from backends.base import Bundle, Capabilities, Fact, Plan, Problem, Progress, Site
from backends.capabilities import refuse_unsupported
from backends.skypilot import checks, machines, node, places
from backends.skypilot.environment import FIX
from backends.skypilot.jobs import SkyPilotJobs
from cost.offers import Offer
from cost.prices.markets import SKYPILOT_CLOUDS
from launcher.errors import BackendNotInstalledError, ConfigError, UnsupportedError
from launcher.spec import JobSpec, Resources

IDLE_MINUTES = 5
SERVER = "server"
"""Open-source SkyPilot takes references to managed secrets, and has no provider of them: that is a plugin of the
API server (ManagedSecretsProvider in sky/server/plugins.py, 0.14.1)."""
NOT_INSTALLED = "SkyPilot is not installed: it lives in an environment of its own"
INSTALL = "launch setup skypilot --install"
LAUNCH_NAMES = (
    "JOB_ID",
    "INPUT_DIR",
    "OUTPUT_DIR",
    "CHECKPOINT_DIR",
    "MAX_HOURS",
    "MOUNTS",
    "MODEL_CACHE",
    "OFFLINE",
)
RESOURCES = (
    "accelerators", "use_spot", "ordered", "any_of", "image_id", "infra", "cloud", "region", "zone", "disk_size",
    "autostop.down",
)  # fmt: skip
OURS = frozenset(
    [
        *("name", "run", "num_nodes", "secrets", "managed_secrets", "envs.PYTHONPATH"),
        *(f"resources.{name}" for name in RESOURCES),
        *(f"file_mounts.{place}" for place in (places.INPUT, places.STORE)),
        *(f"envs.LAUNCH_{name}" for name in LAUNCH_NAMES),
        "config.kubernetes.provision_timeout",
    ]
)
"""What the job file has fields for, what makes submit idempotent, what may hold a secret's value, and what ends
the bill."""


class SkyPilotBackend(SkyPilotJobs):
    """Any GPU cloud, Kubernetes or Slurm, through SkyPilot."""

    name = "skypilot"
    capabilities = Capabilities(spot=True, multi_node=True, dry_run=True, fallback=True, poll_s=5.0)
    facts = (
        Fact(
            name="store",
            what="bucket, or for Slurm and Kubernetes a path that all nodes share, for bundles and results",
            example="s3://my-bucket",
            pattern=r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]|(/[A-Za-z0-9._-]+)+",
        ),
        Fact(
            name="infra",
            what="where to look for machines: cloud[/region], k8s[/context] or slurm[/cluster[/partition]]",
            example="aws/us-east-1",
            pattern=rf"(?:{'|'.join(places.CLOUDS)})(?:/[^\s/]+){{0,2}}|(?:k8s|kubernetes)/\S+",
            required=False,
        ),
        Fact(
            name="secrets",
            what="where secrets are: your environment, or a provider of them at your SkyPilot API server",
            example="environment",
            pattern=f"environment|{SERVER}",
            required=False,
        ),
    )

    def check(self, site: Site, plan: Plan | None = None) -> list[Problem]:
        if not self._environment.ready():
            return [Problem(what=NOT_INSTALLED, fix=INSTALL)]
        if damage := self._environment.damage():
            return [Problem(what=f"SkyPilot's environment is damaged: {damage}", fix=FIX)]
        return checks.problems(self._service, self._environment, site, plan)

    def signed_in(self, site: Site) -> str:
        """The clouds that SkyPilot can use, and as whom."""
        return checks.signed_in(self._service, self._environment, site)

    def install(self, progress: Progress, clouds: Sequence[str] | None = None) -> Path:
        """Build SkyPilot's own environment if need be; its interpreter. Raises ConfigError or BackendError."""
        if clouds is not None:
            self._environment.choose(clouds)
        return self._environment.make(progress)

    def list_prices(self) -> Mapping[str, Any]:
        """The machines with GPUs in SkyPilot's catalogue, which it brings up to date by itself."""
        if not self._environment.ready():
            raise BackendNotInstalledError(NOT_INSTALLED, INSTALL)
        answer: Mapping[str, Any] = self._environment.call("prices", {"clouds": SKYPILOT_CLOUDS})
        return answer

    def offers(self, resources: Resources) -> Iterable[Offer]:
        return machines.offers(resources)

    def render(
        self, job: JobSpec, offer: Offer, bundle: Bundle, site: Site, token: str, lineage: str
    ) -> Mapping[str, Any]:
        refuse_unsupported(job, self.name, self.capabilities)
        where = places.infra(job, site)
        options = dict(job.backend_options.get(self.name, {}))
        managed = _managed(job, options)
        places.refuse(job, where, managed)
        _refuse_name(job)
        store = places.store(site)
        mounts, uris = places.file_mounts(job, store, bundle.sha256)
        container.refuse_offline_downloads(job, uris | container.model_in_bundle(bundle))
        inputs, home = store.inputs(bundle.sha256), store.of_job(token, "").rstrip("/")
        often_s = node.PATH_S if store.shared_path else node.BUCKET_S
        env = container.launch_env(
            job, token, gpus=machines.fewest_gpus(offer, job.resources),
            inputs=inputs, outputs=store.of_job(token, "output"),
            checkpoints=store.of_job(lineage, "checkpoints"), model_cache=store.of_job(lineage, "model"),
            mounts=uris, secrets={},
        )  # fmt: skip
        del env["PYTHONPATH"]  # set in run alone: SkyPilot's own Python runs with these variables too
        task: dict[str, Any] = {
            "name": token,
            "num_nodes": job.resources.nodes,
            "resources": _resources(job, offer, where, managed),
            "envs": env,
            "run": node.run(
                home, inputs, often_s, container.hard_stop_s(job), image=job.resources.image is not None
            ),
        }
        if mounts:
            task["file_mounts"] = mounts
        if job.resources.image is None:
            task["setup"] = node.setup(home, inputs, often_s)
        if job.secrets and site.get("secrets") == SERVER:
            task["managed_secrets"] = list(job.secrets)
        elif job.secrets:
            task["secrets"] = dict.fromkeys(job.secrets)
        if job.resources.max_wait_hours is not None:
            wait_s = max(1, round(job.resources.max_wait_hours * 3600))
            task["config"] = {"kubernetes": {"provision_timeout": wait_s}}
        return {"task": container.merged(task, options, OURS | _said(task)), "managed": managed}

    def validate(self, request: Mapping[str, Any]) -> None:
        if set(request) != {"task", "managed"} or not isinstance(request["task"], Mapping):
            raise ConfigError(
                f"the request for backend {self.name} is damaged: it holds {', '.join(request) or 'nothing'}, "
                "not a task and whether it is managed",
                "launch plan renders it anew",
            )
        if not isinstance(request["managed"], bool):
            raise ConfigError(
                f"backend_options.skypilot.managed: {request['managed']!r} is not true or false",
                "--set backend_options.skypilot.managed=true",
            )
        if not self._environment.ready():
            raise BackendNotInstalledError(NOT_INSTALLED, INSTALL)
        problems = self._environment.call("validate", container.with_examples(request, self.facts))["problems"]
        if problems:
            lines = [f"{p['field']}: {p['message']}" for p in problems]
            raise ConfigError(
                f"SkyPilot refuses the request: {lines[0]}",
                "correct that field of the job file, or of backend_options.skypilot where you set it yourself",
                problems=lines[1:],
            )

    def obstacle(self, region: str | None, site: Site) -> str | None:
        where, store = places.infra_of(region, site), places.store(site)
        if where.own or not store.shared_path:
            return None
        cloud = where.cloud or "whichever cloud SkyPilot takes"
        return (
            f"the machines of {cloud} have no {store.root} in common; "
            "launch setup skypilot --store s3://BUCKET or gs://BUCKET names a bucket instead"
        )

    def explain(self, plan: Plan) -> Sequence[tuple[str, str]]:
        task = plan.request["task"]
        env, resources = task["envs"], task["resources"]
        store = places.store(plan.site)
        data = ", ".join(places.prefixes(task.get("file_mounts", {})))
        return [
            ("image", _image_in_words(plan.job)),
            ("hardware", _hardware_in_words(resources, task["num_nodes"])),
            ("network", "as the cluster or the user's SkyPilot configuration has it"),
            ("bundle", f"{store.source(plan.bundle.sha256)} ({plan.bundle.size / 2**20:.1f} MiB)"),
            ("read in place", data or "nothing"),
            ("output", _outside(env["LAUNCH_OUTPUT_DIR"], store)),
            ("checkpoints", _outside(env["LAUNCH_CHECKPOINT_DIR"], store)),
            ("stops after", _stop_in_words(plan)),
            ("waits at most", _wait_in_words(plan)),
            ("spot", "yes, started again by SkyPilot's controller" if resources["use_spot"] else "no"),
            ("secrets", _secrets_in_words(task)),
            ("assumed", "; ".join(_assumed(plan, store))),
        ]


def _refuse_name(job: JobSpec) -> None:
    """SkyPilot names the cluster like the job (CLUSTER_NAME_VALID_REGEX, _VALID_NAME_REGEX in 0.14.1)."""
    if not job.name[0].isalpha() or "---" in job.name:
        raise UnsupportedError(
            f"name: SkyPilot takes no {job.name!r}", "begin it with a letter, with two dashes in a row at most"
        )


def _said(task: Mapping[str, Any]) -> set[str]:
    """Where the job file's own env, tags and URIs are, and the set-up without which nothing runs."""
    found = {f"envs.{name}" for name in task["envs"]}
    found |= {f"resources.labels.{name}" for name in task["resources"].get("labels", ())}
    found |= {f"file_mounts.{place}" for place in task.get("file_mounts", ())}
    return found | ({"setup"} if "setup" in task else set())


def _managed(job: JobSpec, options: dict[str, Any]) -> bool:
    """Whether SkyPilot's controller runs the job; taken out of `options`. Raises ConfigError."""
    managed = options.pop("managed", job.resources.spot)
    if not isinstance(managed, bool) or (job.resources.spot and not managed):
        raise ConfigError(
            f"backend_options.skypilot.managed: {managed!r} does not go with resources.spot: {job.resources.spot}",
            "a spot job is started again by SkyPilot's controller only: leave it out, or set it to true",
        )
    return managed


def _resources(job: JobSpec, offer: Offer, where: places.Infra, managed: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"use_spot": job.resources.spot}
    if where.text is not None:
        found["infra"] = where.text
    if job.resources.fallback:
        asked = [machines.accelerator(text, "resources.fallback") for text in job.resources.fallback]
        more = [f"{gpu.name}:{count or job.resources.gpus}" for gpu, count in asked]
        found["ordered"] = [{"accelerators": a} for a in dict.fromkeys([offer.instance_type, *more])]
    else:
        found["accelerators"] = offer.instance_type
    if job.resources.disk_gib is not None:
        found["disk_size"] = job.resources.disk_gib
    if job.resources.image is not None:
        found["image_id"] = f"docker:{job.resources.image}"
    if job.tags:
        found["labels"] = dict(job.tags)
    if not managed:  # a controller takes its machines down by itself
        found["autostop"] = {"idle_minutes": IDLE_MINUTES, "down": True}
    return found


def _image_in_words(job: JobSpec) -> str:
    image = job.resources.image
    if image is None:
        return "none: the machine's own; set-up installs the pinned packages"
    if container.DIGEST.fullmatch(image):
        return image
    return f"{image} (no digest: its content can change between two runs)"


def _hardware_in_words(resources: Mapping[str, Any], nodes: int) -> str:
    wanted = [resources.get("accelerators"), *(r["accelerators"] for r in resources.get("ordered", ()))]
    place = resources.get("infra", "the cheapest of your clouds")
    return f"{nodes} x {', else '.join(a for a in wanted if a)} on {place}"


def _outside(path: str, store: places.Store) -> str:
    return path.replace(store.inside, store.root, 1)


def _stop_in_words(plan: Plan) -> str:
    stop = container.hard_stop_s(plan.job) / 3600
    hours = f"{stop:g} hours by `timeout` in the job itself: SkyPilot has no hard stop"
    if plan.request["managed"]:
        return f"{hours}; counted anew after each interruption"
    idle = plan.request["task"]["resources"]["autostop"].get("idle_minutes", IDLE_MINUTES)
    return f"{hours}; the machine takes itself down after {idle} idle minutes"


def _wait_in_words(plan: Plan) -> str:
    hours = plan.job.resources.max_wait_hours
    if hours is not None:
        return f"{hours:g} hours"
    if plan.request["managed"]:
        return "without limit, by SkyPilot's controller"
    if places.infra(plan.job, plan.site).cloud == "slurm":  # Slurm.make_deploy_resources_variables in 0.14.1
        return "2 minutes, in a partition that infra names 24 hours; slurm.provision_timeout in ~/.sky/config.yaml"
    return "not at all: it fails at once"


def _secrets_in_words(task: Mapping[str, Any]) -> str:
    if managed := task.get("managed_secrets"):
        return f"{', '.join(managed)}: names only; your SkyPilot API server has the values"
    if named := task.get("secrets"):
        return f"{', '.join(named)}: names only; values from your environment at submit"
    return "none"


def _assumed(plan: Plan, store: places.Store) -> Iterable[str]:
    job, task = plan.job, plan.request["task"]
    where = places.infra(job, plan.site)
    if job.resources.image is None:
        yield "the machine's NVIDIA driver is 580 or newer (the pinned torch is built with CUDA 13)"
    else:
        yield "the image has Python >= 3.11 and torch >= 2.6; on Slurm it needs the Pyxis plugin"
    if task.get("file_mounts"):
        yield "the nodes have FUSE and sudo (on Slurm: ask) and your SkyPilot can read and write the buckets"
    if store.shared_path:
        yield f"{store.root} is at the same path on every node"
    if where.own and "memory" not in task["resources"]:
        yield "4 CPUs and 16 GB a GPU are enough memory; backend_options.skypilot.resources.memory asks for more"
    if where.cloud is None and (job.tags or job.resources.disk_gib is not None):
        yield "a cloud is chosen that takes tags and a disk size; --set resources.region names one"
