"""What a job meets before its first line: is its image there, and may its identity read its secrets?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from backends.azureml.azure import Azure
from backends.base import Plan, Problem, Site
from launcher.errors import LaunchError

IDENTITIES, VAULTS, ROLES = "2023-01-31", "2023-07-01", "2022-04-01"
"""API versions of user-assigned identities, key vaults and role assignments."""
READS_SECRETS = frozenset(
    ("4633458b-17de-408a-b874-0445c86b69e6", "b86a8fe4-44ce-4948-aee5-eccb2c155cd7",
     "00482a5a-887f-4fb3-b363-3b7fe8e74483")
)  # fmt: skip
"""Key Vault Secrets User, Secrets Officer and Administrator.
https://learn.microsoft.com/azure/key-vault/general/rbac-guide (read 2026-11-25)
"""
REGISTRY = re.compile(
    r"(?P<host>(?P<name>[a-z0-9]{5,50})\.azurecr\.io)/(?P<path>[\w./-]+?)"
    r"(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
"""An image of Azure's own registry; whom others let in is not asked with Azure's sign-in."""


def unseen(what: str, exc: LaunchError) -> Problem:
    """A note on what could not be looked at."""
    hint = exc.hint or "ask whoever manages the subscription"
    return Problem(what=f"{what} could not be checked: {exc.message}", fix=hint, fatal=False)


def of_image(azure: Azure, plan: Plan) -> Iterator[Problem]:
    """The image of the job's environment, where it is in a registry of Azure's."""
    environment = plan.request.get("environment") or {}
    image = str(environment.get("properties", {}).get("image"))
    match = REGISTRY.fullmatch(image)
    if match is None:
        return
    name, path, reference = match["name"], match["path"], match["digest"] or match["tag"] or "latest"
    try:
        there = azure.has_image(match["host"], path, reference, f"looking at image {image}")
    except LaunchError as exc:
        yield Problem(
            what=f"image {image} could not be checked: {exc.message}",
            fix=f"az acr repository show --name {name} --image {image.partition('/')[2]}; the role AcrPull on the "
            "registry lets you and the workspace's identity read it",
            fatal=False,
        )
        return
    if not there:
        yield Problem(
            what=f"there is no image {image}",
            fix=f"az acr repository show-tags --name {name} --repository {path}; build docker/Dockerfile and push "
            f"it (az acr login --name {name})",
        )


def of_vault(azure: Azure, site: Site, workspace: Mapping[str, Any]) -> Iterator[Problem]:
    """May the jobs' managed identity read the values that are in the key vault? kind config: there is no vault."""
    client, name, subscription = site.get("identity"), site.get("key_vault"), site.need("subscription")
    if client is None or name is None:
        return
    try:
        principal = _principal(azure, subscription, client)
        if principal is None:
            yield Problem(
                what=f"there is no managed identity with the client id {client} in the subscription",
                fix=f"az identity list --query '[].clientId', or az identity create --name finelaunch-jobs "
                f"--resource-group {site.need('resource_group')}; then launch setup azureml --identity CLIENT_ID",
                kind="credentials",
            )
            return
        if (vault := _vault(azure, subscription, name, workspace)) is None:
            yield Problem(
                what=f"there is no Key Vault {name} in the subscription",
                fix="az keyvault list --query '[].name', then launch setup azureml --key-vault NAME",
            )
            return
        fix = _missing_right(azure, vault, principal)
    except LaunchError as exc:
        yield unseen(f"the jobs' right to read Key Vault {name}", exc)
        return
    if fix is not None:
        yield Problem(
            what=f"the jobs' managed identity {client} may not read the secrets of Key Vault {name}",
            fix=fix,
            kind="credentials",
        )


def _principal(azure: Azure, subscription: str, client: str) -> str | None:
    url = f"/subscriptions/{subscription}/providers/Microsoft.ManagedIdentity/userAssignedIdentities"
    for identity in azure.pages(url, "listing managed identities", IDENTITIES):
        if str(identity["properties"].get("clientId")).lower() == client.lower():
            return str(identity["properties"]["principalId"])
    return None


def _vault(azure: Azure, subscription: str, name: str, workspace: Mapping[str, Any]) -> dict[str, Any] | None:
    """The vault as Azure Resource Manager has it: most often the workspace's own."""
    doing = f"looking at Key Vault {name}"
    own = str(workspace.get("properties", {}).get("keyVault") or "")
    if own.rpartition("/")[2].lower() == name.lower():
        return azure.call("GET", own, doing, version=VAULTS)
    url = f"/subscriptions/{subscription}/providers/Microsoft.KeyVault/vaults"
    found = azure.pages(url, doing, VAULTS)
    return next((vault for vault in found if str(vault["name"]).lower() == name.lower()), None)


def _missing_right(azure: Azure, vault: Mapping[str, Any], principal: str) -> str | None:
    """The command that gives the identity the right to read secrets; None where it has it.

    A role of the subscription's own may give it too: where there is one, it has it.
    """
    has = vault["properties"]
    if not has.get("enableRbacAuthorization"):
        for policy in has.get("accessPolicies") or ():
            allowed = {str(word).lower() for word in policy.get("permissions", {}).get("secrets") or ()}
            if policy.get("objectId") == principal and allowed & {"get", "all"}:
                return None
        return f"az keyvault set-policy --name {vault['name']} --object-id {principal} --secret-permissions get"
    url = f"{vault['id']}/providers/Microsoft.Authorization/roleAssignments"
    asked = {"$filter": f"assignedTo('{principal}')"}
    for assignment in azure.pages(url, "looking at the roles of the jobs' identity", ROLES, asked):
        role = str(assignment["properties"]["roleDefinitionId"])
        if role.rpartition("/")[2] in READS_SECRETS or _is_own(azure, role):
            return None
    return (
        f"az role assignment create --assignee-object-id {principal} --assignee-principal-type ServicePrincipal "
        f"--role 'Key Vault Secrets User' --scope {vault['id']}"
    )


def _is_own(azure: Azure, role: str) -> bool:
    """Is it a role that somebody made, which may hold the right under another name?"""
    found = azure.call("GET", role, "looking at a role", version=ROLES)
    return bool(found.get("properties", {}).get("type") == "CustomRole")
