"""Azure Resource Manager's half: the workspace, its datastores, computes, environments, code, and its jobs.

https://learn.microsoft.com/rest/api/azureml/ (read 2026-11-25); the shapes of answers are those of public
recordings (Azure/azure-sdk-assets, command_job, 2026-03).
"""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import Any

from tests.emulators.azureml import azurite
from tests.emulators.azureml.life import Life
from tests.emulators.azureml.names import (
    ACCOUNT,
    DATASTORES,
    DEVELOPER,
    GROUP,
    IDENTITY,
    PATH,
    PRINCIPAL,
    REGION,
    SUBSCRIPTION,
    VAULT,
    WORKSPACE,
)
from tests.emulators.azureml.wire import Answer, Request, refused, told
from tests.emulators.azureml.world import World, now

AUDIENCE = "https://management.azure.com"
PROVIDER = "Microsoft.MachineLearningServices"
SERVICE = f"https://{REGION}.api.azureml.ms"
PAGE = 3
SIZES = {
    "Standard_NC8as_T4_v3": ("standardNCASv3_T4Family", 8, True),
    "Standard_NV36ads_A10_v5": ("StandardNVADSA10v5Family", 36, True),
    "Standard_NC24ads_A100_v4": ("standardNCADSA100v4Family", 24, True),
    "Standard_NC48ads_A100_v4": ("standardNCADSA100v4Family", 48, False),
}
"""Size -> family, vCPUs, to be had as low-priority."""
DEFAULT_QUOTA = 1000


def operation(request: Request) -> str:
    """`PutJob`, `ListJobs`, `CancelJob`, `GetWorkspace`, ..."""
    rest = _below(request.path)
    if rest is None:
        return f"List{request.path.rstrip('/').rpartition('/')[2].capitalize()}"
    if not rest:
        return "GetWorkspace"
    if rest[-1] in ("cancel", "listSecrets", "startPendingUpload"):
        return {"cancel": "CancelJob", "listSecrets": "ListSecrets"}.get(rest[-1], "StartUpload")
    kind = rest[0].removesuffix("s").capitalize()
    return f"List{kind}s" if len(rest) in (1, 3) else f"{request.method.capitalize()}{kind}"


def answer(world: World, request: Request) -> Answer:
    """Check who asks, then do it."""
    if world.holder(request.headers.get("authorization"), AUDIENCE) != DEVELOPER:
        return refused(401, "InvalidAuthenticationToken", "The access token is invalid.")
    with world.lock:
        rest = _below(request.path)
        if rest is None:
            return _outside(world, request)
        if not rest:
            return told(_workspace(world.settings.discovery))
        kind, *names = rest
        if kind == "jobs":
            return _jobs(world, request, names)
        if kind == "datastores":
            return _datastores(world, request, names)
        if kind == "computes":
            return _compute(world, names)
        if kind in world.assets:
            return _assets(world, request, kind, names)
    return refused(404, "NotFound", request.path)


def _below(path: str) -> list[str] | None:
    """What is asked below the workspace; None for what is outside of it."""
    if not path.lower().startswith(PATH.lower()):
        return None
    return [part for part in path[len(PATH) :].split("/") if part]


def _outside(world: World, request: Request) -> Answer:
    path = request.path.rstrip("/")
    if path == "/subscriptions":
        return told({"value": [{"subscriptionId": SUBSCRIPTION, "displayName": "emulated", "state": "Enabled"}]})
    here = f"/subscriptions/{SUBSCRIPTION}/providers/{PROVIDER}"
    if path == f"{here}/workspaces":
        return told({"value": [_workspace()]})
    if path == f"{here}/locations/{REGION}/vmSizes":
        sizes = [
            {"name": name, "family": family, "vCPUs": cpus, "gpus": 1, "lowPriorityCapable": low}
            for name, (family, cpus, low) in SIZES.items()
        ]
        return told({"value": sizes})
    if path == f"{here}/locations/{REGION}/usages":
        families = {family for family, _, _ in SIZES.values()}
        rows = {f: f"{f} Cluster Dedicated vCPUs" for f in sorted(families)}
        rows["low-priority"] = "Total Cluster Low Priority Regional vCPUs"
        rows = {name: words for name, words in rows.items() if world.settings.quotas.get(name, 0) is not None}
        start = int(request.query.get("$skip", 0))
        page: dict[str, Any] = {"value": [_usage(world, *row) for row in list(rows.items())[start : start + PAGE]]}
        if start + PAGE < len(rows):
            version = request.query["api-version"]
            page["nextLink"] = f"{AUDIENCE}{path}?api-version={version}&$skip={start + PAGE}"
        return told(page)
    if (found := _of_rights(world, path)) is not None:
        return found
    group = re.fullmatch(r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/.*", path)
    if group and group[1] != SUBSCRIPTION:
        return refused(404, "SubscriptionNotFound", f"The subscription '{group[1]}' could not be found.")
    if group and group[2] != GROUP:
        return refused(404, "ResourceGroupNotFound", f"Resource group '{group[2]}' could not be found.")
    return refused(404, "ResourceNotFound", f"The Resource '{path}' was not found.")


def _of_rights(world: World, path: str) -> Answer | None:
    """The jobs' identity, the key vault, and what the one may do with the other."""
    settings, below = world.settings, f"/subscriptions/{SUBSCRIPTION}/providers"
    vault_id = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.KeyVault/vaults/{VAULT}"
    allowed = {"objectId": PRINCIPAL, "permissions": {"secrets": settings.vault_policies or []}}
    vault = {
        "id": vault_id, "name": VAULT,
        "properties": {
            "enableRbacAuthorization": settings.vault_policies is None, "accessPolicies": [allowed],
        },
    }  # fmt: skip
    if path == f"{below}/Microsoft.ManagedIdentity/userAssignedIdentities":
        return told({"value": [{"properties": {"clientId": IDENTITY, "principalId": PRINCIPAL}}]})
    if path == f"{below}/Microsoft.KeyVault/vaults":
        return told({"value": [vault]})
    if path == vault_id:
        return told(vault)
    roles = "providers/Microsoft.Authorization"
    if path == f"{vault_id}/{roles}/roleAssignments":
        definitions = [f"/subscriptions/{SUBSCRIPTION}/{roles}/roleDefinitions/{r}" for r in settings.vault_roles]
        return told({"value": [{"properties": {"roleDefinitionId": each}} for each in definitions]})
    if path.startswith(f"/subscriptions/{SUBSCRIPTION}/{roles}/roleDefinitions/"):
        kind = "CustomRole" if path.endswith("-custom") else "BuiltInRole"
        return told({"id": path, "properties": {"type": kind}})
    return None


def _usage(world: World, name: str, words: str) -> dict[str, Any]:
    limit = world.settings.quotas.get(name, DEFAULT_QUOTA)
    return {
        "id": f"/subscriptions/{SUBSCRIPTION}/usages/{name}", "unit": "Count",
        "currentValue": world.settings.used.get(name, 0), "limit": limit,
        "name": {"value": name, "localizedValue": words},
    }  # fmt: skip


def _workspace(discovery: bool = True) -> dict[str, Any]:
    account = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers"
    return {
        "id": PATH, "name": WORKSPACE, "location": REGION, "type": f"{PROVIDER}/workspaces", "tags": {},
        "identity": {"type": "SystemAssigned"},
        "properties": {
            "workspaceId": "11111111-1111-1111-1111-111111111111",
            "discoveryUrl": f"{SERVICE}/discovery" if discovery else None,
            "provisioningState": "Succeeded", "keyVault": f"{account}/Microsoft.KeyVault/vaults/{VAULT}",
            "storageAccount": f"{account}/Microsoft.Storage/storageAccounts/{ACCOUNT}",
            "mlFlowTrackingUri": f"azureml://{REGION}.api.azureml.ms/mlflow/v1.0{PATH}",
        },
    }  # fmt: skip


def _datastores(world: World, request: Request, names: list[str]) -> Answer:
    if not names:
        wanted = [n for n in DATASTORES if not request.query.get("isDefault") or n == "workspaceblobstore"]
        return told({"value": [_datastore(world, name) for name in wanted]})
    if names[0] not in DATASTORES:
        return refused(404, "UserError", f"Could not find datastore: {names[0]}")
    if names[-1] == "listSecrets":
        if world.settings.secrets == "key":
            return told({"secretsType": "AccountKey", "key": azurite.KEY})
        return told({"secretsType": "Sas", "sasToken": f"?{world.new_signature('rwdlacu')}"})
    return told(_datastore(world, names[0]))


def _datastore(world: World, name: str) -> dict[str, Any]:
    kind = "None" if world.settings.secrets == "none" else "AccountKey"
    return {
        "id": f"{PATH}/datastores/{name}", "name": name, "type": f"{PROVIDER}/workspaces/datastores",
        "properties": {
            "datastoreType": "AzureBlob", "accountName": ACCOUNT, "containerName": DATASTORES[name],
            "endpoint": "core.windows.net", "protocol": "https", "isDefault": name == "workspaceblobstore",
            "credentials": {"credentialsType": kind}, "tags": {}, "properties": {},
        },
    }  # fmt: skip


def _compute(world: World, names: list[str]) -> Answer:
    found = world.settings.computes.get(names[0]) if names else None
    if found is None:
        return refused(404, "ResourceNotFound", f"Compute {names} not found")
    has = {
        "vmSize": found["vmSize"], "vmPriority": found.get("vmPriority", "Dedicated"),
        "scaleSettings": {"minNodeCount": 0, "maxNodeCount": found.get("maxNodeCount", 4)},
    }  # fmt: skip
    properties = {"computeType": "AmlCompute", "provisioningState": "Succeeded", "properties": has}
    return told(
        {"id": f"{PATH}/computes/{names[0]}", "name": names[0], "location": REGION, "properties": properties}
    )


def _assets(world: World, request: Request, kind: str, names: list[str]) -> Answer:
    known = world.assets[kind]
    if len(names) < 3:  # the list of an asset's versions; of code by its hash, whatever its name
        wanted = request.query.get("hash")
        found = [
            one for key, one in known.items()
            if (_hash(one) == wanted if wanted else key.startswith(f"{names[0]}:"))
        ]  # fmt: skip
        return told({"value": found})
    key = f"{names[0]}:{names[2]}"
    if names[-1] == "startPendingUpload":
        return _upload(world, f"{kind}-{key}")
    if request.method == "PUT":
        body = request.json["properties"]
        problem = _of_environment(body) if kind == "environments" else None
        if problem is None and key in known and kind == "environments" and _content(known[key]) != body:
            problem = f"Environment {key} is registered with other content; versions can't be changed"
        if problem is not None:
            return refused(400, "UserError", problem)
        new = key not in known
        known[key] = {
            "id": f"{PATH}/{kind}/{names[0]}/versions/{names[2]}", "name": names[2],
            "systemData": {"createdAt": now()}, "properties": {"isArchived": False, "tags": {}, **body},
        }  # fmt: skip
        return told(known[key], 201 if new else 200)
    return told(known[key]) if key in known else refused(404, "UserError", f"{kind} {key} not found")


def _of_environment(body: dict[str, Any]) -> str | None:
    return None if body.get("image") or body.get("build") else "An environment needs an image or a build context"


def _content(asset: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in asset["properties"].items() if k not in ("tags",) or v}


def _hash(asset: dict[str, Any]) -> str | None:
    return (asset["properties"].get("properties") or {}).get("hash_sha256")


def _upload(world: World, key: str) -> Answer:
    container = hashlib.sha256(key.encode()).hexdigest()[:20]
    world.account.make(container)
    uri = f"https://{ACCOUNT}.blob.core.windows.net/{container}"
    account = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Storage"
    return told(
        {
            "pendingUploadId": str(uuid.uuid4()), "pendingUploadType": "TemporaryBlobReference",
            "blobReferenceForConsumption": {
                "blobUri": uri, "storageAccountArmId": f"{account}/storageAccounts/{ACCOUNT}",
                "credential": {"credentialType": "SAS", "sasUri": f"{uri}?{world.new_signature('rwlc')}"},
            },
        }
    )  # fmt: skip


def _jobs(world: World, request: Request, names: list[str]) -> Answer:
    if not names:
        return _list(world, request)
    name = names[0]
    if request.method == "PUT":
        return _create(world, request, name)
    job = world.jobs.get(name)
    if job is None:
        return refused(404, "UserError", f"Job {name} was not found")
    if names[-1] == "cancel":
        return Answer(status=202) if job.cancel() else refused(400, "UserError", "The job is already over")
    if request.method == "DELETE":
        if not job.over:
            return refused(409, "UserError", f"Job {name} is not in a terminal state")
        if world.settings.removes:
            del world.jobs[name]
        return Answer(status=202)
    return told(job.described())


def _list(world: World, request: Request) -> Answer:
    tag, start = request.query.get("tag"), int(request.query.get("$skip", 0))
    found = [job for job in world.jobs.values() if not tag or tag in (job.properties.get("tags") or {})]
    page: dict[str, Any] = {"value": [job.described() for job in found[start : start + PAGE]]}
    if start + PAGE < len(found):
        version, more = request.query["api-version"], f"&tag={tag}" if tag else ""
        page["nextLink"] = f"{AUDIENCE}{PATH}/jobs?api-version={version}&$skip={start + PAGE}{more}"
    return told(page)


def _create(world: World, request: Request, name: str) -> Answer:
    if name in world.jobs:
        return refused(409, "UserError", f"A job with the name {name} already exists")
    properties = request.json["properties"]
    problem = _problem(world, properties)
    if problem is not None:
        return refused(400, "UserError", problem)
    job = world.jobs[name] = Life(world, name, properties)
    job.start()
    return told(job.described(), 201)


def _problem(world: World, body: dict[str, Any]) -> str | None:
    """What the service refuses of a command job."""
    environment = re.search(r"/environments/([^/]+)/versions/([^/]+)$", str(body.get("environmentId")))
    if not environment or f"{environment[1]}:{environment[2]}" not in world.assets["environments"]:
        return f"The environment {body.get('environmentId')} was not found"
    compute = str(body.get("computeId") or "").rpartition("/")[2]
    if compute and compute not in world.settings.computes:
        return f"Unknown compute target '{compute}'"
    if int((body.get("resources") or {}).get("instanceCount", 1)) < 1:
        return "InstanceCount must be at least 1"
    for data in [*(body.get("inputs") or {}).values(), *(body.get("outputs") or {}).values()]:
        store = re.search(r"datastores/([^/]+)/", str(data.get("uri") or ""))
        if store and store[1] not in DATASTORES:
            return f"Could not find datastore: {store[1]}"
    size = str((body.get("resources") or {}).get("instanceType"))
    if not compute and size in SIZES:
        family, cpus, _ = SIZES[size]
        spot = (body.get("queueSettings") or {}).get("jobTier") == "Spot"
        left = world.settings.quotas.get("low-priority" if spot else family, DEFAULT_QUOTA)
        if (left or 0) < cpus * int(body["resources"].get("instanceCount", 1)):
            return f"The requested {cpus} vCPUs exceed the workspace's quota for {family}"
    return None
