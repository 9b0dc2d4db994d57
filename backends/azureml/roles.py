"""The commands that make what a subscription lacks, with the least roles that do. Role names as of 2026-11-25.

https://learn.microsoft.com/azure/machine-learning/how-to-assign-roles
"""

from __future__ import annotations

from collections.abc import Mapping


def advice(known: Mapping[str, str]) -> str:
    """Resource group, workspace, the jobs' identity with its roles, and those of whoever submits."""
    group, space = known.get("resource_group", "YOUR-GROUP"), known.get("workspace", "YOUR-WORKSPACE")
    region, vault = known.get("region", "eastus"), known.get("key_vault", "YOUR-VAULT")
    subscription = known.get("subscription", "$(az account show --query id -o tsv)")
    here = f"/subscriptions/{subscription}/resourceGroups/{group}"
    grant = "az role assignment create --assignee-object-id {who} --assignee-principal-type {kind} --role '{role}'"
    job = grant.format(who='"$IDENTITY"', kind="ServicePrincipal", role="{role}")
    you = grant.format(who='"$ME"', kind="User", role="{role}")
    parts = [
        ("sign in, once",
         f"az login\naz account set --subscription {known.get('subscription', 'YOUR-SUBSCRIPTION')}\n"
         "az extension add --name ml"),
        ("a workspace with its storage and key vault",
         f"az group create --name {group} --location {region}\n"
         f"az ml workspace create --name {space} --resource-group {group} --location {region}\n"
         f"STORAGE=$(az ml workspace show -n {space} --resource-group {group} --query storage_account -o tsv)"),
        ("an identity for jobs that read secrets",
         f"az identity create --name finelaunch-jobs --resource-group {group}\n"
         f"IDENTITY=$(az identity show -n finelaunch-jobs --resource-group {group} --query principalId -o tsv)\n"
         f"CLIENT=$(az identity show -n finelaunch-jobs --resource-group {group} --query clientId -o tsv)"),
        ("what it may do: read and write the datastore, read the vault's secrets",
         f"{job.format(role='Storage Blob Data Contributor')} --scope \"$STORAGE\"\n"
         f"{job.format(role='Key Vault Secrets User')} --scope "
         f"{here}/providers/Microsoft.KeyVault/vaults/{vault}"),
        ("what you may do: run jobs, write the datastore, put secrets",
         "ME=$(az ad signed-in-user show --query id -o tsv)\n"
         f"{you.format(role='AzureML Data Scientist')} --scope "
         f"{here}/providers/Microsoft.MachineLearningServices/workspaces/{space}\n"
         f"{you.format(role='Storage Blob Data Contributor')} --scope \"$STORAGE\"\n"
         f"{you.format(role='Key Vault Secrets Officer')} --scope "
         f"{here}/providers/Microsoft.KeyVault/vaults/{vault}"),
        ("then",
         f"launch setup azureml --subscription {subscription} --resource-group {group} --workspace {space} "
         f"--region {region} --key-vault {vault} --identity \"$CLIENT\""),
    ]  # fmt: skip
    return "\n\n".join(f"# {title}\n{text}" for title, text in parts)
