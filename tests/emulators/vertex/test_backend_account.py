"""What the Vertex backend says of a project before anything is sent, and finds in it: on an emulated project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from backends.base import Plan, Problem, Site
from backends.vertex import VertexBackend, google
from backends.vertex.account import facts_of
from backends.vertex.google import Google
from launcher.errors import CredentialsError, QuotaError, UnreachableError
from tests.emulators.vertex.conftest import IMAGE, Project
from tests.unit.rendering import DIGEST, job, plan_of

PINNED = f"{IMAGE.rpartition(':')[0]}@{DIGEST}"


@pytest.fixture
def backend(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VertexBackend:
    for name, value in project.google.environment.items():
        monkeypatch.setenv(name, value)
    return VertexBackend(tmp_path)


def site(project: Project, **changes: str) -> Site:
    facts = {
        "project": project.google.project, "region": project.google.region, "bucket": project.bucket,
        "service_account": project.account, "image": PINNED, **changes,
    }  # fmt: skip
    return Site(backend="vertex", facts=facts)


def plan(project: Project, region: str | None = None, **changes: str) -> Plan:
    spec = job(resources={"region": region} if region else {}, secrets=["HF_TOKEN"])
    return plan_of(VertexBackend(Path("unused")), spec, site(project, **changes).facts)


def only(found: list[Problem]) -> Problem:
    (problem,) = found
    assert problem.fix
    return problem


def test_of_a_sound_project_nothing_is_said(project: Project, backend: VertexBackend) -> None:
    assert backend.check(site(project)) == []
    backend.put_secret(site(project), "HF_TOKEN", "value")
    wanted = plan(project)
    assert backend.check(wanted.site, wanted) == []


def test_a_service_that_is_not_enabled_is_told(project: Project, backend: VertexBackend) -> None:
    project.google.deny("aiplatform.googleapis.com")
    found = only(backend.check(site(project)))
    assert found.fatal and "not enabled" in found.what and "gcloud services enable" in found.fix


def test_a_bucket_that_is_not_there_is_told(project: Project, backend: VertexBackend) -> None:
    found = only(backend.check(site(project, bucket="nowhere-at-all")))
    assert found.fatal and "no bucket nowhere-at-all" in found.what
    assert "gs://nowhere-at-all" in found.fix and project.google.region in found.fix


def test_a_bucket_in_another_region_stops_no_job_that_names_its_region(
    project: Project, backend: VertexBackend
) -> None:
    far = project.google.bucket(region="europe-west4")
    found = only(backend.check(site(project, bucket=far)))
    assert found.fatal and "europe-west4" in found.what
    wanted = plan(project, region="us-central1", bucket=far)
    backend.put_secret(wanted.site, "HF_TOKEN", "value")
    found = only(backend.check(wanted.site, wanted))
    assert not found.fatal and "billed as traffic" in found.what
    assert only(backend.check(wanted.site, plan(project, bucket=far))).fatal


def test_an_account_that_is_not_there_is_told(project: Project, backend: VertexBackend) -> None:
    missing = f"nobody@{project.google.project}.iam.gserviceaccount.com"
    found = only(backend.check(site(project, service_account=missing)))
    assert found.fatal and f"no service account {missing}" in found.what


def test_the_right_to_let_jobs_run_as_the_account_is_asked_for(project: Project, backend: VertexBackend) -> None:
    project.google.deny("iam.serviceAccounts.actAs")
    found = only(backend.check(site(project)))
    assert found.fatal and "actAs" in found.what and "roles/iam.serviceAccountUser" in found.fix


def test_a_secret_without_a_value_is_told(project: Project, backend: VertexBackend) -> None:
    google = Google(project.google.project, project.google.region)
    made = {"replication": {"automatic": {}}}
    google.ask("secretmanager", f"v1/projects/{google.project}/secrets?secretId=EMPTY", "making it", made)
    for name in ("NEVER_STORED", "EMPTY"):
        wanted = plan_of(backend, job(secrets=[name]), site(project).facts)
        found = only(backend.check(wanted.site, wanted))
        assert found.fatal and f"secret {name} " in found.what and f"launch secrets put {name}" in found.fix


def test_a_secret_that_the_jobs_account_may_not_read_is_a_note(project: Project, backend: VertexBackend) -> None:
    wanted = plan(project)
    backend.put_secret(wanted.site, "HF_TOKEN", "value")
    project.google.deny("secretmanager.versions.access", who=project.account)
    found = only(backend.check(wanted.site, wanted))
    assert not found.fatal and f"{project.account} may not read secret HF_TOKEN" in found.what
    assert found.fix.startswith("gcloud secrets add-iam-policy-binding HF_TOKEN")
    project.google.deny("cloudresourcemanager.*")
    assert backend.check(wanted.site, wanted) == []


A100, PREEMPTIBLE = "custom_model_training_nvidia_a100_gpus", "custom_model_training_preemptible"


@pytest.mark.parametrize(
    ("quotas", "resources", "said"),
    [
        ({A100: 0}, {}, f"{A100} is 0 in us-central1, and the job needs 1"),
        ({A100: 3}, {"gpus": 2, "nodes": 2}, f"{A100} is 3 in us-central1, and the job needs 4"),
        ({A100: 0}, {"region": "europe-west4"}, f"{A100} is 0 in europe-west4"),
        ({"custom_model_training_a2_cpus": 11}, {}, "custom_model_training_a2_cpus is 11 in us-central1"),
        ({f"{PREEMPTIBLE}_nvidia_a100_gpus": 0}, {"spot": True}, f"{PREEMPTIBLE}_nvidia_a100_gpus is 0"),
        (
            {f"{PREEMPTIBLE}_cpus": 1},
            {"spot": True},
            f"{PREEMPTIBLE}_cpus is 1 in us-central1, and the job needs 12",
        ),
        ({f"{PREEMPTIBLE}_cpus": 1}, {"max_wait_hours": 2}, f"{PREEMPTIBLE}_cpus is 1"),
    ],
)
def test_a_quota_below_what_the_job_needs_is_told_before_google_refuses_the_job(
    quotas: dict[str, int], resources: dict[str, Any], said: str, project: Project, backend: VertexBackend
) -> None:
    project.google.set(quotas=quotas)
    wanted = plan_of(backend, job(resources=resources), site(project).facts)
    found = [p for p in backend.check(wanted.site, wanted) if p.kind == "quota"]
    assert [problem.fatal for problem in found] == [True]
    assert said in found[0].what and f"project={project.google.project}" in found[0].fix
    with pytest.raises(QuotaError):
        backend.submit(wanted)


def test_a_quota_that_the_job_counts_on_most_likely_is_a_note(project: Project, backend: VertexBackend) -> None:
    project.google.set(quotas={f"{PREEMPTIBLE}_cpus": 1})
    wanted = plan_of(backend, job(resources={"gpu": "L4", "spot": True}), site(project).facts)
    found = only(backend.check(wanted.site, wanted))
    assert not found.fatal and f"{PREEMPTIBLE}_cpus is 1" in found.what


def test_a_quota_of_which_google_tells_nothing_is_a_note(project: Project, backend: VertexBackend) -> None:
    project.google.set(quotas={A100: None, "custom_model_training_a2_cpus": None})
    wanted = plan_of(backend, job(), site(project).facts)
    found = only(backend.check(wanted.site, wanted))
    assert not found.fatal and "not known here" in found.what and "console.cloud.google.com" in found.fix
    assert A100 in found.what and "a2_cpus (the job needs 12)" in found.what


def test_an_image_without_a_digest_is_told_with_the_one_that_it_has(
    project: Project, backend: VertexBackend
) -> None:
    found = only(backend.check(site(project, image=IMAGE)))
    assert not found.fatal and f"{IMAGE} has no digest" in found.what
    assert found.fix.startswith("launch setup vertex --image ")
    pinned = found.fix.split()[-1]
    assert pinned.startswith(f"{IMAGE.rpartition(':')[0]}@sha256:")
    assert backend.check(site(project, image=pinned)) == []


def test_an_image_of_the_jobs_own_is_named_by_the_jobs_own_field(project: Project, backend: VertexBackend) -> None:
    wanted = plan_of(backend, job(resources={"image": IMAGE}), site(project).facts)
    assert only(backend.check(wanted.site, wanted)).fix.startswith("--set resources.image=us-central1-docker")


def test_an_image_that_is_not_there_is_told(project: Project, backend: VertexBackend) -> None:
    project.google.set(images={IMAGE: None})
    found = only(backend.check(site(project, image=IMAGE)))
    assert found.fatal and "no image" in found.what


def test_what_may_not_be_seen_is_a_note(project: Project, backend: VertexBackend) -> None:
    project.google.deny(*(f"{name}.*" for name in ("serviceusage", "iam", "storage", "artifactregistry")))
    project.google.deny("secretmanager.*")
    wanted = plan(project)
    found = backend.check(wanted.site, wanted)
    seen = " ".join(problem.what for problem in found)
    for what in ("the Vertex AI API", "service account", "bucket", "image", "secret HF_TOKEN", "the quota"):
        assert f"{what}" in seen
    assert all(p.fix and not p.fatal and "could not be checked" in p.what for p in found)


def test_without_credentials_the_chain_that_was_tried_is_told(
    project: Project, backend: VertexBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LAUNCH_VERTEX_ENDPOINT")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    found = only(backend.check(site(project)))
    assert found.fatal and found.kind == "credentials"
    assert str(tmp_path / "missing.json") in found.what and "gcloud auth" in found.fix


def test_facts_are_found_as_far_as_they_may_be_seen(
    project: Project, backend: VertexBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = project.google.bucket("a-training-bucket")
    far = project.google.bucket(region="europe-west4")
    found = facts_of({})
    assert (found["project"], found["region"]) == ([project.google.project], ["us-central1"])
    assert found["bucket"][0] == named and project.bucket in found["bucket"] and far not in found["bucket"]
    assert project.account in found["service_account"]
    train, old = found["image"]
    assert train.startswith("us-central1-docker.pkg.dev/demo-project/finelaunch/train@sha256:") and "/old@" in old
    project.google.deny("storage.*")
    found = facts_of({})
    assert found["bucket"] == [] and project.account in found["service_account"]
    project.google.deny("iam.*", "artifactregistry.*")
    found = facts_of({})
    assert found["service_account"] == found["image"] == []
    project.google.clear()
    monkeypatch.setattr(google, "RETRY_S", 0.2)
    project.google.fault("unavailable", "iam:*", times=100)
    with pytest.raises(UnreachableError):
        facts_of({})


# As whom


KEY = "key-material-that-nobody-may-see"


def credentials_file(folder: Path, kind: str, **content: Any) -> Path:
    """As gcloud, the console or a pool's administrator write it."""
    path = folder / "credentials.json"
    path.write_text(json.dumps({"type": kind, **content}))
    return path


USER = {"client_id": "1.apps.googleusercontent.com", "client_secret": KEY, "refresh_token": KEY}
POOL = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ci/providers/git"
FEDERATION = {
    "audience": POOL, "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_url": "https://sts.googleapis.com/v1/token", "credential_source": {"file": "/nowhere/token"},
}  # fmt: skip
IMPERSONATE = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/ci@p.iam.gserviceaccount.com"


@pytest.mark.parametrize(
    ("kind", "content", "who", "how"),
    [
        ("authorized_user", {**USER, "account": "anna@example.com"}, "anna@example.com", "a login by gcloud"),
        ("authorized_user", {**USER, "quota_project_id": "bills"}, "ben@example.com", "calls count in bills"),
        ("external_account", FEDERATION, f"an account of {POOL}", "workload identity federation"),
        (
            "external_account",
            {**FEDERATION, "service_account_impersonation_url": f"{IMPERSONATE}:generateAccessToken"},
            "ci@p.iam.gserviceaccount.com", "workload identity federation",
        ),
        (
            "impersonated_service_account",
            {
                "source_credentials": {"type": "authorized_user", **USER},
                "service_account_impersonation_url": f"{IMPERSONATE}:generateAccessToken",
            },
            "ci@p.iam.gserviceaccount.com", "impersonation of a service account",
        ),
    ],
)  # fmt: skip
def test_who_is_signed_in_and_by_which_credential_is_told_without_a_secret(
    kind: str, content: dict[str, Any], who: str, how: str,
    project: Project, backend: VertexBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    project.google.set(login="ben@example.com")
    assert backend.signed_in(site(project)).startswith(f"nobody: {project.google.endpoint} is on this machine")
    monkeypatch.delenv("LAUNCH_VERTEX_ENDPOINT")
    path = credentials_file(tmp_path, kind, **content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    said = backend.signed_in(site(project))
    assert said.startswith(f"{who}: ") and how in said
    assert f"(GOOGLE_APPLICATION_CREDENTIALS={path})" in said
    assert f"project {project.google.project}" in said
    assert KEY not in said and "\n" not in said


def test_the_owner_of_a_key_file_is_told(
    project: Project, backend: VertexBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key = rsa.generate_private_key(65537, 2048).private_bytes(*form).decode()
    robot = {"client_email": "robot@p.iam.gserviceaccount.com", "token_uri": "https://oauth2.googleapis.com/token"}
    path = credentials_file(tmp_path, "service_account", private_key=key, **robot)
    monkeypatch.delenv("LAUNCH_VERTEX_ENDPOINT")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    assert backend.signed_in(site(project)) == (
        f"robot@p.iam.gserviceaccount.com: a service account's key (GOOGLE_APPLICATION_CREDENTIALS={path}); "
        "project demo-project"
    )


def test_a_login_that_does_not_tell_its_name_is_told_with_its_file(
    project: Project, backend: VertexBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LAUNCH_VERTEX_ENDPOINT")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(CredentialsError):
        backend.signed_in(site(project))
    path = credentials_file(tmp_path, "authorized_user", **USER).rename(
        tmp_path / "application_default_credentials.json"
    )
    said = backend.signed_in(site(project))
    assert said.startswith("an account that does not tell its name: a login by gcloud") and str(path) in said


def test_the_service_account_of_the_users_own_machine_is_told(project: Project, tmp_path: Path) -> None:
    project.google.set(machine_account="worker@demo-project.iam.gserviceaccount.com")
    host = project.google.endpoint.removeprefix("http://")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GOOGLE_", "LAUNCH_", "NO_GCE"))}
    code = (
        "from pathlib import Path; from backends.base import Site; from backends.vertex import VertexBackend\n"
        "print(VertexBackend(Path('x')).signed_in(Site(backend='vertex', facts={'project': 'demo-project'})))"
    )
    done = subprocess.run(  # the library reads where its metadata server is once
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**kept, "GCE_METADATA_HOST": host, "GCE_METADATA_IP": host, "CLOUDSDK_CONFIG": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout == (
        "worker@demo-project.iam.gserviceaccount.com: this machine's service account (metadata server); "
        "project demo-project\n"
    ), done.stderr
