"""What the SageMaker backend says of an account before anything is sent, on emulated IAM and Service Quotas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.base import Problem, Site
from backends.sagemaker import SageMakerBackend
from tests.emulators.sagemaker.conftest import Account
from tests.emulators.sagemaker.world import DEVELOPER
from tests.unit.rendering import job, plan_of

SSO = {"Path": "/aws-reserved/sso.amazonaws.com/", "RoleName": "AWSReservedSSO_Dev_0a1b2c3d4e5f6a7b"}


@pytest.fixture
def check(account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Problem]]:
    for name, value in account.aws.environment.items():
        monkeypatch.setenv(name, value)
    facts = {"role": account.role, "bucket": account.bucket, "region": account.aws.region}
    backend = SageMakerBackend(tmp_path)

    def problems(**resources: Any) -> list[Problem]:
        site = Site(backend="sagemaker", facts=facts)
        if not resources:
            return backend.check(site)
        return backend.check(site, plan_of(backend, job(resources=resources), facts))

    return problems


@pytest.fixture
def sso(account: Account, monkeypatch: pytest.MonkeyPatch, check: Callable[..., list[Problem]]) -> str:
    """A role with a path, and this program in a session of it."""
    iam, trust = account.aws.client("iam"), {"Version": "2012-10-17", "Statement": []}
    try:
        arn = iam.get_role(RoleName=SSO["RoleName"])["Role"]["Arn"]
    except iam.exceptions.NoSuchEntityException:
        arn = iam.create_role(**SSO, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    got = account.aws.client("sts").assume_role(RoleArn=arn, RoleSessionName="anna")["Credentials"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", got["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", got["SecretAccessKey"])
    monkeypatch.setenv("AWS_SESSION_TOKEN", got["SessionToken"])
    return str(arn)


def passing(problems: list[Problem]) -> list[Problem]:
    return [problem for problem in problems if "iam:PassRole" in problem.what]


def test_a_session_of_single_sign_on_is_asked_for_by_its_roles_whole_name(
    account: Account, sso: str, check: Callable[..., list[Problem]]
) -> None:
    assert passing(check()) == []
    account.aws.deny("iam:PassRole", principal=sso)
    (found,) = passing(check())
    assert found.fatal
    assert "may not pass role" in found.what


def test_a_right_of_somebody_whom_iam_does_not_know_is_a_note(
    account: Account, sso: str, check: Callable[..., list[Problem]]
) -> None:
    account.aws.deny("iam:GetRole", principal=DEVELOPER)  # the session is the developer's to the emulator
    (found,) = passing(check())
    assert not found.fatal
    assert "could not be checked" in found.what


def test_the_quota_of_every_machine_of_the_fallback_is_looked_at(
    account: Account, check: Callable[..., list[Problem]]
) -> None:
    wanted = {"gpu": "L4", "fallback": ["ml.g5.2xlarge", "ml.g6e.2xlarge"]}
    assert [p for p in check(**wanted) if p.kind == "quota"] == []
    account.aws.quota("ml.g6e.2xlarge for training job usage", 0)
    account.aws.quota("ml.g6e.2xlarge for spot training job usage", 0)
    (found,) = [p for p in check(**wanted) if p.kind == "quota"]
    assert "'ml.g6e.2xlarge for training job usage' is 0" in found.what
