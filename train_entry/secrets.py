"""Secrets by reference: resolved inside the container, by the job's own identity, into the ranks' environment.

LAUNCH_SECRETS is JSON, name -> reference:

aws-sm://REGION/SECRET_ID     AWS Secrets Manager        aws-ssm://REGION/NAME    SSM parameter
gcp-sm://PROJECT/SECRET       Google Secret Manager      azure-kv://VAULT/NAME    Azure Key Vault

No value is ever printed, logged or put into an error.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from train_entry.failure import JobError

TIMEOUT_S = 10
"""For one request. Metadata servers answer within milliseconds, stores within a second."""
WAITS_S = (1.0, 3.0, 9.0)
"""Before another try: a metadata server may be up after the container, and stores are busy at times."""
BUSY = (408, 429, 500, 502, 503, 504)
AWS_BUSY = ("Throttl", "TooManyRequests", "RequestLimitExceeded", "Internal", "ServiceUnavailable")
"""Parts of AWS's error codes; it answers throttled calls with HTTP 400."""
AWS_LOGIN = ("ExpiredToken", "UnrecognizedClient", "InvalidClientTokenId", "SignatureDoesNotMatch")
GOOGLE_STORE = "https://secretmanager.googleapis.com/"
AZURE_VAULT = "https://{vault}.vault.azure.net"
AZURE_RESOURCE = "https://vault.azure.net"
AZURE_IMDS = "http://169.254.169.254"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Refused(Exception):
    """A store's answer in words: what is wrong, what to do, and whether the same may work in a moment."""

    def __init__(self, what: str, hint: str, passing: bool = False) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.passing = passing


def references() -> dict[str, str]:
    """LAUNCH_SECRETS, name -> reference; empty without. Raises JobError("secrets")."""
    try:
        found = json.loads(os.environ.get("LAUNCH_SECRETS") or "{}")
        return {str(k): str(v) for k, v in found.items()}
    except (ValueError, AttributeError):
        raise JobError("secrets", "LAUNCH_SECRETS is not a JSON mapping of name to reference") from None


def needs_botocore(refs: Mapping[str, str]) -> bool:
    """True when a reference is to AWS, whose requests must be signed."""
    return any(ref.startswith(("aws-sm://", "aws-ssm://")) for ref in refs.values())


def resolve(refs: Mapping[str, str]) -> dict[str, str]:
    """Name -> value. Raises JobError("secrets") naming the secret and the right that is missing."""
    values = {}
    for name, ref in refs.items():
        scheme, _, rest = ref.partition("://")
        place, _, key = rest.partition("/")
        fetch = STORES.get(scheme)
        if fetch is None or not place or not key:
            raise JobError(
                "secrets",
                f"secret {name}: {ref} is not a reference",
                f"it is one of {', '.join(STORES)}, then ://PLACE/NAME",
            )
        try:
            value = fetch(place, key).rstrip("\r\n")  # left by echo, and legal in no header
        except Refused as exc:
            what = f"secret {name} ({ref}): {exc.what}"
            raise JobError("secrets", what, exc.hint, retry=exc.passing) from None
        except (LookupError, TypeError, ValueError):  # not chained: the answer may hold the value
            raise JobError("secrets", f"secret {name} ({ref}): the store's answer holds no value") from None
        if not value or "\0" in value:
            raise JobError(
                "secrets", f"secret {name} ({ref}): its value is empty or not text", "store the value as text"
            )
        values[name] = value
    return values


def _aws_secret(region: str, secret_id: str) -> str:
    """https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html"""
    answer = _aws(region, "secretsmanager", "get_secret_value", {"SecretId": secret_id},
                  "secretsmanager:GetSecretValue")  # fmt: skip
    return str(answer["SecretString"]) if "SecretString" in answer else _text(answer["SecretBinary"])


def _aws_parameter(region: str, name: str) -> str:
    """https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_GetParameter.html"""
    # A name with a hierarchy is told in full, from its first slash on.
    if "/" in name and not name.startswith(("/", "arn:")):
        name = f"/{name}"
    answer = _aws(region, "ssm", "get_parameter", {"Name": name, "WithDecryption": True}, "ssm:GetParameter")
    return str(answer["Parameter"]["Value"])


def _aws(region: str, service: str, operation: str, arguments: Mapping[str, Any], right: str) -> dict[str, Any]:
    """One call, signed by botocore, which knows the role's credentials and AWS_ENDPOINT_URL_*."""
    try:
        import botocore.config
        import botocore.exceptions
        import botocore.session
    except ModuleNotFoundError:
        raise Refused("the image has neither boto3 nor botocore", "add boto3 to the image") from None
    config = botocore.config.Config(
        connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S, retries={"total_max_attempts": 1}
    )

    try:
        client = botocore.session.get_session().create_client(service, region_name=region, config=config)
    except (botocore.exceptions.BotoCoreError, ValueError) as exc:
        raise Refused(
            f"{service} in {region} can't be asked ({type(exc).__name__})", "correct the region"
        ) from None
    _refuse_without_tls(str(client.meta.endpoint_url), service)

    def once() -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(client, operation)(**arguments)
        except botocore.exceptions.ClientError as exc:
            raise _aws_refusal(exc.response, service, region, right) from None
        except botocore.exceptions.NoCredentialsError:
            raise Refused("this container has no AWS credentials", "start the job with a role") from None
        except botocore.exceptions.BotoCoreError as exc:
            raise Refused(
                f"{service} in {region} could not be reached ({type(exc).__name__})",
                f"the job's network needs a way to it: a NAT, or a VPC endpoint for {service}",
                True,
            ) from None
        if not answer.keys() - {"ResponseMetadata"}:  # botocore takes half an answer for an empty one
            raise Refused(f"the answer of {service} did not come whole", "launch resume starts it again", True)
        return answer

    return _patiently(once)


def _aws_refusal(answer: Mapping[str, Any], service: str, region: str, right: str) -> Refused:
    """AWS's error in words: busy, missing, going to be deleted, no login, or no right."""
    code = str(answer.get("Error", {}).get("Code", "unknown"))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if status in BUSY or any(part in code for part in AWS_BUSY):
        busy = "throttles its calls" if "Internal" not in code and status < 500 else "is broken for now"
        return Refused(f"{service} in {region} {busy} ({code})", "launch resume starts it again, later", True)
    if "NotFound" in code:
        return Refused(f"there is none of that name in {region} ({code})", "create it, or correct its name")
    if code == "InvalidRequestException":  # so GetSecretValue says of one that is to be deleted
        return Refused(
            f"it can't be read as it is ({code}): perhaps it is marked for deletion, or has no value",
            "aws secretsmanager restore-secret --secret-id NAME, or store it again",
        )
    if any(part in code for part in AWS_LOGIN):
        return Refused(
            f"AWS does not accept this container's credentials ({code})", "launch resume starts it again"
        )
    if "Decryption" in code or "KMS" in code:
        return Refused(f"its key can't be used ({code})", "give the job's role kms:Decrypt on the secret's key")
    return Refused(f"AWS refuses it ({code})", f"give the job's role {right} on it, and kms:Decrypt on its key")


def _google_secret(project: str, secret: str) -> str:
    """The newest version, as the service account that the metadata server speaks for.

    https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access
    """
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    token = _ask(
        f"http://{host}/computeMetadata/v1/instance/service-accounts/default/token",
        {"Metadata-Flavor": "Google"},
        "the metadata server",
        "start the job with a service account",
        proxy=False,
    )["access_token"]
    # gcloud's own name for another endpoint.
    base = os.environ.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER") or GOOGLE_STORE
    path = f"v1/projects/{_quoted(project)}/secrets/{_quoted(secret)}/versions/latest:access"
    answer = _ask(
        f"{base.rstrip('/')}/{path}",
        {"Authorization": f"Bearer {token}"},
        "Secret Manager",
        "give the job's service account roles/secretmanager.secretAccessor on it",
    )
    return _text(base64.b64decode(answer["payload"]["data"]))


def _azure_secret(vault: str, name: str) -> str:
    """https://learn.microsoft.com/rest/api/keyvault/secrets/get-secret/get-secret"""
    base = f"https://{vault}" if "." in vault else AZURE_VAULT.format(vault=_quoted(vault))
    resource = f"https://{vault.partition('.')[2]}" if "." in vault else AZURE_RESOURCE
    answer = _ask(
        f"{base}/secrets/{_quoted(name)}?api-version=7.4",
        {"Authorization": f"Bearer {_azure_token(resource)}"},
        "Key Vault",
        "give the job's identity the role Key Vault Secrets User on the vault",
    )
    return str(answer["value"])


def _azure_token(resource: str) -> str:
    """The managed identity's token, from whichever of Azure's three endpoints this machine has.

    As azure-identity's ManagedIdentityCredential asks them (App Service, Azure ML, virtual machine).
    """
    env = os.environ
    client = env.get("AZURE_CLIENT_ID") or env.get("DEFAULT_IDENTITY_CLIENT_ID")
    if env.get("IDENTITY_ENDPOINT") and env.get("IDENTITY_HEADER"):
        url, version, who = env["IDENTITY_ENDPOINT"], "2019-08-01", "client_id"
        headers = {"X-IDENTITY-HEADER": env["IDENTITY_HEADER"]}
    elif env.get("MSI_ENDPOINT") and env.get("MSI_SECRET"):
        url, version, who = env["MSI_ENDPOINT"], "2017-09-01", "clientid"
        headers = {"secret": env["MSI_SECRET"]}
    else:
        host = env.get("AZURE_POD_IDENTITY_AUTHORITY_HOST") or AZURE_IMDS
        url, version, who = f"{host.rstrip('/')}/metadata/identity/oauth2/token", "2018-02-01", "client_id"
        headers = {"Metadata": "true"}
    query = {"api-version": version, "resource": resource} | ({who: client} if client else {})
    answer = _ask(
        f"{url}?{urllib.parse.urlencode(query)}",
        headers,
        "the managed identity's endpoint",
        "give the compute (or the job) a managed identity; AZURE_CLIENT_ID names one of several",
        proxy=False,
    )
    return str(answer["access_token"])


STORES: dict[str, Callable[[str, str], str]] = {
    "aws-sm": _aws_secret,
    "aws-ssm": _aws_parameter,
    "gcp-sm": _google_secret,
    "azure-kv": _azure_secret,
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token goes to the host it is meant for and nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _ask(url: str, headers: Mapping[str, str], who: str, right: str, proxy: bool = True) -> dict[str, Any]:
    """GET a JSON object. Raises Refused; `right` says what a refusal lacks. Metadata is asked without a proxy."""
    if "Authorization" in headers:
        _refuse_without_tls(url, who)
    return _patiently(lambda: _ask_once(url, headers, who, right, proxy))


def _patiently(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, asked for again after each of WAITS_S while what is wrong may pass."""
    for wait in WAITS_S:
        try:
            return ask()
        except Refused as exc:
            if not exc.passing:
                raise
        time.sleep(wait)
    return ask()


def _refuse_without_tls(url: str, who: str) -> None:
    """Neither the job's token nor the secret goes through a network as plain text."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise Refused(
            f"{who} would be asked at {parts.scheme}://{parts.netloc}, without TLS",
            "a variable of the job's environment names that address: give it one with https://, or unset it",
        )


def _ask_once(url: str, headers: Mapping[str, str], who: str, right: str, proxy: bool) -> dict[str, Any]:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if not proxy:
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers=dict(headers))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code == 404 and proxy:
            raise Refused(f"{who} has none of that name (HTTP 404)", "create it, or correct its name") from None
        if exc.code in BUSY:
            raise Refused(f"{who} is busy (HTTP {exc.code})", "launch resume starts it again", True) from None
        raise Refused(f"{who} refuses it (HTTP {exc.code})", right) from None
    except (OSError, http.client.HTTPException) as exc:  # no address, no route, no answer in time
        reason = getattr(exc, "reason", exc)
        hint = f"the job's network needs a way to it; {right}"
        raise Refused(f"{who} could not be reached ({reason})", hint, True) from None
    except ValueError:
        raise Refused(f"{who} gave an answer that is not JSON", right) from None
    if not isinstance(found, dict):
        raise Refused(f"{who} gave an answer that is not an object", right)
    return found


def _quoted(part: str) -> str:
    return urllib.parse.quote(part, safe="")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused("its value is not text", "store the value as UTF-8 text") from None
