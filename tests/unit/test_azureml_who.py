"""As whom the Azure ML backend speaks: azure-identity's own credentials, and the programs that they start."""

from __future__ import annotations

import base64
import importlib.metadata
import json
from pathlib import Path

import pytest

from backends.azureml import AzureMLBackend
from backends.azureml.who import tried, who
from backends.base import SaysWho, Site

TENANT = "22222222-2222-2222-2222-222222222222"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
MIRID = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/jobs"


def token(**claims: object) -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (*parts, b"signature"))


@pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="azure-identity")),
    reason="azure-identity comes with the extra azureml",
)
@pytest.mark.parametrize(
    ("program", "chosen", "given", "said"),
    [
        ("az", "AzureCliCredential", token(upn="anna@example.com", tid=TENANT, appid="04b07795"),
         f"anna@example.com, by az login, tenant {TENANT}, subscription {SUBSCRIPTION}"),
        ("azd", "AzureDeveloperCliCredential", "opaque",
         f"signed in, by azd auth login, subscription {SUBSCRIPTION}"),
    ],
)  # fmt: skip
def test_who_is_signed_in_is_told_without_the_token(
    program: str, chosen: str, given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {
        "accessToken": given, "expires_on": 4102444800, "expiresOn": "2100-01-01T00:00:00Z", "token": given,
        "tenant": TENANT, "tokenType": "Bearer",
    }  # fmt: skip
    (tmp_path / program).write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", chosen)  # the others would look at the network first
    backend = AzureMLBackend(tmp_path)
    assert isinstance(backend, SaysWho)
    found = backend.signed_in(Site(backend="azureml", facts={"subscription": SUBSCRIPTION}))
    assert found == said
    assert given not in found


@pytest.mark.parametrize(
    ("credential", "claims", "said"),
    [
        ("EnvironmentCredential", {"appid": "33333333"}, "application 33333333, by environment variables"),
        ("WorkloadIdentityCredential", {"azp": "33333333"}, "application 33333333, by workload identity"),
        ("ManagedIdentityCredential", {"xms_mirid": MIRID, "appid": "3"}, "managed identity jobs, by managed"),
        ("AzurePowerShellCredential", {"unique_name": "ben\n\x1b[1m"}, "ben[1m, by Connect-AzAccount"),
        ("SomethingNew", {"upn": "a@b"}, "a@b, by SomethingNew"),
    ],
)
def test_every_kind_of_owner_has_a_name_in_one_line(credential: str, claims: dict[str, str], said: str) -> None:
    found = str(who(credential, token(**claims)))
    assert found.startswith(said)
    assert found.isprintable()


def test_what_each_credential_says_is_told_in_a_few_words() -> None:
    said = (
        "DefaultAzureCredential failed to retrieve a token from the included credentials.\n"
        "Attempted credentials:\n"
        "\tEnvironmentCredential: EnvironmentCredential authentication unavailable. Environment variables are not "
        "fully configured.\nVisit https://aka.ms/x to troubleshoot this issue.\n"
        "\tManagedIdentityCredential: ManagedIdentityCredential authentication unavailable, no response from the "
        "IMDS endpoint.\n\tAzureCliCredential: Azure CLI not found on path\n"
        "\tAzureDeveloperCliCredential: AADSTS70043: The token has expired. Sign in again.\n"
        "To mitigate this issue, please refer to the guidelines."
    )
    assert tried(said) == (
        "environment variables (AZURE_CLIENT_ID, ...): Environment variables are not fully configured; "
        "managed identity of this machine: no response from the IMDS endpoint; "
        "az login: Azure CLI not found on path; azd auth login: AADSTS70043: The token has expired"
    )
    assert tried("Something else\nand more") == "Something else"


@pytest.mark.parametrize("broken", ["", "a.b.c", "a.W10.c", "..", "\u00e9.\u00e9.\u00e9"])
def test_a_token_that_says_nothing_is_no_error(broken: str) -> None:
    assert str(who("AzureCliCredential", broken)) == "signed in, by az login"
