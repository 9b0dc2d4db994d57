"""What an account must allow, least privilege: policies and the commands that make what is missing.

The role's rights are those of https://docs.aws.amazon.com/sagemaker/latest/dg/sagemaker-roles.html
(CreateTrainingJob API: execution role permissions; in a VPC, with a KMS key), each on what a job of ours touches.
Condition keys (read 2026-11-30):
https://docs.aws.amazon.com/service-authorization/latest/reference/list_awssecretsmanager.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backends.sagemaker import images
from backends.sagemaker.places import OWN_TAGS

SERVICE = "sagemaker.amazonaws.com"
SECRET_TAG = f"{OWN_TAGS}secret"
"""Of each secret that `launch secrets put` has made, with its name; a job's role may read what has the tag."""
RESOURCE_TAG = f"secretsmanager:ResourceTag/{SECRET_TAG}"
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
IN_A_VPC = (
    ["ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface",
     "ec2:DeleteNetworkInterfacePermission"],
    ["ec2:DescribeNetworkInterfaces", "ec2:DescribeVpcs", "ec2:DescribeDhcpOptions", "ec2:DescribeSubnets",
     "ec2:DescribeSecurityGroups"],
)  # fmt: skip
"""What may be allowed for some subnets, and what for all only."""
Statement = dict[str, Any]


def advice(known: Mapping[str, str]) -> str:
    """Commands that make bucket and role, and the policies of the role and of whoever submits."""
    region = known.get("region", "us-east-1")
    bucket = known.get("bucket", "YOUR-BUCKET")
    arn = known.get("role") or f"arn:{partition(region)}:iam::YOUR-ACCOUNT:role/finelaunch-training"
    facts = {**known, "region": region, "bucket": bucket, "role": arn}
    name = arn.rpartition("/")[2]
    path = arn.rpartition("/")[0].partition(":role")[2]
    named = f"--role-name {name}" + (f" --path {path}/" if path else "")
    options = " ".join(f"--{fact.replace('_', '-')} {value}" for fact, value in facts.items())
    parts = [
        ("a bucket in the jobs' region", f"aws s3 mb s3://{bucket} --region {region}"),
        ("a role that SageMaker takes on",
         f"aws iam create-role {named} --assume-role-policy-document '{trust()}'"),
        ("what the role may do",
         f"aws iam put-role-policy --role-name {name} --policy-name finelaunch --policy-document '"
         f"{_pretty(role_policy(facts))}'"),
        ("what you may do: attach it to your user, group or permission set", _pretty(user_policy(facts))),
        *_notes(facts),
        ("then", f"launch setup sagemaker {options}"),
    ]  # fmt: skip
    return "\n\n".join(f"# {title}\n{text}" for title, text in parts)


def _notes(facts: Mapping[str, str]) -> list[tuple[str, str]]:
    """What no policy of these can give."""
    region = facts["region"]
    notes = [
        ("the role reads secrets that `launch secrets put` has made; to let it read another one, tag that",
         tag_command("NAME", region)),
        ("data or a model in another bucket: the role needs s3:GetObject on it and s3:ListBucket on the bucket",
         "# data.train: s3://OTHER-BUCKET/..."),
    ]  # fmt: skip
    if facts.get("kms_key"):
        notes.append(
            ("the key's own policy must let both use it, unless it leaves that to IAM, as AWS's default one does",
             f"aws kms get-key-policy --policy-name default --region {region} --key-id {facts['kms_key']}")
        )  # fmt: skip
    return notes


def tag_command(secret: str, region: str) -> str:
    """What lets the jobs' role read a secret that launch has not made; launch still does not replace its value."""
    tag = f"Key={SECRET_TAG},Value=read"
    return f"aws secretsmanager tag-resource --secret-id {secret} --tags {tag} --region {region}"


def role_policy(facts: Mapping[str, str]) -> dict[str, Any]:
    """Least privilege of the jobs' role: its bucket, its log, its image, its secrets, its key and network."""
    region, bucket = facts["region"], facts["bucket"]
    aws, account = partition(region), facts["role"].split(":")[4]
    statements = [
        _allow(["s3:GetObject"], f"arn:{aws}:s3:::{bucket}/*"),
        _allow(["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
               f"arn:{aws}:s3:::{bucket}/finelaunch/*"),
        _allow(["s3:ListBucket", "s3:GetBucketLocation"], f"arn:{aws}:s3:::{bucket}"),
        _allow(["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
               f"arn:{aws}:logs:{region}:{account}:log-group:/aws/sagemaker/*"),
        _allow(["cloudwatch:PutMetricData", "ecr:GetAuthorizationToken"], "*"),
        _allow(["ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"],
               *_repositories(facts)),
        _allow(["secretsmanager:GetSecretValue"], f"arn:{aws}:secretsmanager:{region}:{account}:secret:*",
               Null={RESOURCE_TAG: "false"}),
        *_of_network(facts),
    ]  # fmt: skip
    if facts.get("kms_key"):
        statements += [
            _with_key(facts, ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey", "kms:DescribeKey"]),
            # For a volume (ResourceConfig.VolumeKmsKeyId), which the service itself attaches.
            _with_key(facts, ["kms:CreateGrant"], Bool={"kms:GrantIsForAWSResource": "true"}),
        ]
    return _policy(statements)


def user_policy(facts: Mapping[str, str]) -> dict[str, Any]:
    """Least privilege of whoever submits jobs: every call that launch makes, and no other."""
    region, bucket, role = facts["region"], facts["bucket"], facts["role"]
    aws, account = partition(region), role.split(":")[4]
    secrets = f"arn:{aws}:secretsmanager:{region}:{account}:secret:*"
    statements = [
        _allow(["sagemaker:CreateTrainingJob", "sagemaker:DescribeTrainingJob", "sagemaker:StopTrainingJob",
                "sagemaker:DeleteTrainingJob", "sagemaker:AddTags", "sagemaker:ListTags"],
               f"arn:{aws}:sagemaker:{region}:{account}:training-job/*"),
        _allow(["sagemaker:Search", "sts:GetCallerIdentity", "servicequotas:ListServiceQuotas", "iam:GetRole",
                "iam:SimulatePrincipalPolicy"], "*"),
        _allow(["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
                "s3:ListMultipartUploadParts"], f"arn:{aws}:s3:::{bucket}/finelaunch/*"),
        _allow(["s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetBucketLocation"],
               f"arn:{aws}:s3:::{bucket}"),
        _allow(["ecr:BatchGetImage"], *_repositories(facts)),
        _allow(["logs:DescribeLogStreams", "logs:GetLogEvents"],
               f"arn:{aws}:logs:{region}:{account}:log-group:/aws/sagemaker/TrainingJobs*"),
        _allow(["secretsmanager:DescribeSecret"], secrets),
        _allow(["secretsmanager:PutSecretValue"], secrets, Null={RESOURCE_TAG: "false"}),
        # With its tag: a secret that is not there yet has none, so TagResource can't ask for one.
        _allow(["secretsmanager:CreateSecret", "secretsmanager:TagResource"], secrets,
               Null={f"aws:RequestTag/{SECRET_TAG}": "false"}),
        _allow(["iam:PassRole"], role, StringEquals={"iam:PassedToService": SERVICE}),
    ]  # fmt: skip
    if facts.get("kms_key"):
        statements.append(_with_key(facts, ["kms:Decrypt", "kms:GenerateDataKey"]))
    return _policy(statements)


def _of_network(facts: Mapping[str, str]) -> list[Statement]:
    """In a VPC the role itself connects the machines to the subnets."""
    names = [name for fact in ("subnets", "security_groups") for name in facts.get(fact, "").split(",") if name]
    if not names:
        return []
    start = f"arn:{partition(facts['region'])}:ec2:{facts['region']}:{facts['role'].split(':')[4]}"
    kinds = {"subnet": "subnet", "sg": "security-group"}
    there = [f"{start}:{kinds[name.partition('-')[0]]}/{name}" for name in names]
    some, all_or_none = IN_A_VPC
    return [_allow(some, f"{start}:network-interface/*", *there), _allow(all_or_none, "*")]


def _with_key(facts: Mapping[str, str], actions: Sequence[str], **conditions: Mapping[str, str]) -> Statement:
    """On the key: its ARN, made of its id, or every key with its alias (that is no resource of a policy)."""
    key, region = facts["kms_key"], facts["region"]
    start = f"arn:{partition(region)}:kms:{region}:{facts['role'].split(':')[4]}:key"
    if key.startswith("arn:"):  # it may be another account's
        start = ":".join([*key.split(":")[:5], "key"])
    if (alias := key.rpartition(":")[2]).startswith("alias/"):
        by_alias = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}}
        return _allow(actions, f"{start}/*", **by_alias, **conditions)
    return _allow(actions, key if key.startswith("arn:") else f"{start}/{key}", **conditions)


def _repositories(facts: Mapping[str, str]) -> list[str]:
    """AWS's own image, those of the account, and the one that every job has."""
    region, account = facts["region"], facts["role"].split(":")[4]
    start = f"arn:{partition(region)}:ecr"
    found = [f"{start}:{region}:{account}:repository/*"]
    if region in images.ACCOUNTS:
        name = images.IMAGE.ref.partition("/")[2].partition(":")[0]
        found.append(f"{start}:{region}:{images.ACCOUNTS[region]}:repository/{name}")
    if own := images.PARTS.match(facts.get("image", "")):
        found.append(f"{start}:{own['region']}:{own['account']}:repository/{own['name']}")
    return found


def partition(region: str) -> str:
    """`aws`, or what stands in its place in ARNs of China, GovCloud and others."""
    return next((name for start, name in PARTITIONS.items() if region.startswith(start)), "aws")


def _allow(actions: Sequence[str], *resources: str, **conditions: Mapping[str, str]) -> Statement:
    found: Statement = {"Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
    return {**found, "Condition": conditions} if conditions else found


def _policy(statements: Sequence[Statement]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def trust() -> str:
    statement = {"Effect": "Allow", "Principal": {"Service": SERVICE}, "Action": "sts:AssumeRole"}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def _pretty(policy: Mapping[str, Any]) -> str:
    """JSON with a line for each part of a statement."""
    parts = (",\n   ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in s.items()) for s in policy["Statement"])
    statements = ",\n".join(f"  {{{part}}}" for part in parts)
    return f'{{\n "Version": {json.dumps(policy["Version"])},\n "Statement": [\n{statements}\n ]\n}}'
