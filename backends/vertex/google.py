"""Google's clients for one project and region, made on use, and Google's errors in this program's words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from backends.vertex.quotas import API, PAGE
from launcher.errors import (
    BackendError,
    BackendNotInstalledError,
    ConfigError,
    CredentialsError,
    JobNotFoundError,
    LaunchError,
    QuotaError,
    UnreachableError,
)

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
CALL_S = 60
RETRY_S = 60
LOGIN = "gcloud auth application-default login (or GOOGLE_APPLICATION_CREDENTIALS), then the same command again"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PLACES = {
    "vertex": ("LAUNCH_VERTEX_ENDPOINT", "https://{region}-aiplatform.googleapis.com"),
    "logging": ("LAUNCH_LOGGING_ENDPOINT", "https://logging.googleapis.com"),
    "storage": ("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com"),
    **{
        name: (f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{name.upper()}", f"https://{name}.googleapis.com")
        for name in ("secretmanager", "serviceusage", "iam", "cloudresourcemanager", "openidconnect")
    },
    "artifactregistry": ("CLOUDSDK_API_ENDPOINT_OVERRIDES_ARTIFACTREGISTRY", "https://{host}"),
}
"""Service -> the variable that names another address for it, and Google's own.

No such variable exists in google-cloud-aiplatform 2.7.0; STORAGE_EMULATOR_HOST is google-cloud-storage's own,
CLOUDSDK_... are gcloud's: https://cloud.google.com/sdk/gcloud/reference/topic/configurations (2026-11-23).
"""


class Google:
    """One project's services in one region. After a CredentialsError clients are made anew: a login is enough."""

    def __init__(self, project: str, region: str) -> None:
        self.project = project
        self.region = region
        self.parent = f"projects/{project}/locations/{region}"
        self._clients: dict[str, Any] = {}
        """Read once by each call: another thread may clear it in between."""

    def jobs(self) -> Any:
        """JobServiceClient of google-cloud-aiplatform, over REST."""
        if (made := self._clients.get("jobs")) is None:
            try:
                from google.cloud.aiplatform_v1 import JobServiceClient
            except ModuleNotFoundError as exc:
                raise _not_installed(exc) from exc
            address = endpoint("vertex", region=self.region)
            # The REST transport alone takes an address with a scheme, and so a loopback one.
            made = self._clients["jobs"] = JobServiceClient(
                credentials=self.credentials("vertex"), transport="rest", client_options={"api_endpoint": address}
            )
        return made

    def storage(self) -> Any:
        """google-cloud-storage's client."""
        if (made := self._clients.get("storage")) is None:
            try:
                from google.cloud.storage import Client
            except ModuleNotFoundError as exc:
                raise _not_installed(exc) from exc
            endpoint("storage")
            made = Client(project=self.project, credentials=self.credentials("storage"))
            self._clients["storage"] = made
        return made

    def ask(
        self, service: str, path: str, doing: str, body: Mapping[str, Any] | None = None, host: str = ""
    ) -> dict[str, Any]:
        """GET, or POST with a body, a JSON object of a service; repeated while the service is busy."""
        with self.errors(doing):
            session = self._session(service)
            url = self.url(service, path, host)

            def once() -> dict[str, Any]:
                method = "GET" if body is None else "POST"
                answer = session.request(method, url, json=body, timeout=CALL_S)
                if not answer.ok:
                    raise _refusal(answer)
                found: dict[str, Any] = answer.json() if answer.content else {}
                return found

            return patience()(once)()  # type: ignore[no-any-return]

    def head(
        self, service: str, path: str, doing: str, headers: Mapping[str, str], host: str
    ) -> Mapping[str, str] | None:
        """HEAD: what is said of it, None: it is not there. Raises LaunchError where that can't be seen."""
        with self.errors(doing):
            url = self.url(service, path, host)
            answer = self._session(service).request("HEAD", url, headers=dict(headers), timeout=CALL_S)
            if answer.status_code == 404:
                return None
            if not answer.ok:
                raise _refusal(answer)
            found: Mapping[str, str] = answer.headers
            return found

    @contextlib.contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """What Google's clients raise in here leaves as LaunchError."""
        try:
            yield
        except LaunchError:
            raise
        except Exception as exc:
            found = in_words(exc, doing, self.project)
            if found is None:
                raise
            if isinstance(found, CredentialsError):
                self._clients.clear()
            raise found from exc

    def credentials(self, service: str) -> Any:
        """The user's own (ADC); none for an address on this machine."""
        try:
            import google.auth
            from google.auth.credentials import AnonymousCredentials
        except ModuleNotFoundError as exc:
            raise _not_installed(exc) from exc
        if is_loopback(endpoint(service, region=self.region, host="example.invalid")):
            return AnonymousCredentials()  # type: ignore[no-untyped-call]
        if (made := self._clients.get("credentials")) is None:
            with self.errors("looking for Google credentials"):
                made = self._clients["credentials"] = google.auth.default(scopes=SCOPES)[0]
        return made if service == "storage" else self._counted(made)

    def _counted(self, credentials: Any) -> Any:
        """A login that names no project on which its calls count, with ours: most services refuse it otherwise.

        https://cloud.google.com/docs/authentication/adc-troubleshooting/user-creds (2026-11-30)
        """
        from google.oauth2.credentials import Credentials

        if not isinstance(credentials, Credentials) or credentials.quota_project_id:
            return credentials
        if (made := self._clients.get("counted credentials")) is None:
            made = credentials.with_quota_project(self.project)
            self._clients["counted credentials"] = made
        return made

    def _session(self, service: str) -> Any:
        if (made := self._clients.get(f"session {service}")) is None:
            credentials = self.credentials(service)
            from google.auth.transport.requests import AuthorizedSession

            made = self._clients[f"session {service}"] = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        return made

    def url(self, service: str, path: str, host: str = "") -> str:
        return f"{endpoint(service, region=self.region, host=host)}/{path}"


def endpoint(service: str, **names: str) -> str:
    """The service's address. Raises ConfigError where a token would leave this machine without TLS."""
    variable, usual = PLACES[service]
    given = (os.environ.get(variable) or "").rstrip("/")
    if not given:
        return usual.format(**names)
    address = given if "://" in given else f"http://{given}"
    if not is_loopback(address) and urlsplit(address).scheme != "https":
        raise ConfigError(
            f"{variable} is {given}: what is sent there would leave this machine without TLS",
            "name an https:// address, or one on this machine, or unset it",
        )
    return address


def is_loopback(address: str) -> bool:
    return urlsplit(address).hostname in LOOPBACK


def patience() -> Any:
    """The retry for calls that may be repeated."""
    from google.api_core.retry import Retry

    return Retry(predicate=is_passing, initial=0.5, maximum=8.0, multiplier=2.0, timeout=RETRY_S)


def is_passing(exc: BaseException) -> bool:
    """May the same call work in a moment? Whether this one was carried out is not known then."""
    import requests
    from google.api_core import exceptions as g
    from google.auth.exceptions import TransportError

    if isinstance(exc, g.TooManyRequests):
        return not _is_quota(str(exc))
    kinds = (
        g.InternalServerError, g.BadGateway, g.ServiceUnavailable, g.GatewayTimeout,
        requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError,
        requests.exceptions.JSONDecodeError, ConnectionError, TransportError,
    )  # fmt: skip
    return isinstance(exc, kinds)


def in_words(exc: Exception, doing: str, project: str) -> LaunchError | None:
    """The error for a user; None for what is no error of Google's clients."""
    import requests
    from google.api_core import exceptions as g
    from google.auth import exceptions as a
    from google.cloud.storage import exceptions as s

    if isinstance(exc, g.RetryError) and isinstance(exc.cause, Exception):
        return in_words(exc.cause, doing, project)
    if isinstance(exc, g.GoogleAPICallError):
        return _of_answer(exc, doing, project)
    if isinstance(exc, a.TransportError | requests.RequestException | ConnectionError):
        return UnreachableError(
            f"{doing}: Google Cloud can't be reached: {exc}", "see the network, then the same command again"
        )
    if isinstance(exc, a.GoogleAuthError):
        return CredentialsError(f"{doing}: no Google credentials can be used: {exc}", LOGIN)
    if isinstance(exc, g.GoogleAPIError | s.InvalidResponse | s.DataCorruption):
        return BackendError(f"{doing}: {exc}", "the same command again; --debug shows where")
    return None


def _refusal(answer: Any) -> Exception:
    """google-api-core's exception for a response that is not ok."""
    from google.api_core.exceptions import from_http_response

    found: Exception = from_http_response(answer)  # type: ignore[no-untyped-call]
    return found


def _of_answer(exc: Any, doing: str, project: str) -> LaunchError:
    from google.api_core import exceptions as g

    said = exc.message
    if isinstance(exc, g.Unauthorized):
        return CredentialsError(f"{doing}: Google does not accept the credentials: {said}", LOGIN)
    if isinstance(exc, g.Forbidden):
        return BackendError(f"{doing}: Google refuses it: {said}", _way_in(exc, project))
    if isinstance(exc, g.NotFound):
        return JobNotFoundError(f"{doing}: Google has it no more, or never had: {said}", "launch list")
    if isinstance(exc, g.TooManyRequests) and _is_quota(said):
        return QuotaError(f"{doing}: {said}", f"ask for more: {PAGE.format(project=project)}")
    if exc.code is None or int(exc.code) >= 500 or isinstance(exc, g.TooManyRequests):
        return UnreachableError(f"{doing}: Google is busy or broken: {said}", "the same command again, later")
    return BackendError(
        f"{doing}: Google refuses it: {said}", "launch plan --backend vertex --json shows the request"
    )


def _way_in(exc: Any, project: str) -> str:
    """What to type after a 403."""
    said = exc.message
    if "requires a quota project" in said:  # with the reason SERVICE_DISABLED, too
        return f"gcloud auth application-default set-quota-project {project}"
    if "permission to use project" in said:
        return "roles/serviceusage.serviceUsageConsumer is needed: launch setup vertex --advice prints the command"
    if "SERVICE_DISABLED" in str(exc) or "has not been used in project" in said:
        service = (exc.metadata or {}).get("service") or API
        return f"gcloud services enable {service} --project {project}"
    return "launch setup vertex --advice shows the roles that are needed"


def _is_quota(said: str) -> bool:
    """A quota on machines, not one on calls a minute."""
    return "custom_model_training" in said


def _not_installed(exc: ModuleNotFoundError) -> BackendNotInstalledError:
    return BackendNotInstalledError(
        f"backend vertex needs the package {exc.name}", "pip install 'finelaunch[vertex]'"
    )
