"""What a subscription must have for a job: looked at before anything is sent, or found for `launch setup`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from backends.azureml import places
from backends.azureml.azure import ARM_SCOPE, LOGIN, VAULT_SCOPE, Azure, workspace_path
from backends.azureml.jobs import VAULT, VAULT_VERSION, scope_of
from backends.azureml.rights import of_image, of_vault, unseen
from backends.azureml.storage import Storage
from backends.azureml.who import Who
from backends.base import Plan, Problem, Site
from launcher.errors import BackendError, CredentialsError, JobNotFoundError, UnreachableError

VERSION = "2024-10-01"
SUBSCRIPTIONS = "2022-12-01"
PROVIDER = "providers/Microsoft.MachineLearningServices"
CLOSED_NETWORK = "(AuthorizationFailure)"
"""A storage account's answer to an address that its firewall keeps out; a role that is missing has another name.
https://learn.microsoft.com/troubleshoot/azure/azure-storage/blobs/authentication/storage-troubleshoot-403-errors
(read 2026-11-30)
"""
QUOTA_PAGE = "https://ml.azure.com/quota"


class Account:
    """What one sign-in sees of a subscription, read-only."""

    def __init__(self, azure: Azure) -> None:
        self._azure = azure
        self._unsure: list[Problem] = []
        self._who: Who

    def problems(self, site: Site, plan: Plan | None) -> list[Problem]:
        """What would stop the job, each with the command that mends it; what can't be seen is a note."""
        try:
            self._who = self._azure.who()
        except CredentialsError as exc:
            return [Problem(what=exc.message, fix=LOGIN, kind="credentials")]
        except UnreachableError as exc:
            return [Problem(what=exc.message, fix=exc.hint or "see the network", kind="unreachable")]
        scope = scope_of(site)
        try:
            workspace = self._azure.call("GET", workspace_path(scope), "looking at the workspace", version=VERSION)
        except JobNotFoundError as exc:
            return [self._no_workspace(site, exc.message)]
        except BackendError as exc:
            self._unsure.append(unseen("the workspace", exc))
            workspace = {}
        found = [*self._of_region(site, workspace), *self._of_datastore(site, scope, workspace)]
        if plan is not None:
            region = workspace.get("location") or site.get("region")
            found += [*self._of_compute(plan, scope), *of_image(self._azure, plan)]
            if plan.job.secrets:
                vault = list(of_vault(self._azure, site, workspace))
                found += vault
                if all(problem.kind != "config" for problem in vault):  # no name to be asked for in vain
                    found += self._of_secrets(plan, site)
            if region and "computeId" not in plan.request["job"]["properties"]:
                found += self._of_size(plan, site.need("subscription"), str(region))
        return [*found, *self._unsure]

    def facts(self, known: Mapping[str, str]) -> dict[str, list[str]]:
        """Subscriptions, and the workspaces of the first of them (or of the one that is known)."""
        doing = "listing subscriptions"
        subscriptions = [s["subscriptionId"] for s in self._azure.pages("/subscriptions", doing, SUBSCRIPTIONS)]
        if not (chosen := known.get("subscription") or next(iter(subscriptions), None)):
            return {}
        url = f"/subscriptions/{chosen}/{PROVIDER}/workspaces"
        spaces = list(self._azure.pages(url, "listing workspaces", VERSION))
        for fact, of in (("workspace", lambda s: s["name"]), ("resource_group", _group), ("region", _location)):
            if fact in known:
                spaces = [space for space in spaces if of(space) == known[fact]]
        vaults = [str(space.get("properties", {}).get("keyVault") or "").rpartition("/")[2] for space in spaces]
        return {
            "subscription": [chosen, *(s for s in subscriptions if s != chosen)],
            "workspace": [space["name"] for space in spaces],
            "resource_group": list(dict.fromkeys(map(_group, spaces))),
            "region": list(dict.fromkeys(map(_location, spaces))),
            "key_vault": list(dict.fromkeys(filter(None, vaults))),
        }

    def _no_workspace(self, site: Site, said: str) -> Problem:
        """`said`: Azure's answer, whose code names what is missing."""
        group, name, subscription = site.need("resource_group"), site.need("workspace"), site.need("subscription")
        if "SubscriptionNotFound" in said:
            return Problem(
                what=f"there is no subscription {subscription} that you ({self._who}) may see",
                fix="az account list --output table, then az account set --subscription ID and "
                "launch setup azureml --subscription ID; or az login to its tenant",
            )
        if "ResourceGroupNotFound" in said:
            return Problem(
                what=f"there is no resource group {group} in subscription {subscription} that you ({self._who}) "
                "may see",
                fix=f"az group list --output table, or az group create --name {group} --location REGION",
            )
        return Problem(
            what=f"there is no workspace {name} in resource group {group} of subscription "
            f"{subscription} that you ({self._who}) may see",
            fix=f"az ml workspace create --name {name} --resource-group {group}, or launch setup azureml --find",
        )

    def _of_region(self, site: Site, workspace: Mapping[str, Any]) -> Iterator[Problem]:
        told, lies = site.get("region"), workspace.get("location")
        if told and lies and told != lies:
            yield Problem(
                what=f"workspace {site.need('workspace')} is in {lies}, not in {told}",
                fix=f"launch setup azureml --region {lies} (az ml workspace show --query location says it)",
            )

    def _of_datastore(self, site: Site, scope: str, workspace: Mapping[str, Any]) -> Iterator[Problem]:
        name = site.get("datastore") or places.DEFAULT_DATASTORE
        try:
            for _ in Storage(self._azure, workspace_path(scope), name).keys("finelaunch/none/"):
                break
        except JobNotFoundError:
            yield Problem(
                what=f"the workspace has no datastore {name}, or its container is gone",
                fix="az ml datastore list, then launch setup azureml --datastore NAME",
            )
        except CredentialsError as exc:
            yield Problem(
                what=f"datastore {name} can't be reached: its key or signature is not accepted ({exc.message})",
                fix=f"az ml datastore update --name {name} with a valid key, or {self._grant(name, workspace)}",
                kind="credentials",
            )
        except UnreachableError as exc:
            self._unsure.append(unseen(f"datastore {name}", exc))
        except BackendError as exc:
            closed = CLOSED_NETWORK in exc.message
            yield Problem(
                what=f"datastore {name}: its storage account does not take this machine's address"
                if closed
                else f"you ({self._who}) may not read datastore {name}: {exc.message}",
                fix=f"az storage account network-rule add --account-name {_storage(name, workspace)[1]} "
                "--ip-address YOUR_ADDRESS"
                if closed
                else self._grant(name, workspace),
                kind="credentials",
            )

    def _grant(self, datastore: str, workspace: Mapping[str, Any]) -> str:
        """The command that lets whoever is signed in read and write a datastore's blobs."""
        me = self._who.object_id or '"$(az ad signed-in-user show --query id -o tsv)"'
        return (
            f"az role assignment create --role 'Storage Blob Data Contributor' --assignee {me} "
            f"--scope {_storage(datastore, workspace)[0]}"
        )

    def _of_compute(self, plan: Plan, scope: str) -> Iterator[Problem]:
        """The named compute of the job, where it has one."""
        properties = plan.request["job"]["properties"]
        if not (path := properties.get("computeId")):
            return
        name, group, space = path.rpartition("/")[2], *scope.split(":")[1:]
        where = f"--name {name} --resource-group {group} --workspace-name {space}"
        compute = self._look(f"compute {name}", path, VERSION)
        if compute is None:
            yield Problem(
                what=f"the workspace has no compute {name}",
                fix=f"az ml compute create {where} --type AmlCompute --size {plan.offer.instance_type} "
                f"--min-instances 0 --max-instances {plan.job.resources.nodes}",
            )
            return
        has = compute.get("properties", {}).get("properties") or {}
        size, nodes = has.get("vmSize"), (has.get("scaleSettings") or {}).get("maxNodeCount")
        if size and str(size).lower() != plan.offer.instance_type.lower():
            yield Problem(
                what=f"compute {name} has machines of size {size}, and the job is planned for "
                f"{plan.offer.instance_type}",
                fix=f"--set resources.gpu and resources.gpus to what it has, or name another: az ml compute list "
                f"--resource-group {group} --workspace-name {space}",
            )
        if nodes is not None and nodes < plan.job.resources.nodes:
            yield Problem(
                what=f"compute {name} has {nodes} machines at most, and the job needs {plan.job.resources.nodes}",
                fix=f"az ml compute update {where} --max-instances {plan.job.resources.nodes}",
                kind="quota",
            )
        if plan.job.resources.spot and has.get("vmPriority") not in (None, "LowPriority"):
            yield Problem(
                what=f"compute {name} is not low-priority: a spot job there would be billed in full",
                fix=f"az ml compute create {where.replace(name, 'NAME', 1)} --type AmlCompute --tier low_priority "
                f"--size {plan.offer.instance_type}, then launch setup azureml --spot-compute NAME; or "
                "--set resources.spot=false",
            )

    def _of_size(self, plan: Plan, subscription: str, region: str) -> Iterator[Problem]:
        """Serverless: has the region the size, and is there quota for it? Azure ML's own, not virtual machines'.

        https://learn.microsoft.com/rest/api/azureml/virtual-machine-sizes/list and .../usages/list
        (read 2026-11-25)
        """
        place, size, spot = (
            f"/subscriptions/{subscription}/{PROVIDER}/locations/{region}",
            plan.offer.instance_type,
            plan.job.resources.spot,
        )
        sizes = self._rows("the region's sizes", f"{place}/vmSizes")
        usages = self._rows("Azure ML's quota", f"{place}/usages")
        if not sizes:
            return
        one = next((s for s in sizes if str(s.get("name")).lower() == size.lower()), None)
        if one is None:
            yield Problem(
                what=f"Azure ML has no {size} in {region} for this subscription",
                fix=f"az ml compute list-sizes --location {region}, then --set resources.gpu and resources.gpus",
                kind="quota",
            )
            return
        if spot and one.get("lowPriorityCapable") is False:
            yield Problem(
                what=f"{size} is not to be had as spot in {region}",
                fix=f"az ml compute list-sizes --location {region} shows which are; or --set resources.spot=false",
                kind="quota",
            )
        needed = int(one.get("vCPUs") or 0) * plan.job.resources.nodes
        yield from _of_quota(usages, str(one.get("family")), needed, spot, region)

    def _of_secrets(self, plan: Plan, site: Site) -> Iterator[Problem]:
        vault = site.get("key_vault")
        for name in plan.job.secrets if vault else ():
            url = f"{VAULT.format(vault=vault)}/secrets/{places.vault_name(name)}/versions"
            # The list of its versions, which has no value in it.
            found = self._look(f"secret {name}", url, VAULT_VERSION, VAULT_SCOPE)
            if found is None or found.get("value") == []:
                yield Problem(
                    what=f"there is no secret {places.vault_name(name)} in Key Vault {vault}",
                    fix=f"launch secrets put {name} --backend azureml",
                    kind="credentials",
                )

    def _rows(self, what: str, url: str) -> list[dict[str, Any]]:
        """Every item of a listing, none where it may not be seen."""
        try:
            return list(self._azure.pages(url, f"looking at {what}", VERSION))
        except JobNotFoundError:
            return []
        except BackendError as exc:
            self._unsure.append(unseen(what, exc))
            return []

    def _look(self, what: str, url: str, version: str, scope: str = ARM_SCOPE) -> dict[str, Any] | None:
        """Azure's answer, None when there is no such thing, and an empty one when it may not be seen."""
        try:
            return self._azure.call("GET", url, f"looking at {what}", version=version, scope=scope)
        except JobNotFoundError:
            return None
        except BackendError as exc:
            self._unsure.append(unseen(what, exc))
            return {}


def _of_quota(
    usages: list[dict[str, Any]], family: str, needed: int, spot: bool, region: str
) -> Iterator[Problem]:
    """Is there Azure ML quota for `needed` vCPUs more? Of what may not be seen nothing is said."""
    usage = next((u for u in usages if _is_usage(u, family, spot)), None)
    fix = (
        f"az ml compute list-usage --location {region} shows it; {QUOTA_PAGE}, Request quota (Azure Machine "
        "Learning's own; virtual machines' is another)"
    )
    if usages and usage is None:
        kind = "low-priority cores" if spot else family
        what = f"Azure ML lists no quota for {kind} in {region}: it may be none at all"
        yield Problem(what=what, fix=fix, fatal=False, kind="quota")
    if usage is not None and usage["limit"] >= 0 and usage["limit"] - usage["currentValue"] < needed:
        name, fatal = usage["name"].get("localizedValue") or family, usage["limit"] < needed
        yield Problem(
            what=f"Azure ML's quota {name!r} has {usage['limit'] - usage['currentValue']} of {usage['limit']} "
            f"vCPUs left in {region}, and the job needs {needed}{'' if fatal else ': it will wait'}",
            fatal=fatal,
            fix=fix,
            kind="quota",
        )


def _is_usage(usage: Mapping[str, Any], family: str, spot: bool) -> bool:
    """Is it the row of this family, or with spot the region's one row of low-priority cores?"""
    name = usage.get("name") or {}
    if spot:
        return "low priority" in str(name.get("localizedValue")).lower()
    return str(name.get("value")).lower() == family.lower()


def _storage(datastore: str, workspace: Mapping[str, Any]) -> tuple[str, str]:
    """(ARM id, name) of the storage account behind a datastore, where the workspace tells."""
    told = str(workspace.get("properties", {}).get("storageAccount") or "")
    if told and datastore == places.DEFAULT_DATASTORE:
        return told, told.rpartition("/")[2]
    return "STORAGE_ACCOUNT_ID", "STORAGE_ACCOUNT"


def _group(space: Mapping[str, Any]) -> str:
    return str(space["id"]).split("/")[4]


def _location(space: Mapping[str, Any]) -> str:
    return str(space.get("location"))
