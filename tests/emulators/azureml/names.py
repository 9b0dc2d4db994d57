"""Whose subscription is emulated, and what is in it, by name."""

from __future__ import annotations

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
GROUP, WORKSPACE, REGION, ACCOUNT, VAULT = "fake-group", "fake-space", "eastus", "fakestore", "fakevault"
TENANT = "22222222-2222-2222-2222-222222222222"
CLIENT = "33333333-3333-3333-3333-333333333333"
"""Client id of the application that the developer signs in as."""
IDENTITY = "44444444-4444-4444-4444-444444444444"
"""Client id of the managed identity that jobs may have."""
PRINCIPAL = "55555555-5555-5555-5555-555555555555"
"""The same identity's object id."""
REGISTRY = "fakeregistry"
DEVELOPER = "developer"
DATASTORES = {"workspaceblobstore": "azureml-blobstore", "workspaceartifactstore": "azureml"}
"""Datastore -> its container."""
PATH = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.MachineLearningServices"
    f"/workspaces/{WORKSPACE}"
)
