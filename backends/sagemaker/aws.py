"""Clients of AWS for one region, made on use, and AWS's errors in this program's words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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

ATTEMPTS = 6
CONNECT_S = 10
READ_S = 60
LOGIN = "aws sso login (or aws configure), then the same command again; AWS_PROFILE names another profile"
EXPIRED = frozenset(
    (
        "ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidClientTokenId", "AuthFailure",
        "UnrecognizedClientException", "SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken",
    )
)  # fmt: skip
DENIED = frozenset(("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden"))
PROVIDERS = {
    "env": "AWS_ACCESS_KEY_ID in the environment",
    "assume-role": "a role of the profile",
    "assume-role-with-web-identity": "a web identity token (AWS_WEB_IDENTITY_TOKEN_FILE)",
    "sso": "single sign-on",
    "login": "aws login",
    "custom-process": "the profile's credential_process",
    "shared-credentials-file": "the credentials file",
    "config-file": "the config file",
    "container-role": "the role of this container",
    "iam-role": "the role of this machine (instance metadata)",
}
"""What botocore calls each provider of its chain (botocore 1.44.8), in words; the order is the chain's."""
OF_A_PROFILE = ("assume-role", "sso", "login", "custom-process", "shared-credentials-file", "config-file")
BUSY = frozenset(
    (
        "Throttling", "ThrottlingException", "ThrottledException", "RequestLimitExceeded", "RequestThrottled",
        "TooManyRequestsException", "SlowDown", "InternalFailure", "InternalServerError", "InternalError",
        "ServiceUnavailable", "ServiceUnavailableException", "500", "503",
    )
)  # fmt: skip
MISSING = frozenset(
    (
        "ResourceNotFound", "ResourceNotFoundException", "NoSuchKey", "404", "NotFound", "NoSuchEntity",
        "NoSuchBucket", "NoSuchUpload", "InvalidPart",
    )
)  # fmt: skip
OF_A_JOB = frozenset(("DescribeTrainingJob", "StopTrainingJob", "DeleteTrainingJob"))
"""Operations whose ValidationException may say that a job is gone. CreateTrainingJob's is about what it names."""


class Aws:
    """One region's clients. Expired credentials are read anew on the next call, so a login is enough."""

    def __init__(self, region: str) -> None:
        self.region = region
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """boto3's client of a service. Raises BackendNotInstalledError or CredentialsError."""
        found = self._clients.get(service)
        if found is None:  # another thread, whose login has expired, may empty the table at any time
            found = self._clients[service] = self._make(service)
        return found

    def call(
        self, service: str, operation: str, doing: str, *, expects: str | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """One call; `doing` is what it is for, in words. Raises LaunchError, never an error of boto3.

        `expects`: a field that a whole answer has; boto3 takes half an answer for an empty one.
        """
        with self.errors(doing):
            found: dict[str, Any] = getattr(self.client(service), operation)(**arguments)
        if expects is not None and expects not in found:
            raise UnreachableError(f"{doing}: AWS's answer did not come whole", "the same command again")
        return found

    def pages(self, service: str, operation: str, doing: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Every page of a listing."""
        with self.errors(doing):
            yield from self.client(service).get_paginator(operation).paginate(**arguments)

    @contextlib.contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """What boto3 raises in here leaves as LaunchError."""
        try:
            yield
        except LaunchError:
            raise
        except Exception as exc:
            found = in_words(exc, doing, self.region)
            if found is None:
                raise
            if isinstance(found, CredentialsError):
                self._clients.clear()
            raise found from exc

    def provider(self) -> str:
        """Which credential of the chain answers, in words. Raises CredentialsError when none does."""
        session = self._session()
        with self.errors("looking for your AWS credentials"):
            found = session.get_credentials()
        if found is None:
            raise CredentialsError("no AWS credentials can be used: there are none", LOGIN)
        words = PROVIDERS.get(found.method, found.method)
        return f"{words}, profile {session.profile_name}" if found.method in OF_A_PROFILE else words

    def is_plain_http(self, service: str) -> bool:
        """True when requests would leave this machine without TLS (an endpoint that the user has overridden)."""
        from urllib.parse import urlsplit

        url = urlsplit(self.client(service).meta.endpoint_url)
        local = url.hostname in ("127.0.0.1", "localhost", "::1")
        return url.scheme == "http" and not local

    def _session(self) -> Any:
        """A session of its own: boto3's default one is shared by threads and remembers old credentials."""
        try:
            import boto3
        except ModuleNotFoundError as exc:
            raise _not_installed() from exc
        with self.errors("reading your AWS profile"):
            return boto3.Session(region_name=self.region)

    def _make(self, service: str) -> Any:
        session = self._session()
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_S, read_timeout=READ_S, user_agent_extra="finelaunch",
        )  # fmt: skip
        with self.errors(f"preparing to call {service}"):
            return session.client(service, config=config)


def usual_region() -> str:
    """The region of the user's profile or environment. Raises ConfigError when there is none."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
    except ModuleNotFoundError as exc:
        raise _not_installed() from exc
    try:
        found = boto3.Session().region_name
    except BotoCoreError as exc:
        raise CredentialsError(f"reading your AWS profile: {exc}", LOGIN) from exc
    if found is None:
        raise ConfigError("no AWS region is known", "launch setup sagemaker --find --region us-east-1")
    return str(found)


def _not_installed() -> BackendNotInstalledError:
    return BackendNotInstalledError(
        "backend sagemaker needs the package boto3", "pip install 'finelaunch[sagemaker]'"
    )


def code_of(exc: BaseException) -> str:
    """AWS's error code, empty for an exception without one."""
    response = getattr(exc, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def is_missing(exc: BaseException) -> bool:
    """Does AWS say that it does not have the thing? SageMaker says so of a job as a ValidationException, too."""
    text = str(exc).lower()
    return code_of(exc) in MISSING or (
        code_of(exc) == "ValidationException"
        and getattr(exc, "operation_name", None) in OF_A_JOB
        and ("not found" in text or "could not find" in text)
    )


def is_refusal(exc: BaseException) -> bool:
    """Has AWS surely refused it? Not where an earlier try, whose answer was lost, may have been heard."""
    response = getattr(exc, "response", None)
    if not isinstance(response, dict) or code_of(exc) in BUSY | EXPIRED:
        return False
    meta = response.get("ResponseMetadata", {})
    return meta.get("RetryAttempts", 1) == 0 and 400 <= int(meta.get("HTTPStatusCode") or 0) < 500


def in_words(exc: Exception, doing: str, region: str) -> LaunchError | None:
    """The error for a user; None for what is no error of AWS's."""
    from botocore import exceptions as b

    if isinstance(exc, b.ClientError):
        return _of_answer(exc, doing, region)
    if isinstance(
        exc,
        b.NoCredentialsError | b.PartialCredentialsError | b.CredentialRetrievalError | b.SSOError
        | b.ProfileNotFound | b.TokenRetrievalError | b.NoAuthTokenError,
    ):  # fmt: skip
        return CredentialsError(f"{doing}: no AWS credentials can be used: {exc}", LOGIN)
    if isinstance(exc, b.HTTPClientError | b.ConnectionError):
        return UnreachableError(
            f"{doing}: AWS can't be reached in {region}: {exc}", "see the network, then the same command again"
        )
    if isinstance(exc, b.BotoCoreError):
        return BackendError(f"{doing}: {exc}", "launch doctor; --debug shows where")
    return None


def _of_answer(exc: Any, doing: str, region: str) -> LaunchError:
    code = code_of(exc)
    said = str(exc.response.get("Error", {}).get("Message", "")) or code
    meta = exc.response.get("ResponseMetadata", {})
    request_id = meta.get("RequestId")
    if code in EXPIRED:
        return CredentialsError(f"{doing}: AWS does not accept the credentials ({code}): {said}", LOGIN)
    if code in DENIED:
        return BackendError(
            f"{doing}: AWS refuses {exc.operation_name}: {said}",
            f"allow {exc.operation_name} for your user or role (launch setup sagemaker --advice shows the policy)",
            request_id=request_id,
        )
    if code in BUSY or int(meta.get("HTTPStatusCode") or 0) >= 500:
        return UnreachableError(
            f"{doing}: AWS is busy or broken ({code}): {said}", "the same command again, later", request_id
        )
    if code == "ResourceLimitExceeded":
        return QuotaError(
            f"{doing}: {said}",
            f"ask for more: https://{region}.console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas",
        )
    if is_missing(exc):
        return JobNotFoundError(f"{doing}: AWS has it no more, or never had: {said}", "launch list")
    return BackendError(
        f"{doing}: AWS refuses it ({code}): {said}", "launch plan --json shows the request", request_id
    )
