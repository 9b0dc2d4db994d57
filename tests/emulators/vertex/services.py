"""Google's smaller services, as much of them as is asked: logs, secrets, identities, quotas, images."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import unquote

from tests.emulators.vertex.world import DEVELOPER, PROJECT, Refused, World, invalid, not_found

API = "aiplatform.googleapis.com"
REGIONS = ("us-central1", "europe-west4")
"""In which the project has a quota of its own."""
IMAGES = {"finelaunch": (("old", "2026-01-01T00:00:00Z"), ("train", "2026-11-01T00:00:00Z"))}
"""Repository -> its images and when they were pushed."""
SEVERITIES = ("DEFAULT", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL")


def list_entries(world: World, body: Mapping[str, Any]) -> dict[str, Any]:
    """https://cloud.google.com/logging/docs/reference/v2/rest/v2/entries/list"""
    wanted = body.get("filter", "")
    job = re.search(r'job_id\s*=\s*"([\w-]+)"', wanted)
    since = re.search(r'timestamp\s*>=\s*"([^"]+)"', wanted)
    level = re.search(r"severity\s*>=\s*(\w+)", wanted)
    if since is None:
        raise invalid("a filter without a time reads everything that there is: not emulated")
    visible = time.time_ns() - int(world.settings.log_delay_s * 1e9)
    least = SEVERITIES.index(level[1]) if level else 0
    but = re.search(r'task_name\s*!=\s*"([\w-]+)"', wanted)
    with world.lock:
        found = [
            entry
            for entry in world.entries
            if (job is None or entry["resource"]["labels"]["job_id"] == job[1])
            and (but is None or entry["resource"]["labels"]["task_name"] != but[1])
            and entry["timestamp"] >= since[1] and entry["_at"] <= visible
            and SEVERITIES.index(entry["severity"]) >= least
        ]  # fmt: skip
    found.sort(key=lambda e: (e["timestamp"], e["insertId"]), reverse="desc" in body.get("orderBy", ""))
    start, most = int(body.get("pageToken") or 0), int(body.get("pageSize") or 50)
    page: dict[str, Any] = {
        "entries": [{k: v for k, v in e.items() if k != "_at"} for e in found[start : start + most]]
    }
    if start + most < len(found):
        page["nextPageToken"] = str(start + most)
    return page


def secret(world: World, who: str, verb: str, path: str, query: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """https://cloud.google.com/secret-manager/docs/reference/rest"""
    asked = json.loads(body or b"{}")
    if verb == "POST" and path.endswith("/secrets"):
        name = f"{path}/{query['secretId']}"
        if name in world.secrets:
            raise Refused(409, "ALREADY_EXISTS", f"Secret [{name}] already exists.")
        if "replication" not in asked:
            raise invalid("replication is required")
        world.secrets[name] = []
        return {"name": name}
    name = path.partition("/versions/")[0].partition(":")[0]
    if name not in world.secrets:
        raise not_found(f"Secret [{name}] not found.")
    if path.endswith(":addVersion"):
        world.secrets[name].append(asked["payload"]["data"])
        return {"name": f"{name}/versions/{len(world.secrets[name])}"}
    if path.endswith(":getIamPolicy"):
        return {"etag": "BwY="}  # nobody has a right on one secret alone
    if path.endswith(":access"):
        if world.is_denied(who, "secretmanager.versions.access"):
            raise Refused(403, "PERMISSION_DENIED", "Permission 'secretmanager.versions.access' denied")
        if not world.secrets[name]:
            raise not_found(f"Secret Version [{name}/versions/latest] not found.")
        return {"name": f"{name}/versions/1", "payload": {"data": world.secrets[name][-1]}}
    if "/versions/" in path:
        if not world.secrets[name]:
            raise not_found(f"Secret Version [{path}] not found.")
        return {"name": f"{name}/versions/{len(world.secrets[name])}", "state": "ENABLED"}
    return {"name": name}


def metadata(world: World, account: str, path: str, headers: Mapping[str, str]) -> Any:
    """https://cloud.google.com/compute/docs/metadata/overview"""
    if headers.get("metadata-flavor") != "Google":
        raise Refused(403, "PERMISSION_DENIED", "Missing Metadata-Flavor:Google header.")
    if not path:  # is there such a server?
        return ""
    if path.endswith("/token"):
        return {"access_token": world.token_of(account), "expires_in": 3599, "token_type": "Bearer"}
    if path.endswith("/project-id"):
        return PROJECT
    if path.endswith("/email"):
        return account
    raise not_found(path)


def user(world: World) -> dict[str, Any]:
    """https://openid.net/specs/openid-connect-core-1_0.html#UserInfo, at openidconnect.googleapis.com"""
    if world.settings.login is None:
        raise Refused(401, "UNAUTHENTICATED", "Invalid Credentials")
    return {"sub": "1", "email": world.settings.login, "email_verified": True}


def identity(world: World, verb: str, path: str, body: bytes) -> dict[str, Any]:
    """IAM: service accounts, and what the caller may do with them.

    https://cloud.google.com/iam/docs/reference/rest/v1/projects.serviceAccounts/get says when 403 stands for 404.
    """
    if path.endswith("/serviceAccounts"):
        return {"accounts": [{"email": email} for email in sorted(world.accounts)]}
    email = unquote(path.rpartition("/serviceAccounts/")[2].partition(":")[0])
    if email not in world.accounts:
        if "projects/-/" in path:
            raise Refused(403, "PERMISSION_DENIED", "Permission 'iam.serviceAccounts.get' denied")
        raise not_found(f"Unknown service account {email}")
    if path.endswith(":testIamPermissions"):
        asked = json.loads(body)["permissions"]
        allowed = [right for right in asked if not world.is_denied(DEVELOPER, right)]
        return {"permissions": allowed} if allowed else {}  # an empty list is left out, as in all of Google's JSON
    return {"email": email, "name": path}


def project_policy(world: World) -> dict[str, Any]:
    """https://cloud.google.com/resource-manager/reference/rest/v1/projects/getIamPolicy: who may read secrets."""
    right = "secretmanager.versions.access"
    readers = [f"serviceAccount:{who}" for who in sorted(world.accounts) if not world.is_denied(who, right)]
    others = {"role": "roles/logging.logWriter", "members": [f"serviceAccount:{who}" for who in world.accounts]}
    return {"bindings": [others, {"role": "roles/secretmanager.secretAccessor", "members": readers}]}


def usage(world: World, path: str) -> dict[str, Any]:
    """Service Usage: is the API enabled, and the quotas."""
    if "consumerQuotaMetrics/" not in path:
        disabled = world.is_denied(DEVELOPER, API)
        return {"name": path, "state": "DISABLED" if disabled else "ENABLED"}
    metric = unquote(path.rpartition("/")[2]).partition("/")[2] or unquote(path.rpartition("/")[2])
    name = metric.removeprefix(f"{API}/")
    quota, other = world.quota(name), {"effectiveLimit": "-1"}
    if quota is None:
        raise not_found(f"Quota metric {API}/{name} not found")
    told = [{"effectiveLimit": str(quota), "dimensions": {"region": region}} for region in REGIONS]
    return {"metric": f"{API}/{name}", "consumerQuotaLimits": [{"quotaBuckets": [other, *told]}]}


def images(path: str) -> dict[str, Any]:
    """https://cloud.google.com/artifact-registry/docs/reference/rest/v1/projects.locations.repositories.dockerImages"""
    match = re.fullmatch(r"v1/projects/([^/]+)/locations/([^/]+)/repositories/([^/]+)/dockerImages", path)
    if match is None or match[3] not in IMAGES:
        raise not_found("Requested entity was not found.")
    place = f"{match[2]}-docker.pkg.dev/{match[1]}/{match[3]}"
    return {
        "dockerImages": [
            {"uri": f"{place}/{name}@sha256:{sha256(name.encode()).hexdigest()}", "updateTime": at}
            for name, at in IMAGES[match[3]]
        ]
    }


def manifest(world: World, path: str) -> dict[str, str]:
    """Artifact Registry, in the registry's own protocol: is there an image? Its headers."""
    match = re.fullmatch(r"v2/(?P<name>.+)/manifests/(?P<ref>.+)", path)
    assert match is not None
    sign = "@" if match["ref"].startswith("sha256:") else ":"
    if world.image_python(f"us-central1-docker.pkg.dev/{match['name']}{sign}{match['ref']}") is None:
        raise not_found("MANIFEST_UNKNOWN")
    digest = match["ref"] if sign == "@" else f"sha256:{sha256(path.encode()).hexdigest()}"
    return {"Docker-Content-Digest": digest}
