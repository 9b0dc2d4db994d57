"""What the entrypoint makes of Secrets Manager's answers, on emulated AWS."""

from __future__ import annotations

import pytest

from tests.emulators.sagemaker.conftest import Account
from train_entry import secrets
from train_entry.failure import JobError
from train_entry.secrets import resolve

REF = {"HF_TOKEN": "aws-sm://us-east-1/HF_TOKEN"}


@pytest.fixture
def kept(account: Account, monkeypatch: pytest.MonkeyPatch) -> Account:
    """An account with the secret in it; this process has the developer's credentials, as a job has its role's."""
    for name, value in account.aws.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(secrets, "WAITS_S", (0.01, 0.01, 0.01))
    client = account.aws.client("secretsmanager")
    if "HF_TOKEN" not in [found["Name"] for found in client.list_secrets()["SecretList"]]:
        client.create_secret(Name="HF_TOKEN", SecretString="planted")
    return account


def refusal() -> JobError:
    with pytest.raises(JobError) as refused:
        resolve(REF)
    assert "HF_TOKEN" in refused.value.message
    return refused.value


@pytest.mark.parametrize("kind", ["throttle", "error", "unavailable", "drop", "cut"])
def test_a_busy_store_is_asked_again(kept: Account, kind: str) -> None:
    kept.aws.fault(kind, "GetSecretValue", times=3)
    assert resolve(REF) == {"HF_TOKEN": "planted"}


@pytest.mark.parametrize(
    ("kind", "said", "hint"),
    [
        ("throttle", "throttles its calls (ThrottlingException)", "launch resume"),
        ("error", "is broken for now (InternalFailure)", "launch resume"),
        ("drop", "could not be reached", "NAT"),
    ],
)
def test_what_may_pass_is_told_as_what_it_is_and_tried_by_the_next_start(
    kept: Account, kind: str, said: str, hint: str
) -> None:
    kept.aws.fault(kind, "GetSecretValue", times=99)
    error = refusal()
    assert said in error.message
    assert hint in str(error.hint)
    assert error.retry


def test_a_missing_right_a_missing_secret_and_one_to_be_deleted_are_told_apart(kept: Account) -> None:
    client = kept.aws.client("secretsmanager")
    kept.aws.deny("secretsmanager:GetSecretValue")
    denied = refusal()
    assert "AccessDenied" in denied.message
    assert "secretsmanager:GetSecretValue" in str(denied.hint)
    kept.aws.clear()
    client.delete_secret(SecretId="HF_TOKEN")
    leaving = refusal()
    assert "marked for deletion" in leaving.message
    assert "restore-secret" in str(leaving.hint)
    client.restore_secret(SecretId="HF_TOKEN")
    client.delete_secret(SecretId="HF_TOKEN", ForceDeleteWithoutRecovery=True)
    missing = refusal()
    assert "there is none of that name" in missing.message
    assert not (denied.retry or leaving.retry or missing.retry)


def test_a_login_that_is_no_longer_good_is_no_missing_right(kept: Account) -> None:
    kept.aws.expire()
    error = refusal()
    kept.aws.login()
    assert "does not accept this container's credentials" in error.message
