"""What the Vertex backend says of a project before anything is sent, and finds in it: on an emulated project."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.base import Plan, Problem, Site
from backends.vertex import VertexBackend, google
from backends.vertex.account import facts_of
from launcher.errors import UnreachableError
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


def test_a_secret_that_is_not_there_is_told(project: Project, backend: VertexBackend) -> None:
    spec = job(secrets=["NEVER_STORED"])
    wanted = plan_of(backend, spec, site(project).facts)
    found = only(backend.check(wanted.site, wanted))
    assert found.fatal and "NEVER_STORED" in found.what and "launch secrets put" in found.fix


def test_a_quota_below_what_the_job_needs_is_told(project: Project, backend: VertexBackend) -> None:
    backend.put_secret(site(project), "HF_TOKEN", "value")
    project.google.set(quotas={"custom_model_training_nvidia_a100_gpus": 0})
    wanted = plan(project)
    found = only(backend.check(wanted.site, wanted))
    assert found.fatal and found.kind == "quota" and "is 0 in us-central1" in found.what


def test_an_image_without_a_digest_is_told_with_the_one_that_it_has(
    project: Project, backend: VertexBackend
) -> None:
    found = only(backend.check(site(project, image=IMAGE)))
    assert not found.fatal and f"{IMAGE} has no digest" in found.what
    pinned = found.fix.split()[-1]
    assert pinned.startswith(f"{IMAGE.rpartition(':')[0]}@sha256:")
    assert backend.check(site(project, image=pinned)) == []


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
    project.google.deny("storage.*")
    found = facts_of({})
    assert found["bucket"] == [] and project.account in found["service_account"]
    project.google.deny("iam.*")
    assert facts_of({})["service_account"] == []
    project.google.clear()
    monkeypatch.setattr(google, "RETRY_S", 0.2)
    project.google.fault("unavailable", "iam:*", times=100)
    with pytest.raises(UnreachableError):
        facts_of({})
