"""As whom Azure is spoken to: the credential that answered, and what its token says of its owner.

https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference (read 2026-11-30)
"""

from __future__ import annotations

import base64
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CREDENTIALS = {
    "EnvironmentCredential": "environment variables (AZURE_CLIENT_ID, ...)",
    "WorkloadIdentityCredential": "workload identity",
    "ManagedIdentityCredential": "managed identity of this machine",
    "SharedTokenCacheCredential": "Visual Studio's token cache",
    "VisualStudioCodeCredential": "Visual Studio Code",
    "AzureCliCredential": "az login",
    "AzurePowerShellCredential": "Connect-AzAccount of PowerShell",
    "AzureDeveloperCliCredential": "azd auth login",
    "BrokerCredential": "the operating system's account",
}
"""azure-identity's DefaultAzureCredential tries these in this order (1.27)."""
USER = ("upn", "preferred_username", "unique_name", "email")
MOST = 200
"""Characters of a name, or of a reason."""


@dataclass(frozen=True, kw_only=True)
class Who:
    """`name` as the token has it; None where it tells none."""

    name: str | None
    credential: str
    tenant: str | None
    object_id: str | None
    """Of the owner in its tenant: whom a role is assigned to."""

    def __str__(self) -> str:
        return f"{self.name or 'signed in'}, by {self.credential}"


def who(credential: str, token: str) -> Who:
    """`credential`: the class of azure-identity that gave `token`, of which nothing but names goes on."""
    claims = _claims(token)
    user = next((claims[name] for name in USER if claims.get(name)), None)
    identity = str(claims.get("xms_mirid") or "").rpartition("/")[2]  # a managed identity's resource id
    application = claims.get("appid") or claims.get("azp")
    name = user or (f"managed identity {identity}" if identity else None)
    if name is None and application:
        name = f"application {application}"
    return Who(
        name=_short(name),
        credential=CREDENTIALS.get(credential, credential),
        tenant=_short(claims.get("tid")),
        object_id=_short(claims.get("oid")),
    )


def tried(said: str) -> str:
    """What each credential of the chain says in azure-identity's error, in a few words; else its first line."""
    found = re.findall(r"^\t(\w+): (.+)$", said, re.MULTILINE)
    if not found:
        return said.partition("\n")[0]
    return "; ".join(f"{CREDENTIALS.get(name, name)}: {_few(text)}" for name, text in found)


def _few(text: str) -> str:
    """The first sentence that says more than which credential it is."""
    text = re.sub(r"^\w+ (?:authentication )?unavailable[.,] ", "", text)
    return textwrap.shorten(re.split(r"(?<=[a-z])\. |\.$", text)[0], MOST, placeholder="...")


def _claims(token: str) -> Mapping[str, Any]:
    """What a token says; nothing where it can't be read (nobody promises that a client can)."""
    parts = token.split(".")
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, Mapping) else {}


def _short(text: object) -> str | None:
    """One line of it; None where there is none."""
    return "".join(c for c in str(text or "") if c.isprintable())[:MOST] or None
