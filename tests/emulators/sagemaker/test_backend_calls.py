"""What the SageMaker backend makes of AWS's answers: clients that are emptied, things missing, others' secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.base import JobRef, Site
from backends.sagemaker import SageMakerBackend
from backends.sagemaker.aws import Aws
from launcher.errors import BackendError, ConfigError, JobNotFoundError
from tests.emulators.sagemaker.conftest import Account


@pytest.fixture
def aws(account: Account, monkeypatch: pytest.MonkeyPatch) -> Aws:
    for name, value in account.aws.environment.items():
        monkeypatch.setenv(name, value)
    return Aws(account.aws.region)


class Emptied(dict[str, Any]):
    """As it is to a thread whose neighbour's login expires right after it has put a client here."""

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.clear()


def test_a_login_that_expires_in_another_thread_takes_no_client_away(aws: Aws) -> None:
    aws._clients = Emptied()
    assert aws.call("sts", "get_caller_identity", "asking AWS who you are")["Account"] == "123456789012"


def test_what_a_request_names_and_aws_does_not_find_is_no_missing_job(account: Account, aws: Aws) -> None:
    account.aws.set(images={"*no-such-image*": None})
    image = {"TrainingImage": "1.dkr.ecr.us-east-1.amazonaws.com/no-such-image:1", "TrainingInputMode": "File"}
    request = account.request(AlgorithmSpecification=image)
    with pytest.raises(BackendError, match="no-such-image:1 not found") as refusal:
        aws.call("sagemaker", "create_training_job", "starting it", **request)
    assert "request" in (refusal.value.hint or "")


def test_a_job_that_is_not_there_is_said_to_be_missing(account: Account, aws: Aws, tmp_path: Path) -> None:
    backend = SageMakerBackend(tmp_path)
    for act in (backend.status, backend.cancel, backend.release):
        with pytest.raises(JobNotFoundError):
            act(JobRef("sagemaker", account.aws.region, "never-was"))


def test_a_secret_of_somebody_elses_is_not_overwritten(account: Account, aws: Aws, tmp_path: Path) -> None:
    backend, client = SageMakerBackend(tmp_path), account.aws.client("secretsmanager")
    site = Site(backend="sagemaker", facts={"region": account.aws.region})

    def value(name: str) -> str:
        return str(client.get_secret_value(SecretId=name)["SecretString"])

    client.create_secret(Name="THEIRS", SecretString="their own", Tags=[{"Key": "team", "Value": "web"}])
    with pytest.raises(ConfigError, match="THEIRS that launch did not put there") as refusal:
        backend.put_secret(site, "THEIRS", "ours")
    assert "tag-resource" in (refusal.value.hint or "")
    assert value("THEIRS") == "their own"
    for wanted in ("one", "two"):
        backend.put_secret(site, "OURS", wanted)
        assert value("OURS") == wanted
    client.tag_resource(SecretId="THEIRS", Tags=[{"Key": "finelaunch:secret", "Value": "THEIRS"}])
    backend.put_secret(site, "THEIRS", "ours")
    assert value("THEIRS") == "ours"
