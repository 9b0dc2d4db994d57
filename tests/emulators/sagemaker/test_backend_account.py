"""What the SageMaker backend says of an account before anything is sent, on emulated IAM and Service Quotas."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.base import Problem, Site
from backends.sagemaker import SageMakerBackend
from launcher.errors import BackendError, CredentialsError
from tests.emulators.sagemaker.conftest import Account
from tests.emulators.sagemaker.wire import CREDENTIALS
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


ME = "arn:aws:iam::123456789012:user/developer"


def test_who_is_signed_in_and_by_which_credential_is_said_without_a_secret(
    account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: Callable[..., list[Problem]]
) -> None:
    backend, site = SageMakerBackend(tmp_path), Site(backend="sagemaker", facts={"region": account.aws.region})
    assert backend.signed_in(site) == f"{ME} (by AWS_ACCESS_KEY_ID in the environment)"
    env = account.aws.environment
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    keys = f"aws_access_key_id={env['AWS_ACCESS_KEY_ID']}\naws_secret_access_key={env['AWS_SECRET_ACCESS_KEY']}\n"
    (tmp_path / "credentials").write_text(f"[work]\n{keys}")
    (tmp_path / "config").write_text(
        f"[profile script]\ncredential_process = {sys.executable} {tmp_path / 'keys.py'}\n"
    )
    said = {"Version": 1, "AccessKeyId": env["AWS_ACCESS_KEY_ID"], "SecretAccessKey": env["AWS_SECRET_ACCESS_KEY"]}
    (tmp_path / "keys.py").write_text(f"print({json.dumps(json.dumps(said))})")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert backend.signed_in(site) == f"{ME} (by the credentials file, profile work)"
    monkeypatch.setenv("AWS_PROFILE", "script")
    found = SageMakerBackend(tmp_path).signed_in(site)
    assert found == f"{ME} (by the profile's credential_process, profile script)"
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(CredentialsError, match="credentials") as refused:
        SageMakerBackend(tmp_path).signed_in(site)
    assert "aws sso login" in str(refused.value.hint)


def test_the_containers_role_is_told_from_a_login(
    account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: Callable[..., list[Problem]]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    url = f"{account.aws.endpoint}{CREDENTIALS}{account.aws.key}"
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
    site = Site(backend="sagemaker", facts={"region": account.aws.region})
    assert "(by the role of this container)" in SageMakerBackend(tmp_path).signed_in(site)


def test_a_secret_that_the_role_may_read_for_its_tag_is_no_problem(
    account: Account, check: Callable[..., list[Problem]], tmp_path: Path
) -> None:
    client = account.aws.client("secretsmanager")
    client.create_secret(Name="TAGGED", SecretString="x", Tags=[{"Key": "finelaunch:secret", "Value": "TAGGED"}])
    client.create_secret(Name="PLAIN", SecretString="x")
    account.aws.deny("secretsmanager:GetSecretValue?finelaunch:secret", principal=account.role)
    facts = {"role": account.role, "bucket": account.bucket, "region": account.aws.region}
    backend = SageMakerBackend(tmp_path)
    plan = plan_of(backend, job(secrets=["TAGGED", "PLAIN"]), facts)
    (found,) = [p for p in backend.check(Site(backend="sagemaker", facts=facts), plan) if "read" in p.what]
    assert "the secret PLAIN" in found.what
    assert "tag-resource --secret-id PLAIN --tags Key=finelaunch:secret,Value=read" in found.fix


def test_what_may_be_listed_is_found_though_the_rest_may_not(
    account: Account, check: Callable[..., list[Problem]], tmp_path: Path
) -> None:
    backend, known = SageMakerBackend(tmp_path), {"region": account.aws.region}
    account.aws.deny("iam:ListRoles")
    found = backend.find_facts(known)
    assert found["region"] == [account.aws.region]
    assert account.bucket in found["bucket"]
    assert "role" not in found
    account.aws.deny("s3:ListAllMyBuckets")
    with pytest.raises(BackendError, match="ListRoles"):
        backend.find_facts(known)


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
