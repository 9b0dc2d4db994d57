"""As whom the backend speaks to Google: which of the application default credentials answers, and its account.

https://cloud.google.com/docs/authentication/application-default-credentials (2026-11-23)
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from backends.vertex.google import Google, endpoint, is_loopback
from launcher.errors import UnreachableError

ASK_S = 5
"""For a name alone nobody waits longer."""
KINDS = {
    "user credentials": "a login by gcloud",
    "service account credentials": "a service account's key",
    "VM credentials": "this machine's service account",
    "impersonated credentials": "impersonation of a service account",
    "external account credentials": "workload identity federation",
    "external account authorized user credentials": "workforce identity federation",
}
"""What google-auth (2.63.0, get_cred_info) calls a kind of credentials -> what users call it."""
EMAIL = "computeMetadata/v1/instance/service-accounts/default/email"


def signed_in(google: Google) -> str:
    """Account, kind and source of the credentials, project. Raises CredentialsError.

    An account's name that is not in the credentials is asked for, which takes no right; without an answer it is
    left out.
    """
    address = endpoint("vertex", region=google.region)
    if is_loopback(address):
        return f"nobody: {address} is on this machine and gets no credentials"
    credentials = google.credentials("vertex")
    told = credentials.get_cred_info() or {}
    kind = KINDS.get(told.get("credential_type", ""), type(credentials).__name__)
    where = _source(str(told.get("credential_source", "")))
    counted = getattr(credentials, "quota_project_id", None)
    parts = [
        f"{_account(google, credentials, told) or 'an account that does not tell its name'}: {kind}{where}",
        f"project {google.project}",
        *([f"calls count in {counted}"] if counted and counted != google.project else []),
    ]
    return "; ".join(parts)


def _account(google: Google, credentials: Any, told: dict[str, str]) -> str | None:
    kind, name = told.get("credential_type"), told.get("principal")
    with contextlib.suppress(UnreachableError, OSError, LookupError, ValueError):  # requests' errors are OSErrors
        if kind == "VM credentials":
            return _of_this_machine()
        if kind == "user credentials" and not name:
            return _of_login(google)
    if kind == "external account credentials" and not name:
        return f"an account of {credentials.info['audience']}"
    return name or None


def _of_this_machine() -> str:
    import requests

    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    answer = requests.get(f"http://{host}/{EMAIL}", headers={"Metadata-Flavor": "Google"}, timeout=ASK_S)
    answer.raise_for_status()
    return answer.text.strip()


def _of_login(google: Google) -> str:
    """A login's token for everything that it was for may name the user; one for Google Cloud alone does not."""
    import google.auth as auth
    from google.auth.transport.requests import AuthorizedSession

    url = google.url("openidconnect", "v1/userinfo")
    with google.errors("asking who is logged in"):
        credentials = google.credentials("openidconnect") if is_loopback(url) else auth.default()[0]
        session: Any = AuthorizedSession(credentials, refresh_status_codes=())  # type: ignore[no-untyped-call]
        answer = session.get(url, timeout=ASK_S, max_allowed_time=ASK_S)
    return str(answer.json()["email"])


def _source(told: str) -> str:
    """google-auth's words for where the credentials come from, as an appendix to their kind."""
    if not told:
        return ""
    path, _, variable = told.partition(" file via the ")
    return f" ({variable.split()[0]}={path})" if variable else f" ({told})"
