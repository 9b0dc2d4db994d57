"""The policies that `launch setup sagemaker --advice` prints, against what AWS documents."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from backends.sagemaker import SageMakerBackend, policies

pytest.importorskip("botocore")

ROLE = "arn:aws:iam::123456789012:role/finelaunch-training"
FACTS = {"role": ROLE, "bucket": "my-bucket", "region": "us-east-1"}
VPC = {"subnets": "subnet-0a,subnet-0b", "security_groups": "sg-0c"}
KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd"
PLAIN = {
    "cloudwatch:PutMetricData", "logs:CreateLogStream", "logs:PutLogEvents", "logs:CreateLogGroup",
    "logs:DescribeLogStreams", "s3:GetObject", "s3:PutObject", "s3:ListBucket", "ecr:GetAuthorizationToken",
    "ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage",
}  # fmt: skip
IN_A_VPC = {
    "ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission", "ec2:DescribeNetworkInterfaces", "ec2:DescribeVpcs",
    "ec2:DescribeDhcpOptions", "ec2:DescribeSubnets", "ec2:DescribeSecurityGroups",
}  # fmt: skip
WITH_A_KEY = {"kms:Decrypt", "kms:Encrypt", "kms:CreateGrant"}
"""What the page `sagemaker-roles` lists for CreateTrainingJob: always, in a private VPC, with KMS keys."""
OURS = {
    "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:GetBucketLocation", "secretsmanager:GetSecretValue",
}  # fmt: skip
"""What a job of ours needs beyond that."""
S3_WITH_A_KEY = {"kms:GenerateDataKey", "kms:DescribeKey"}
"""SSE-KMS asks it of whoever writes, which the page leaves out.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html
"""


@pytest.fixture
def backend(tmp_path: Path) -> SageMakerBackend:
    return SageMakerBackend(tmp_path)


def actions(policy: dict[str, Any]) -> set[str]:
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def statement(policy: dict[str, Any], action: str) -> dict[str, Any]:
    (found,) = (one for one in policy["Statement"] if action in one["Action"])
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("more", "documented"),
    [
        ({}, PLAIN | OURS),
        (VPC, PLAIN | OURS | IN_A_VPC),
        ({"kms_key": KEY}, PLAIN | OURS | WITH_A_KEY | S3_WITH_A_KEY),
        ({**VPC, "kms_key": KEY}, PLAIN | OURS | IN_A_VPC | WITH_A_KEY | S3_WITH_A_KEY),
    ],
)
def test_the_role_gets_what_aws_documents_for_such_jobs_and_no_more(
    more: dict[str, str], documented: set[str]
) -> None:
    assert actions(policies.role_policy({**FACTS, **more})) == documented


def test_a_right_is_for_what_a_job_touches() -> None:
    policy = policies.role_policy({**FACTS, **VPC, "kms_key": KEY})
    assert statement(policy, "s3:PutObject")["Resource"] == ["arn:aws:s3:::my-bucket/finelaunch/*"]
    assert statement(policy, "ec2:CreateNetworkInterface")["Resource"] == [
        "arn:aws:ec2:us-east-1:123456789012:network-interface/*",
        "arn:aws:ec2:us-east-1:123456789012:subnet/subnet-0a",
        "arn:aws:ec2:us-east-1:123456789012:subnet/subnet-0b",
        "arn:aws:ec2:us-east-1:123456789012:security-group/sg-0c",
    ]
    assert statement(policy, "kms:CreateGrant")["Condition"] == {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    assert statement(policy, "kms:Decrypt")["Resource"] == [KEY]
    everywhere = {a for one in policy["Statement"] if one["Resource"] == ["*"] for a in one["Action"]}
    assert everywhere == {"cloudwatch:PutMetricData", "ecr:GetAuthorizationToken"} | {
        action for action in IN_A_VPC if "Describe" in action
    }


def test_secrets_of_others_stay_closed_to_the_role_and_to_who_submits() -> None:
    role, user = policies.role_policy(FACTS), policies.user_policy(FACTS)
    tagged = {"Null": {"secretsmanager:ResourceTag/finelaunch:secret": "false"}}
    assert statement(role, "secretsmanager:GetSecretValue")["Condition"] == tagged
    assert statement(user, "secretsmanager:PutSecretValue")["Condition"] == tagged
    made = {"Null": {"aws:RequestTag/finelaunch:secret": "false"}}
    assert statement(user, "secretsmanager:CreateSecret")["Condition"] == made
    assert "secretsmanager:GetSecretValue" not in actions(user)


@pytest.mark.parametrize(
    ("key", "resource", "alias"),
    [
        (KEY, KEY, None),
        ("1234abcd", KEY, None),
        ("alias/train", "arn:aws:kms:us-east-1:123456789012:key/*", "alias/train"),
        (
            "arn:aws:kms:us-east-1:123456789012:alias/train",
            "arn:aws:kms:us-east-1:123456789012:key/*",
            "alias/train",
        ),
        (
            "arn:aws:kms:eu-west-1:999999999999:alias/theirs",
            "arn:aws:kms:eu-west-1:999999999999:key/*",
            "alias/theirs",
        ),
    ],
)
def test_a_key_is_named_as_policies_can_name_it(key: str, resource: str, alias: str | None) -> None:
    for made in (policies.role_policy, policies.user_policy):
        found = statement(made({**FACTS, "kms_key": key}), "kms:GenerateDataKey")
        assert found["Resource"] == [resource]
        condition = found.get("Condition", {}).get("ForAnyValue:StringEquals", {})
        assert condition == ({"kms:ResourceAliases": alias} if alias else {})


def test_images_come_from_aws_the_account_and_where_every_job_has_its_own_from() -> None:
    own = {"image": "210987654321.dkr.ecr.us-east-1.amazonaws.com/team/train:1"}
    assert statement(policies.role_policy({**FACTS, **own}), "ecr:BatchGetImage")["Resource"] == [
        "arn:aws:ecr:us-east-1:123456789012:repository/*",
        "arn:aws:ecr:us-east-1:763104351884:repository/pytorch",
        "arn:aws:ecr:us-east-1:210987654321:repository/team/train",
    ]


def test_the_advice_is_whole_json_and_ends_with_the_set_up(backend: SageMakerBackend) -> None:
    text = backend.advice({**FACTS, **VPC, "kms_key": KEY})
    found = [json.loads(one) for one in re.findall(r"^\{\n.*?^\}", text.replace("'{\n", "\n{\n"), re.M | re.S)]
    assert [one["Version"] for one in found] == ["2012-10-17"] * 2
    assert "aws kms get-key-policy" in text
    assert text.splitlines()[-1] == (
        f"launch setup sagemaker --role {ROLE} --bucket my-bucket --region us-east-1 "
        f"--subnets subnet-0a,subnet-0b --security-groups sg-0c --kms-key {KEY}"
    )


def test_arns_of_the_advice_are_those_of_the_regions_partition(backend: SageMakerBackend) -> None:
    assert "arn:aws:s3:::YOUR-BUCKET" in backend.advice({})
    for region, partition in (("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")):
        text = backend.advice({"region": region})
        assert f"arn:{partition}:iam::YOUR-ACCOUNT:role/finelaunch-training" in text
        assert "arn:aws:" not in text


def test_the_advice_keeps_the_path_of_a_role(backend: SageMakerBackend) -> None:
    role = "arn:aws:iam::123456789012:role/ml/jobs/training"
    text = backend.advice({"role": role})
    assert "--role-name training --path /ml/jobs/" in text
    assert f'"{role}"' in text
    assert f"--role {role}" in text


def test_every_partition_of_aws_is_known() -> None:
    from botocore.loaders import Loader

    for partition in Loader().load_data("partitions")["partitions"]:
        for region in partition["regions"]:
            if not region.startswith("aws-"):
                assert policies.partition(region) == partition["id"], region
