"""What SageMaker refuses and moto would take, quotas, and policies."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.emulators.sagemaker.conftest import Account, channel


def refusal(account: Account, **changed: Any) -> tuple[str, str]:
    """(code, message) of a request that must not become a job."""
    # What the client would refuse by itself must reach the service.
    client = account.aws.client("sagemaker", parameter_validation=False, retries={"total_max_attempts": 1})
    request = account.request(hyper={"steps": 1}, **changed)
    with pytest.raises(ClientError) as refused:
        client.create_training_job(**request)
    with pytest.raises(ClientError):
        client.describe_training_job(TrainingJobName=request["TrainingJobName"])
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"TrainingJobName": "no_underscore"}, "at 'trainingJobName' failed to satisfy constraint"),
        ({"TrainingJobName": "n" * 64}, "have length less than or equal to 63"),
        (
            {"ResourceConfig": {"InstanceType": "ml.nope.xlarge", "InstanceCount": 1}},
            "'ml.nope.xlarge' at 'resourceConfig.instanceType' failed to satisfy constraint: Member must satisfy",
        ),
        ({"RoleArn": "my-role"}, "2 validation errors detected: Value 'my-role' at 'roleArn'"),
        ({"HyperParameters": {f"k{n}": "v" for n in range(101)}}, "have length less than or equal to 100"),
        ({"HyperParameters": {"k": "v" * 2501}}, "have length less than or equal to 2500"),
        ({"Environment": {"K": "v" * 513}}, "have length less than or equal to 512"),
        ({"OutputDataConfig": {}}, "Value null at 'outputDataConfig.s3OutputPath'"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0}}, "have value greater than or equal to 1"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 29 * 86400}}, "MaxRuntimeInSeconds must be less than"),
        ({"EnableManagedSpotTraining": True}, "Invalid MaxWaitTimeInSeconds. It must be present and be greater"),
        (
            {
                "EnableManagedSpotTraining": True,
                "StoppingCondition": {"MaxRuntimeInSeconds": 100, "MaxWaitTimeInSeconds": 99},
            },
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater",
        ),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 100, "MaxWaitTimeInSeconds": 100}},
            "It is only supported when EnableManagedSpotTraining is set to true",
        ),
        ({"RoleArn": "arn:aws:iam::123456789012:role/nobody"}, "Could not assume role"),
        ({"InputDataConfig": [channel("x", "s3://no-such-bucket-1/a")]}, "The specified bucket does not exist"),
        ({"OutputDataConfig": {"S3OutputPath": "s3://no-such-bucket-1/a"}}, "does not exist or is not in region"),
        ({"CheckpointConfig": {"S3Uri": "s3://no-such-bucket-1/a"}}, "does not exist or is not in region"),
        ({"AlgorithmSpecification": {"TrainingInputMode": "Pipe", "TrainingImage": "x"}}, "not emulated: Pipe"),
    ],
)
def test_an_impossible_request_is_refused(account: Account, changed: dict[str, Any], message: str) -> None:
    code, said = refusal(account, **changed)
    assert code == "ValidationException"
    assert message in said


def test_a_name_is_used_once(account: Account) -> None:
    client = account.aws.client("sagemaker")
    request = account.request(hyper={"steps": 1})
    client.create_training_job(**request)
    for _ in range(2):  # while it runs, and afterwards
        with pytest.raises(ClientError, match="a training job with this name already exists") as refused:
            client.create_training_job(**request)
        assert refused.value.response["Error"]["Code"] == "ResourceInUse"
        account.aws.wait(request["TrainingJobName"])


def test_an_empty_channel_is_refused_with_where_it_was_looked_for(account: Account) -> None:
    code, said = refusal(account, InputDataConfig=[channel("rows", f"s3://{account.bucket}/nothing")])
    assert code == "ValidationException"
    assert said.startswith(f'No S3 objects found under S3 URL "s3://{account.bucket}/nothing"')
    assert f'the role "{account.role}" has "s3:ListBucket" permissions' in said


def test_a_bucket_of_another_region_is_not_there(account: Account) -> None:
    other = account.aws.bucket(region="eu-west-1")
    account.aws.client("s3", "eu-west-1").put_object(Bucket=other, Key="rows/a", Body=b"x")
    _, said = refusal(account, InputDataConfig=[channel("rows", f"s3://{other}/rows")])
    assert "exists in the selected region (us-east-1)" in said


def test_a_role_must_trust_sagemaker(account: Account) -> None:
    untrusting = account.aws.role("not-for-sagemaker", trusted=False)
    assert "allows principal 'sagemaker.amazonaws.com'" in refusal(account, RoleArn=untrusting)[1]


def test_an_image_that_is_not_there_is_refused(account: Account) -> None:
    account.aws.set(images={"*no-such-image*": None})
    image = {"TrainingImage": "1.dkr.ecr.us-east-1.amazonaws.com/no-such-image:1", "TrainingInputMode": "File"}
    assert "not found" in refusal(account, AlgorithmSpecification=image)[1]


def test_regions_have_their_own_jobs(account: Account) -> None:
    account.aws.wait(job := account.start(hyper={"steps": 1}))
    with pytest.raises(ClientError, match="Requested resource not found"):
        account.aws.client("sagemaker", "eu-west-1").describe_training_job(TrainingJobName=job)


def test_a_quota_counts_what_runs_and_is_known_by_its_name(account: Account) -> None:
    name, kind = "ml.g6.xlarge for training job usage", {"InstanceType": "ml.g6.xlarge", "InstanceCount": 1}
    account.aws.quota(name, 1)
    client = account.aws.client("service-quotas")
    pages = list(client.get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker"))
    assert len(pages) > 1
    found = {quota["QuotaName"]: quota for page in pages for quota in page["Quotas"]}
    assert found[name]["Value"] == 1
    assert found["ml.g6.xlarge for spot training job usage"]["Value"] == 20
    code = found[name]["QuotaCode"]
    assert client.get_service_quota(ServiceCode="sagemaker", QuotaCode=code)["Quota"]["QuotaName"] == name
    running = account.start(hyper={"steps": 2000}, ResourceConfig=kind)
    account.aws.wait_for_line(running, "step 1")
    code, said = refusal(account, ResourceConfig=kind)
    assert code == "ResourceLimitExceeded"
    assert f"The account-level service limit '{name}' is 1 Instances, with current utilization of 1" in said
    account.aws.client("sagemaker").stop_training_job(TrainingJobName=running)
    account.aws.wait(running)
    account.aws.wait(account.start(hyper={"steps": 1}, ResourceConfig=kind))


def test_what_is_denied_is_denied_in_deed_and_in_simulation(account: Account) -> None:
    who = account.aws.client("sts").get_caller_identity()["Arn"]
    assert who == "arn:aws:iam::123456789012:user/developer"
    iam = account.aws.client("iam")

    def decisions(arn: str, *actions: str) -> list[str]:
        told = iam.simulate_principal_policy(PolicySourceArn=arn, ActionNames=actions, ResourceArns=[account.role])
        return [result["EvalDecision"] for result in told["EvaluationResults"]]

    assert decisions(who, "iam:PassRole", "sagemaker:CreateTrainingJob") == ["allowed", "allowed"]
    account.aws.deny("iam:PassRole")
    assert decisions(who, "iam:PassRole", "sagemaker:CreateTrainingJob") == ["implicitDeny", "allowed"]
    assert decisions(account.role, "iam:PassRole") == ["allowed"]
    code, said = refusal(account)
    assert code == "AccessDeniedException"
    assert "not authorized to perform: iam:PassRole" in said
    account.aws.deny("s3:PutObject")
    with pytest.raises(ClientError, match="AccessDenied"):
        account.put("denied", "x")
    for unknown in ("arn:aws:iam::123456789012:role/nobody", "arn:aws:sts::123456789012:assumed-role/a/b"):
        with pytest.raises(ClientError):
            decisions(unknown, "iam:PassRole")


def test_secrets_are_kept_by_moto(account: Account) -> None:
    client = account.aws.client("secretsmanager")
    client.create_secret(Name="hub-token", SecretString="one")
    client.put_secret_value(SecretId="hub-token", SecretString="two")
    assert client.get_secret_value(SecretId="hub-token")["SecretString"] == "two"
