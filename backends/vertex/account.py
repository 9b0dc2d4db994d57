"""What a project must have for a job: looked at before anything is sent, or found for `launch setup`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from backends.base import Plan, Problem, Site
from backends.vertex import quotas
from backends.vertex.google import LOGIN, Google
from backends.vertex.policies import REPOSITORY
from backends.vertex.quotas import API, PAGE
from launcher.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    JobNotFoundError,
    LaunchError,
    UnreachableError,
)

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
READERS = ("roles/secretmanager.secretAccessor", "roles/secretmanager.admin", "roles/owner")
"""https://cloud.google.com/secret-manager/docs/access-control (2026-11-30)"""
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
            own = plan is not None and image == plan.job.resources.image
            found += self._of_image(image, "--set resources.image=" if own else "launch setup vertex --image ")
        if plan is not None:
            found += [*self._of_quotas(plan), *self._of_secrets(plan, site.get("service_account"))]
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

    def _of_quotas(self, plan: Plan) -> Iterator[Problem]:
        """Too small ones; those that Google tells nothing of become one note."""
        project, region = self._google.project, self._google.region
        page, unknown = PAGE.format(project=project), []
        for metric, wanted, certain in quotas.needs(plan.request["customJob"]["jobSpec"]):
            path = f"v1beta1/projects/{project}/services/{API}/consumerQuotaMetrics/{quote(metric, safe='')}"
            answer = self._look(f"the quota {metric}", "serviceusage", path)
            if answer is UNSEEN:
                continue
            limit = quotas.limit(answer or {}, region)
            if limit is None:
                unknown.append(f"{metric} (the job needs {wanted})")
            elif 0 <= limit < wanted:
                yield Problem(
                    what=f"the quota {metric} is {limit} in {region}, and the job needs {wanted}",
                    fix=f"ask for more: {page} (a quota of Vertex AI's own, beside Compute Engine's)",
                    fatal=certain,
                    kind="quota",
                )
        if unknown:
            what = f"not known here, since Google tells no limit for {region}: the quota {' and '.join(unknown)}"
            yield Problem(what=what, fix=f"see that it is not 0: {page}", fatal=False, kind="quota")

    def _of_image(self, image: str, how: str) -> Iterator[Problem]:
        """`how`: what is typed before the name of another image."""
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
                fix=f"build docker/Dockerfile and push it; {how.rstrip(' =')} names another",
            )
        elif match["digest"] is None and (digest := told.get("Docker-Content-Digest")):
            yield Problem(
                what=f"image {image} has no digest: what it holds may change between two jobs",
                fix=f"{how}{match['host']}/{match['name']}@{digest}",
                fatal=False,
            )

    def _of_secrets(self, plan: Plan, account: str | None) -> Iterator[Problem]:
        """Has each secret a value, and may the job's account read it? A secret without a value exists too."""
        project = self._google.project
        for name in plan.job.secrets:
            path = f"v1/projects/{project}/secrets/{quote(name)}/versions/latest"
            found = self._look(f"secret {name}", "secretmanager", path)
            state = None if found is None else found.get("state", "ENABLED")
            if state != "ENABLED":
                lacks = "its newest version is disabled or destroyed" if state else "it is not there, or empty"
                yield Problem(
                    what=f"no value can be read of secret {name} in Secret Manager of {project}: {lacks}",
                    fix=f"launch secrets put {name} --backend vertex",
                    kind="credentials",
                )
            elif account and self._may_not_read(account, name):
                yield Problem(  # a group or a folder may allow it, which is not seen here
                    what=f"as far as can be seen, {account} may not read secret {name}",
                    fix=f"gcloud secrets add-iam-policy-binding {name} --project {project} "
                    f"--role {READERS[0]} --member serviceAccount:{account}",
                    fatal=False,
                )

    def _may_not_read(self, account: str, name: str) -> bool:
        """True where both policies can be seen, and neither has the account in a role that may read."""
        project = self._google.project
        asked: tuple[tuple[str, str, dict[str, Any] | None], ...] = (
            ("secretmanager", f"v1/projects/{project}/secrets/{quote(name)}:getIamPolicy", None),
            ("cloudresourcemanager", f"v1/projects/{project}:getIamPolicy", {}),
        )
        for service, path, body in asked:
            try:
                policy = self._google.ask(service, path, f"looking at who may read {name}", body)
            except LaunchError:
                return False
            for binding in policy.get("bindings") or ():
                own = not str(binding.get("role")).startswith("roles/")  # a role of theirs may hold the right
                if f"serviceAccount:{account}" in binding.get("members", ()) and (
                    own or binding["role"] in READERS
                ):
                    return False
        return True

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
    """Project and region as gcloud has them, then the project's buckets there, service accounts and images.

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

    def images() -> list[str]:
        """Of the repository that `advice` makes, by digest, the newest first."""
        path = f"v1/projects/{project}/locations/{region}/repositories/{REPOSITORY}/dockerImages"
        found = google.ask("artifactregistry", path, "listing images", host="artifactregistry.googleapis.com")
        newest = sorted(found.get("dockerImages") or (), key=lambda i: str(i.get("updateTime")), reverse=True)
        return [str(image["uri"]) for image in newest]

    return {
        "project": [project],
        "region": [region],
        "bucket": sorted(_if_seen(buckets), key=_likely),
        "service_account": sorted(_if_seen(accounts), key=_likely),
        "image": _if_seen(images),
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


def _unseen(what: str, exc: LaunchError) -> Problem:
    hint = exc.hint or "ask whoever manages the project"
    return Problem(what=f"{what} could not be checked: {exc.message}", fix=hint, fatal=False)
