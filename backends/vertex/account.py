"""What a project must have for a job: looked at before anything is sent, or found for `launch setup`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from backends.base import Plan, Problem, Site
from backends.vertex.google import LOGIN, QUOTAS, Google
from launcher.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    JobNotFoundError,
    LaunchError,
    UnreachableError,
)

API = "aiplatform.googleapis.com"
ADVICE = "launch setup vertex --advice prints the commands"
IMAGE = re.compile(
    r"(?P<host>[a-z0-9-]+-docker\.pkg\.dev)/(?P<name>[^@:]+)(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)  # fmt: skip
METRICS = {"NVIDIA_TESLA_T4": "nvidia_t4", "NVIDIA_TESLA_A100": "nvidia_a100", "NVIDIA_H100_80GB": "nvidia_h100"}
"""https://cloud.google.com/vertex-ai/docs/quotas#training (2026-11-23); the others are the accelerator's name."""
CHAIN = "GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login, this machine's own service account"


class Account:
    """One project in one region, read-only."""

    def __init__(self, google: Google) -> None:
        self._google = google
        self._unsure: list[Problem] = []

    def problems(self, site: Site, plan: Plan | None) -> list[Problem]:
        """What would stop the job, each with the command that mends it; what can't be seen is a note."""
        project = self._google.project
        try:
            self._google.credentials("vertex")
            service = self._look("the Vertex AI API", "serviceusage", f"v1/projects/{project}/services/{API}")
        except CredentialsError as exc:
            named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
            tried = f"{CHAIN}{f' (GOOGLE_APPLICATION_CREDENTIALS={named})' if named else ''}"
            return [Problem(what=f"{exc.message}; tried: {tried}", fix=LOGIN, kind="credentials")]
        except UnreachableError as exc:
            return [Problem(what=exc.message, fix=exc.hint or "see the network", kind="unreachable")]
        except ConfigError as exc:
            return [Problem(what=exc.message, fix=exc.hint or LOGIN)]
        found: list[Problem] = []
        if service is None or service.get("state", "ENABLED") != "ENABLED":
            what = f"there is no project {project}, or the Vertex AI API is not enabled in it"
            found.append(Problem(what=what, fix=f"gcloud services enable {API} --project {project}"))
        if account := site.get("service_account"):
            found += self._of_account(account)
        if bucket := site.get("bucket"):
            found += self._of_bucket(bucket, plan is not None and plan.job.resources.region is not None)
        if image := site.get("image") if plan is None else _image_of(plan):
            found += self._of_image(image)
        if plan is not None:
            found += [*self._of_quota(plan), *self._of_secrets(plan)]
        return [*found, *self._unsure]

    def _of_account(self, account: str) -> Iterator[Problem]:
        path = f"v1/projects/{home_of(account)}/serviceAccounts/{quote(account)}"
        found = self._look(f"service account {account}", "iam", path)
        if found is None:
            yield Problem(what=f"there is no service account {account}", fix=ADVICE)
            return
        right = "iam.serviceAccounts.actAs"
        answer = self._look(f"the right {right}", "iam", f"{path}:testIamPermissions", {"permissions": [right]})
        if answer is not None and answer is not UNSEEN and right not in answer.get("permissions", ()):
            yield Problem(
                what=f"you may not let jobs run as {account} ({right})",
                fix=f"gcloud iam service-accounts add-iam-policy-binding {account} "
                "--role roles/iam.serviceAccountUser --member user:YOU",
            )

    def _of_bucket(self, name: str, elsewhere: bool) -> Iterator[Problem]:
        """`elsewhere`: the job itself names its region, and so may be far from the bucket."""
        region, project = self._google.region, self._google.project
        make = f"gcloud storage buckets create gs://NAME --project {project} --location {region}"
        try:
            with self._google.errors(f"looking at bucket {name}"):
                found = self._google.storage().get_bucket(name)
        except JobNotFoundError:
            yield Problem(what=f"there is no bucket {name}", fix=make.replace("NAME", name))
            return
        except BackendError as exc:
            self._unsure.append(_unseen(f"bucket {name}", exc))
            return
        lies = str(found.location or "").lower()
        # A bucket of a continent (`us`, `eu`) or of two regions serves regions in it.
        if lies and "-" in lies and lies != region:
            cost = ": what they read and write there is billed as traffic" if elsewhere else ""
            yield Problem(
                what=f"bucket {name} is in {lies}, and the jobs run in {region}{cost}",
                fix=f"launch setup vertex --region {lies}, or make one there: {make}",
                fatal=not elsewhere,
            )

    def _of_quota(self, plan: Plan) -> Iterator[Problem]:
        spec = plan.request["customJob"]["jobSpec"]
        machine = spec["workerPoolSpecs"][0]["machineSpec"]
        if "acceleratorType" not in machine:
            return
        cheap = spec.get("scheduling", {}).get("strategy") in ("SPOT", "FLEX_START")
        wanted = int(machine["acceleratorCount"]) * plan.job.resources.nodes
        metric = quota_metric(machine["acceleratorType"], cheap)
        path = (
            f"v1beta1/projects/{self._google.project}/services/{API}/consumerQuotaMetrics/{quote(metric, safe='')}"
        )
        answer = self._look(f"the quota {metric}", "serviceusage", path)
        limit = _limit(answer or {}, self._google.region)
        if limit is not None and 0 <= limit < wanted:
            yield Problem(
                what=f"the quota {metric} is {limit} in {self._google.region}, and the job needs {wanted}",
                fix=f"ask for more: {QUOTAS.format(project=self._google.project)} "
                "(a quota of Vertex AI's own, beside Compute Engine's)",
                kind="quota",
            )

    def _of_image(self, image: str) -> Iterator[Problem]:
        match = IMAGE.fullmatch(image)
        if match is None:
            return
        project, _, rest = match["name"].partition("/")
        path = f"v2/{project}/{rest}/manifests/{match['digest'] or match['tag'] or 'latest'}"
        try:
            told = self._google.head(
                "artifactregistry", path, f"looking at image {image}", {"Accept": MANIFESTS}, match["host"]
            )
        except (BackendError, CredentialsError) as exc:
            self._unsure.append(_unseen(f"image {image}", exc))
            return
        if told is None:
            yield Problem(
                what=f"there is no image {image}",
                fix="build docker/Dockerfile and push it; launch setup vertex --image names another",
            )
        elif match["digest"] is None and (digest := told.get("Docker-Content-Digest")):
            yield Problem(
                what=f"image {image} has no digest: what it holds may change between two jobs",
                fix=f"name it as it is now: {match['host']}/{match['name']}@{digest}",
                fatal=False,
            )

    def _of_secrets(self, plan: Plan) -> Iterator[Problem]:
        project = self._google.project
        for name in plan.job.secrets:
            path = f"v1/projects/{project}/secrets/{quote(name)}"
            if self._look(f"secret {name}", "secretmanager", path) is None:
                yield Problem(
                    what=f"there is no secret {name} in Secret Manager of {project}",
                    fix=f"launch secrets put {name} --backend vertex",
                    kind="credentials",
                )

    def _look(
        self, what: str, service: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Google's answer, None when there is no such thing, and UNSEEN when it may not be seen."""
        try:
            return self._google.ask(service, path, f"looking at {what}", body)
        except JobNotFoundError:
            return None
        except BackendError as exc:
            self._unsure.append(_unseen(what, exc))
            return UNSEEN


UNSEEN: dict[str, Any] = {}


def quota_metric(accelerator: str, cheap: bool) -> str:
    """The quota on GPUs of custom jobs; SPOT and FLEX_START have the `preemptible` one."""
    name = METRICS.get(accelerator, accelerator.lower())
    return f"{API}/custom_model_training_{'preemptible_' if cheap else ''}{name}_gpus"


def home_of(account: str) -> str:
    """The project of a service account, as its address says it; `-`, any, where it does not.

    With `-` Google answers 403 for an account that does not exist, which looks like one that may not be seen.
    https://cloud.google.com/iam/docs/reference/rest/v1/projects.serviceAccounts/get (2026-11-25)
    """
    if match := re.fullmatch(r"[^@]+@([a-z0-9-]+)(?:\.([a-z0-9.-]+?))?\.iam\.gserviceaccount\.com", account):
        project, domain = match.groups()
        return f"{domain}:{project}" if domain else str(project)
    number = re.fullmatch(r"(\d+)-compute@developer\.gserviceaccount\.com", account)
    return number.group(1) if number else "-"


def facts_of(known: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """Project and region as gcloud has them, then the project's buckets there and its service accounts.

    What may not be listed is left out.
    """
    region = known.get("region") or os.environ.get("CLOUDSDK_COMPUTE_REGION") or "us-central1"
    project = known.get("project") or _usual_project()
    google = Google(project, region)

    def buckets() -> list[str]:
        with google.errors("listing buckets"):
            return [str(b.name) for b in google.storage().list_buckets() if str(b.location).lower() == region]

    def accounts() -> list[str]:
        found = google.ask("iam", f"v1/projects/{project}/serviceAccounts", "listing service accounts")
        return [str(a["email"]) for a in found.get("accounts") or () if not a.get("disabled")]

    return {
        "project": [project],
        "region": [region],
        "bucket": sorted(_if_seen(buckets), key=_likely),
        "service_account": sorted(_if_seen(accounts), key=_likely),
    }


def _if_seen(listed: Callable[[], list[str]]) -> list[str]:
    try:
        return listed()
    except UnreachableError:
        raise
    except BackendError:
        return []


def _image_of(plan: Plan) -> str:
    pool = plan.request["customJob"]["jobSpec"]["workerPoolSpecs"][0]
    return str(pool["containerSpec"]["imageUri"])


def _usual_project() -> str:
    """Of the environment or of the user's credentials. Raises ConfigError when there is none."""
    if found := os.environ.get("GOOGLE_CLOUD_PROJECT"):
        return found
    try:
        import google.auth
        from google.auth.exceptions import GoogleAuthError

        found = google.auth.default()[1]
    except GoogleAuthError as exc:
        raise CredentialsError(f"no Google credentials can be used: {exc}", LOGIN) from exc
    if not found:
        raise ConfigError("no Google Cloud project is known", "launch setup vertex --find --project my-project")
    return str(found)


def _likely(name: str) -> tuple[bool, str]:
    return not re.search("finelaunch|train|vertex", name), name


def _limit(answer: Mapping[str, Any], region: str) -> int | None:
    """Of a consumerQuotaMetric: its limit in the region, else the one without a region; -1 is none at all.

    https://cloud.google.com/service-usage/docs/reference/rest/v1beta1/services.consumerQuotaMetrics
    """
    found: dict[str, int] = {}
    for limit in answer.get("consumerQuotaLimits") or ():
        for bucket in limit.get("quotaBuckets") or ():
            if "effectiveLimit" in bucket:
                found[bucket.get("dimensions", {}).get("region", "")] = int(bucket["effectiveLimit"])
    return found.get(region, found.get(""))


def _unseen(what: str, exc: LaunchError) -> Problem:
    hint = exc.hint or "ask whoever manages the project"
    return Problem(what=f"{what} could not be checked: {exc.message}", fix=hint, fatal=False)
