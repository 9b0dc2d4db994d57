"""Azure's REST addresses with one sign-in behind them, and Azure's errors in this program's words.

azure-core's pipeline sends a token over TLS only. https://learn.microsoft.com/rest/api/azureml/ (read 2026-11-25)
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from backends.azureml.who import Who, tried, who
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

ARM = "https://management.azure.com"
VAULT_SCOPE = "https://vault.azure.net/.default"
ARM_SCOPE = f"{ARM}/.default"
ATTEMPTS = 5
CONNECT_S, READ_S = 10, 60
"""Per try: what hangs is given up and tried again."""
BACKOFF_MAX_S = 20
LOGIN = (
    "az login, then the same command again; AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET do as well"
)
EXPIRED = frozenset(
    ("AuthenticationFailed", "ExpiredAuthenticationToken", "InvalidAuthenticationToken",
     "InvalidAuthenticationInfo", "InvalidAuthenticationTokenTenant", "NoAuthenticationInformation")
)  # fmt: skip
MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)  # fmt: skip
SIGNATURE = re.compile(r"(?i)\bsig=[^&\s'\")]+")
"""In the URLs of logs, which Azure's errors quote."""
NO_NETWORK = re.compile(
    r"(?i)max retries exceeded|unable to connect to proxy|failed to (?:resolve|establish a new connection)"
    r"|name or service not known|name resolution|getaddrinfo|connection (?:refused|reset|aborted|timed out)"
    r"|network is unreachable|remote end closed connection"
)
"""How requests, urllib3 and the az program say that they did not get through (azure-identity 1.25, 2026-11-25)."""


class Azure:
    """Azure's addresses, asked as whoever is signed in. Making one does no I/O."""

    def __init__(self) -> None:
        self._credential: Any = None
        self._clients: dict[str | None, Any] = {}

    @property
    def credential(self) -> Any:
        """azure-identity's default chain: environment, workload and managed identity, az, azd, PowerShell."""
        if self._credential is None:
            with installed():
                from azure.identity import DefaultAzureCredential

                # The chain notes on standard error what it has tried; the error that ends it says so, too.
                logging.getLogger("azure").setLevel(logging.CRITICAL)
                self._credential = DefaultAzureCredential()
        return self._credential

    def who(self) -> Who:
        """As whom it asks, and which credential of the chain answers. Raises CredentialsError."""
        with self.errors("signing in to Azure"):
            token = self.credential.get_token(ARM_SCOPE).token
        found = getattr(self.credential, "_successful_credential", None)
        return who(type(found or self.credential).__name__, token)

    def call(
        self, method: str, url: str, doing: str, *, version: str | None = None, body: Any = None,
        query: Mapping[str, str] | None = None, scope: str | None = ARM_SCOPE,
    ) -> dict[str, Any]:  # fmt: skip
        """One call's JSON, empty where there is none; a path is Azure Resource Manager's. Raises LaunchError.

        `scope`: whom the token is for; None sends none.
        """
        answer = self._send(method, _absolute(url), doing, version, body, query, scope, {})
        try:
            found = json.loads(answer.text() or "{}")
        except ValueError as exc:
            raise BackendError(f"{doing}: Azure's answer is not JSON", "the same command again") from exc
        return found if isinstance(found, dict) else {"value": found}

    def pages(
        self, url: str, doing: str, version: str, query: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every item of a listing."""
        page = self.call("GET", url, doing, version=version, query=query)
        while True:
            yield from page.get("value") or ()
            following = page.get("nextLink")
            if not following:
                return
            if urlsplit(following).netloc != urlsplit(ARM).netloc:
                raise BackendError(f"{doing}: the list goes on at another host", "report this")
            page = self.call("GET", following, doing)

    def bytes_from(self, url: str, start: int, most: int, doing: str) -> bytes:
        """`most` bytes of a signed URL from `start` on, fewer at its end. No token is sent."""
        if urlsplit(url).scheme != "https":
            raise BackendError(
                f"{doing}: Azure names an address without TLS", "see the workspace's storage account"
            )
        headers = {"Range": f"bytes={start}-{start + most - 1}", "x-ms-version": "2021-08-06"}
        answer = self._send("GET", url, doing, None, None, None, None, headers, allowed=(416,))
        if answer.status_code == 416:  # there is nothing behind `start`
            return b""
        content: bytes = answer.content
        # A server that ignores the range sends everything.
        return content if answer.status_code == 206 else content[start : start + most]

    def has_image(self, registry: str, repository: str, reference: str, doing: str) -> bool:
        """Is it in this registry of Azure's (NAME.azurecr.io)? https://azure.github.io/acr/AAD-OAuth.html"""
        with self.errors(doing):
            token = self.credential.get_token(ARM_SCOPE).token
        given = {"grant_type": "access_token", "service": registry, "access_token": token}
        refresh = self._told_by(registry, "exchange", given, doing, "refresh_token")
        scope = f"repository:{repository}:pull"
        given = {"grant_type": "refresh_token", "service": registry, "scope": scope, "refresh_token": refresh}
        access = self._told_by(registry, "token", given, doing, "access_token")
        url, headers = f"https://{registry}/v2/{repository}/manifests/{reference}", {"Accept": MANIFESTS}
        headers["Authorization"] = f"Bearer {access}"
        answer = self._send("GET", url, doing, None, None, None, None, headers, allowed=(404,))
        return bool(answer.status_code != 404)

    def _told_by(self, registry: str, what: str, given: Mapping[str, str], doing: str, field: str) -> str:
        """One field of a registry's answer to a form."""
        url = f"https://{registry}/oauth2/{what}"
        answer = self._send("POST", url, doing, None, None, None, None, {}, form=given)
        try:
            return str(json.loads(answer.text())[field])
        except (ValueError, LookupError, TypeError) as exc:
            raise BackendError(f"{doing}: {registry} gives no {field}", "the same command again") from exc

    @contextlib.contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """What Azure's SDK raises in here leaves as LaunchError; after a refusal the next call signs in anew."""
        try:
            yield
        except LaunchError as exc:
            if isinstance(exc, CredentialsError):
                self._forget()
            raise
        except Exception as exc:
            found = in_words(exc, doing)
            if found is None:
                raise
            if isinstance(found, CredentialsError):
                self._forget()
            # Not as its cause: a traceback would show the signed URL in its text.
            raise found from None

    def _forget(self) -> None:
        self._credential = None
        self._clients.clear()

    def _send(
        self, method: str, url: str, doing: str, version: str | None, body: Any, query: Mapping[str, str] | None,
        scope: str | None, headers: Mapping[str, str], allowed: tuple[int, ...] = (),
        form: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        with self.errors(doing):
            client = self._client(scope)
            from azure.core.rest import HttpRequest

            params = {**(query or {}), **({"api-version": version} if version else {})}
            request = HttpRequest(
                method, url, params=params, json=body, data=dict(form) if form else None, headers=dict(headers)
            )
            answer = client.send_request(request)
            if answer.status_code >= 400 and answer.status_code not in allowed:
                code, said = _told(answer.text())
                request_id = answer.headers.get("x-ms-request-id")
                raise refusal(answer.status_code, code, said, doing, request_id)
            return answer

    def _client(self, scope: str | None) -> Any:
        if scope not in self._clients:
            with installed():
                from azure.core import PipelineClient
                from azure.core.pipeline import policies
            signed = [policies.BearerTokenCredentialPolicy(self.credential, scope)] if scope else []
            self._clients[scope] = PipelineClient(
                base_url="",
                policies=[
                    policies.RequestIdPolicy(), policies.UserAgentPolicy("finelaunch"),
                    policies.RetryPolicy(retry_total=ATTEMPTS, retry_backoff_max=BACKOFF_MAX_S), *signed,
                ],
                connection_timeout=CONNECT_S, read_timeout=READ_S,
            )  # fmt: skip
        return self._clients[scope]


def in_words(exc: Exception, doing: str) -> LaunchError | None:
    """The error for a user; None for what is no error of Azure's."""
    from azure.core import exceptions as e

    said = SIGNATURE.sub("sig=***", str(getattr(exc, "message", None) or exc)).strip()
    if isinstance(exc, e.ServiceRequestError | e.ServiceResponseError | e.IncompleteReadError):
        return UnreachableError(
            f"{doing}: Azure can't be reached: {said}", "see the network, then the same command again"
        )
    status = getattr(exc, "status_code", None)
    if isinstance(exc, e.HttpResponseError) and status:
        code = getattr(exc, "error_code", None) or getattr(getattr(exc, "error", None), "code", None) or ""
        code = str(getattr(code, "value", code))  # azure-storage-blob's are an enum
        headers = getattr(exc.response, "headers", None) or {}
        return refusal(int(status), code, said.splitlines()[0], doing, headers.get("x-ms-request-id"))
    if isinstance(exc, e.ClientAuthenticationError):
        if _names_no_network(said):
            return UnreachableError(
                f"{doing}: Azure's sign-in can't be reached: {tried(said)}",
                "see the network, then the same command again",
            )
        return CredentialsError(f"{doing}: nobody is signed in to Azure: {tried(said)}", LOGIN)
    if isinstance(exc, e.AzureError):
        return BackendError(f"{doing}: {said}", "launch doctor; --debug shows where")
    return None


def _names_no_network(said: str) -> bool:
    """Did a credential of the chain fail on its way to Azure? Managed identities are on the machine itself."""
    lines = (line for line in said.splitlines() if not re.search(r"ManagedIdentity|169\.254\.", line))
    return any(NO_NETWORK.search(line) for line in lines)


def refusal(status: int, code: str, said: str, doing: str, request_id: str | None) -> LaunchError:
    """An answer above 399 as the error for a user."""
    if status == 401 or code in EXPIRED:
        return CredentialsError(f"{doing}: Azure does not accept the sign-in ({code}): {said}", LOGIN)
    if status == 403:
        return BackendError(
            f"{doing}: Azure refuses it ({code}): {said}",
            "launch setup azureml --advice shows the roles that are needed", request_id,
        )  # fmt: skip
    if status in (408, 429) or status >= 500:
        return UnreachableError(
            f"{doing}: Azure is busy or broken ({code or status}): {said}",
            "the same command again, later",
            request_id,
        )
    if status == 404:
        return JobNotFoundError(f"{doing}: Azure has it no more, or never had ({code}): {said}", "launch list")
    if "quota" in f"{code} {said}".lower():
        return QuotaError(
            f"{doing}: {said}",
            "ask for more of Azure Machine Learning's own quota: https://ml.azure.com/quota, Request quota",
        )
    return BackendError(
        f"{doing}: Azure refuses it ({code or status}): {said}", "launch plan --json shows the request", request_id
    )


def workspace_path(scope: str) -> str:
    """`SUBSCRIPTION:GROUP:WORKSPACE`, as references have it, as the workspace's ARM id."""
    parts = scope.split(":")
    if len(parts) != 3 or not all(parts):
        raise ConfigError(
            f"{scope!r} is not SUBSCRIPTION:RESOURCE_GROUP:WORKSPACE", "launch list --json prints references"
        )
    subscription, group, name = parts
    return (
        f"/subscriptions/{subscription}/resourceGroups/{group}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{name}"
    )


def _absolute(url: str) -> str:
    return f"{ARM}{url}" if url.startswith("/") else url


def _told(text: str) -> tuple[str, str]:
    """(code, message) of an error's body: JSON, or a blob's XML."""
    try:
        error = json.loads(text)["error"]
        return str(error.get("code") or ""), str(error.get("message") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        code = re.search(r"<Code>([^<]+)", text)
        return (code[1] if code else ""), " ".join(text.split())[:200]


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """A missing package of the extra leaves as BackendNotInstalledError."""
    try:
        yield
    except ImportError as exc:
        raise BackendNotInstalledError(
            f"backend azureml needs the packages azure-identity and azure-storage-blob ({exc})",
            "pip install 'finelaunch[azureml]'",
        ) from exc
