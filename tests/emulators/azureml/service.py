"""The hosts beside Azure Resource Manager: sign-in, run history, key vault, managed identity."""

from __future__ import annotations

from urllib.parse import parse_qs

from tests.emulators.azureml import account, arm
from tests.emulators.azureml.names import ACCOUNT, DEVELOPER, IDENTITY, REGION, REGISTRY, VAULT
from tests.emulators.azureml.wire import Answer, Request, refused, refused_blob, told
from tests.emulators.azureml.world import World

LOGIN_HOST, ARM_HOST = "login.microsoftonline.com", "management.azure.com"
SERVICE_HOST, BLOB_HOST = f"{REGION}.api.azureml.ms", f"{ACCOUNT}.blob.core.windows.net"
VAULT_HOST = f"{VAULT}.vault.azure.net"
VAULT_AUDIENCE = "https://vault.azure.net"
REGISTRY_HOST = f"{REGISTRY}.azurecr.io"
SERVICES = {
    LOGIN_HOST: "aad", ARM_HOST: "arm", SERVICE_HOST: "history", BLOB_HOST: "blob", VAULT_HOST: "vault",
    REGISTRY_HOST: "registry",
}  # fmt: skip
"""Every host that is emulated."""


def operation(request: Request) -> str:
    """What the request is, by the name that faults and denials know."""
    service = SERVICES[request.host]
    if service == "arm":
        return arm.operation(request)
    if service == "blob":
        return account.operation(request)
    if service == "aad":
        return "Token" if request.path.endswith("/token") else "Discover"
    if service == "history":
        return "GetRun" if "/runs/" in request.path else "Discover"
    if service == "registry":
        return "GetManifest" if request.method == "GET" else "Token"
    return f"{request.method.capitalize()}Secret"


def answer(world: World, request: Request) -> Answer:
    """What the host answers."""
    made = {"aad": _sign_in, "arm": arm.answer, "history": _history, "blob": _stored, "vault": _vault,
            "registry": _registry}  # fmt: skip
    return made[SERVICES[request.host]](world, request)


def _sign_in(world: World, request: Request) -> Answer:
    """As MSAL asks: the authority's endpoints, then a token for a client's secret."""
    base = f"https://{LOGIN_HOST}/{request.path.strip('/').split('/')[0]}"
    if request.path.endswith("openid-configuration"):
        return told(
            {
                "token_endpoint": f"{base}/oauth2/v2.0/token", "authorization_endpoint": f"{base}/authorize",
                "device_authorization_endpoint": f"{base}/devicecode", "issuer": f"{base}/v2.0",
                "jwks_uri": f"{base}/keys", "tenant_region_scope": "NA",
            }
        )  # fmt: skip
    if request.path.endswith("/instance"):
        known = f"https://{LOGIN_HOST}/common/v2.0/.well-known/openid-configuration"
        return told({"tenant_discovery_endpoint": known, "metadata": []})
    asked = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
    if world.logged_out or asked.get("client_secret") != "emulated":
        said = "AADSTS7000222: The provided client secret keys for the app are expired."
        return told({"error": "invalid_client", "error_description": said, "error_codes": [7000222]}, 401)
    audience = asked["scope"].split()[0].removesuffix("/.default").rstrip("/")
    token = world.new_token(DEVELOPER, audience)
    return told({"token_type": "Bearer", "expires_in": 3600, "ext_expires_in": 3600, "access_token": token})


def _stored(world: World, request: Request) -> Answer:
    if not world.has_ended(request):
        return world.account.azurite.forward(request)
    if "authorization" in request.headers:
        return refused_blob(401, "InvalidAuthenticationInfo", "It has ended.")
    return refused_blob(403, "AuthenticationFailed", "It has ended.")


def _history(world: World, request: Request) -> Answer:
    if request.path == "/discovery":
        return told(dict.fromkeys(("api", "history", "mlflow", "artifacts"), f"https://{SERVICE_HOST}"))
    if world.holder(request.headers.get("authorization"), arm.AUDIENCE) != DEVELOPER:
        return refused(401, "InvalidAuthenticationToken", "The access token is invalid.")
    name = request.json["runId"] if request.path.endswith("/rundata") else _after(request.path, "runs")
    job = world.jobs.get(name)
    if job is None:
        return refused(404, "UserError", f"Run {name} was not found")
    run = job.details()
    return told({"runMetadata": {**run, "outputs": {}}} if request.path.endswith("/rundata") else run)


def _vault(world: World, request: Request) -> Answer:
    who = world.holder(request.headers.get("authorization"), VAULT_AUDIENCE)
    if who is None:
        return refused(401, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token.")
    parts = request.path.strip("/").split("/")
    name, versions = parts[1], world.vault.get(parts[1], [])
    base = f"https://{VAULT_HOST}/secrets/{name}"
    if request.method == "PUT" and name in world.settings.deleted_secrets:
        said = f"Secret {name} is currently in a deleted but recoverable state, and its name cannot be reused"
        return refused(409, "Conflict", said)
    if request.method == "PUT":
        world.vault.setdefault(name, []).append(request.json["value"])
        return told({"value": request.json["value"], "id": f"{base}/{len(versions) + 1}", "attributes": {}})
    if not versions:
        return refused(404, "SecretNotFound", f"A secret with (name/id) {name} was not found in this key vault.")
    if parts[-1] == "versions":
        return told({"value": [{"id": f"{base}/{n + 1}"} for n in range(len(versions))], "nextLink": None})
    return told({"value": versions[-1], "id": f"{base}/{len(versions)}", "attributes": {}})


def _registry(world: World, request: Request) -> Answer:
    """A sign-in is exchanged for a refresh token, that for one that reads one repository."""
    if request.method == "POST":
        asked = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if request.path == "/oauth2/exchange":
            who = world.holder(f"Bearer {asked['access_token']}", arm.AUDIENCE)
            if who is None or asked["service"] != REGISTRY_HOST:
                return refused(401, "UNAUTHORIZED", "authentication required")
            return told({"refresh_token": world.new_token(who, REGISTRY_HOST)})
        who = world.holder(f"Bearer {asked['refresh_token']}", REGISTRY_HOST)
        if who is None:
            return refused(401, "UNAUTHORIZED", "authentication required")
        return told({"access_token": world.new_token(who, asked["scope"])})
    repository, _, reference = request.path.removeprefix("/v2/").partition("/manifests/")
    if world.holder(request.headers.get("authorization"), f"repository:{repository}:pull") is None:
        return refused(401, "UNAUTHORIZED", "authentication required")
    if f"{repository}:{reference}" not in world.settings.images:
        return refused(404, "MANIFEST_UNKNOWN", f"manifest tagged by {reference} is not found")
    return told({"schemaVersion": 2})


def identity_token(world: World, query: dict[str, str], header: str | None) -> Answer:
    """The managed identity's endpoint inside a job, as Azure ML has it (MSI_ENDPOINT)."""
    if header != "emulated":
        return refused(401, "Unauthorized", "the secret header is missing or wrong")
    if query.get("clientid") not in (None, IDENTITY):
        return refused(400, "BadRequest", f"no managed identity {query['clientid']}")
    resource = query["resource"].rstrip("/")
    return told({"access_token": world.new_token("job", resource), "resource": resource, "token_type": "Bearer"})


def _after(path: str, name: str) -> str:
    parts = path.split("/")
    return parts[parts.index(name) + 1]
