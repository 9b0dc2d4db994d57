"""What a job that never came to be leaves in the bucket, and how it goes away, on emulated AWS."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backends import storage as common
from backends.base import JobRef, Plan, Site
from backends.sagemaker import SageMakerBackend
from backends.sagemaker import storage as own
from launcher.errors import BackendError, LaunchError, UnreachableError
from tests.emulators.bundles import bundle
from tests.emulators.sagemaker.conftest import Account
from tests.emulators.sagemaker.test_backend_storage import PART, unfinished
from tests.unit.rendering import job, plan_of

LATER = timedelta(hours=1)


@pytest.fixture
def backend(account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SageMakerBackend:
    for name, value in account.aws.environment.items():
        monkeypatch.setenv(name, value)
    for module in (common, own):
        monkeypatch.setattr(module, "LARGE", PART)
    return SageMakerBackend(tmp_path)


@pytest.fixture
def site(account: Account) -> Site:
    return Site(backend="sagemaker", facts={
        "role": account.role, "bucket": account.bucket, "region": account.aws.region
    })  # fmt: skip


def planned(backend: SageMakerBackend, site: Site, folder: Path, name: str, content: bytes = b"x") -> Plan:
    """A plan of a job of this name, whose bundle is in `folder`."""
    wanted = bundle(folder, name, content)
    facts = {key: str(value) for key, value in site.facts.items()}
    plan = plan_of(backend, job(), facts)
    request = backend.render(plan.job, plan.offer, wanted, site, name, name)
    return replace(plan, bundle=wanted, token=name, lineage=name, request=request)


def of(account: Account, plan: Plan) -> tuple[list[str], list[str]]:
    """(keys of the plan's job: mark and record; those of its bundle)."""
    keys = account.keys("finelaunch/")
    sent = [key for key in keys if f"/bundles/{plan.bundle.sha256}" in key]
    return [key for key in keys if plan.token in key.split("/") and key not in sent], sent


def test_a_job_that_is_refused_leaves_no_mark_and_no_record(
    account: Account, backend: SageMakerBackend, site: Site, tmp_path: Path
) -> None:
    plan = planned(backend, site, tmp_path, "refused")
    backend.stage(plan, lambda _: None)
    assert len(of(account, plan)[0]) == 2
    account.aws.deny("iam:PassRole")
    with pytest.raises(BackendError, match="PassRole"):
        backend.submit(plan)
    mine, sent = of(account, plan)
    assert mine == []
    assert len(sent) == 2, "what was sent is there for the next try"


def test_a_mark_stays_where_an_answer_may_have_been_lost(
    account: Account, backend: SageMakerBackend, site: Site, tmp_path: Path
) -> None:
    plan = planned(backend, site, tmp_path, "perhaps")
    backend.stage(plan, lambda _: None)
    account.aws.fault("drop", "CreateTrainingJob", times=1)
    account.aws.deny("iam:PassRole")
    with pytest.raises(BackendError, match="PassRole"):
        backend.submit(plan)
    assert len(of(account, plan)[0]) == 2
    account.aws.clear()
    account.aws.fault("drop", "CreateTrainingJob", times=99)
    with pytest.raises(UnreachableError):
        backend.submit(plan)
    assert len(of(account, plan)[0]) == 2


def test_what_belongs_to_no_job_is_swept_and_what_does_is_kept(
    account: Account, backend: SageMakerBackend, site: Site, tmp_path: Path
) -> None:
    broken = planned(backend, site, tmp_path, "broken", b"y" * (2 * PART))
    account.aws.fault("drop", "s3:UploadPart", skip=1, times=6)
    with pytest.raises(LaunchError):
        backend.stage(broken, lambda _: None)
    never, runs = (planned(backend, site, tmp_path, name) for name in ("never", "runs"))
    for plan in (never, runs):
        backend.stage(plan, lambda _: None)
    backend.submit(runs)
    account.put("finelaunch-not/ours", "x")
    theirs = account.aws.client("s3").create_multipart_upload(Bucket=account.bucket, Key="theirs/large")
    now = datetime.now(UTC)
    assert backend.sweep(site, now - LATER) == 0
    assert len(unfinished(account)) == 2
    assert backend.sweep(site, now + LATER) >= 4  # an upload, two marks, a bundle; and what other tests left
    assert [one["UploadId"] for one in unfinished(account)] == [theirs["UploadId"]]
    assert (of(account, broken), of(account, never)) == (([], []), ([], []))
    assert len(of(account, runs)[0]) >= 2 and len(of(account, runs)[1]) == 2
    assert account.keys("finelaunch-not/") == ["finelaunch-not/ours"]
    assert backend.sweep(site, now + LATER) == 0
    account.aws.client("s3").abort_multipart_upload(
        Bucket=account.bucket, Key="theirs/large", UploadId=theirs["UploadId"]
    )
    account.aws.wait("runs")


def test_what_another_backend_region_or_account_keeps_in_the_bucket_is_not_swept(
    account: Account, backend: SageMakerBackend, site: Site, tmp_path: Path
) -> None:
    elsewhere = {"region": "eu-west-1"}, {"role": "arn:aws:iam::999999999999:role/theirs"}
    kept = []
    for number, facts in enumerate(({}, *elsewhere)):
        plan = planned(backend, replace(site, facts={**site.facts, **facts}), tmp_path, f"theirs-{number}")
        if not facts:
            plan = replace(plan, offer=replace(plan.offer, backend="skypilot"))
        storage = own.Storage(backend._aws(account.aws.region), account.bucket)
        storage.put_bundle(plan.bundle, plan.token, lambda _: None)
        storage.put_record(replace(plan, site=replace(site, facts={**site.facts, **facts})))
        kept.append(plan)
    backend.sweep(site, datetime.now(UTC) + LATER)
    for plan in kept:
        mine, sent = of(account, plan)
        assert (len(mine), len(sent)) == (2, 2), plan.token
    damaged = kept[0].token
    account.put(f"finelaunch/jobs/{damaged}/record.json", "{")
    backend.sweep(site, datetime.now(UTC) + LATER)
    assert len(of(account, kept[0])[0]) == 2


def test_a_release_gives_up_the_unfinished_uploads_of_its_bundle(
    account: Account, backend: SageMakerBackend, site: Site, tmp_path: Path
) -> None:
    plan = planned(backend, site, tmp_path, "released")
    backend.stage(plan, lambda _: None)
    ref = backend.submit(plan)
    account.aws.wait("released")
    key = f"finelaunch/bundles/{plan.bundle.sha256}/model/part"
    account.aws.client("s3").create_multipart_upload(Bucket=account.bucket, Key=key)
    backend.release(ref)
    assert of(account, plan) == ([], [])
    assert unfinished(account) == []
    assert backend.find(site, "released") is None
    assert ref == JobRef("sagemaker", account.aws.region, "released")
