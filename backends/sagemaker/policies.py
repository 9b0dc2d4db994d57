"""What an account must allow, least privilege: policies and the commands that make what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SERVICE = "sagemaker.amazonaws.com"
PARTITIONS = {
    "cn-": "aws-cn",
    "eu-isoe-": "aws-iso-e",
    "eusc-": "aws-eusc",
    "us-gov-": "aws-us-gov",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "us-isof-": "aws-iso-f",
}
"""Beginning of a region's name -> the second part of its ARNs."""


def advice(known: Mapping[str, str]) -> str:
    """Commands that make bucket and role, and the policies of the role and of whoever submits."""
    region = known.get("region", "us-east-1")
    bucket = known.get("bucket", "YOUR-BUCKET")
    arn = known.get("role") or f"arn:{partition(region)}:iam::YOUR-ACCOUNT:role/finelaunch-training"
    account, name = arn.split(":")[4], arn.rpartition("/")[2]
    path = arn.rpartition("/")[0].partition(":role")[2]
    named = f"--role-name {name}" + (f" --path {path}/" if path else "")
    parts = [
        ("a bucket in the jobs' region", f"aws s3 mb s3://{bucket} --region {region}"),
        ("a role that SageMaker takes on",
         f"aws iam create-role {named} --assume-role-policy-document '{trust()}'"),
        ("what the role may do",
         f"aws iam put-role-policy --role-name {name} --policy-name finelaunch --policy-document '"
         f"{_pretty(role_policy(bucket, region, account))}'"),
        ("what you may do: attach it to your user, group or permission set",
         _pretty(user_policy(bucket, region, arn))),
        ("then", f"launch setup sagemaker --region {region} --bucket {bucket} --role {arn}"),
    ]  # fmt: skip
    return "\n\n".join(f"# {title}\n{text}" for title, text in parts)


def role_policy(bucket: str, region: str, account: str) -> dict[str, Any]:
    """Least privilege of the jobs' role: its bucket, its log, its image, its secrets."""
    aws = partition(region)
    return _policy(
        (["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
         [f"arn:{aws}:s3:::{bucket}/*"]),
        (["s3:ListBucket", "s3:GetBucketLocation"], [f"arn:{aws}:s3:::{bucket}"]),
        (["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
         [f"arn:{aws}:logs:{region}:{account}:log-group:/aws/sagemaker/*"]),
        (["cloudwatch:PutMetricData", "ecr:GetAuthorizationToken"], ["*"]),
        (["ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"],
         [f"arn:{aws}:ecr:{region}:*:repository/*"]),
        (["secretsmanager:GetSecretValue"], [f"arn:{aws}:secretsmanager:{region}:{account}:secret:*"]),
    )  # fmt: skip


def user_policy(bucket: str, region: str, role: str) -> dict[str, Any]:
    """Least privilege of whoever submits jobs that run as `role`, an ARN."""
    aws, account = partition(region), role.split(":")[4]
    jobs = f"arn:{aws}:sagemaker:{region}:{account}:training-job/*"
    policy = _policy(
        (["sagemaker:CreateTrainingJob", "sagemaker:DescribeTrainingJob", "sagemaker:StopTrainingJob",
          "sagemaker:DeleteTrainingJob", "sagemaker:AddTags", "sagemaker:ListTags"], [jobs]),
        (["sagemaker:Search", "sts:GetCallerIdentity", "servicequotas:ListServiceQuotas", "iam:GetRole",
          "iam:SimulatePrincipalPolicy"], ["*"]),
        (["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
          "s3:ListMultipartUploadParts"], [f"arn:{aws}:s3:::{bucket}/finelaunch/*"]),
        (["s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetBucketLocation"], [f"arn:{aws}:s3:::{bucket}"]),
        (["logs:DescribeLogStreams", "logs:GetLogEvents"],
         [f"arn:{aws}:logs:{region}:{account}:log-group:/aws/sagemaker/TrainingJobs*"]),
        (["secretsmanager:CreateSecret", "secretsmanager:PutSecretValue", "secretsmanager:DescribeSecret",
          "secretsmanager:TagResource"], [f"arn:{aws}:secretsmanager:{region}:{account}:secret:*"]),
    )  # fmt: skip
    policy["Statement"].append(
        {
            "Effect": "Allow", "Action": "iam:PassRole", "Resource": role,
            "Condition": {"StringEquals": {"iam:PassedToService": SERVICE}},
        }
    )  # fmt: skip
    return policy


def partition(region: str) -> str:
    """`aws`, or what stands in its place in ARNs of China, GovCloud and others."""
    return next((name for start, name in PARTITIONS.items() if region.startswith(start)), "aws")


def _policy(*allowed: tuple[Sequence[str], Sequence[str]]) -> dict[str, Any]:
    statements = [{"Effect": "Allow", "Action": list(a), "Resource": list(r)} for a, r in allowed]
    return {"Version": "2012-10-17", "Statement": statements}


def trust() -> str:
    statement = {"Effect": "Allow", "Principal": {"Service": SERVICE}, "Action": "sts:AssumeRole"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _pretty(policy: Mapping[str, Any]) -> str:
    return json.dumps(policy, indent=1)
