"""What an account must have for a job: looked at before anything is sent, found for `launch setup`, or advised."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from backends.base import Plan, Problem, Site
from backends.sagemaker.aws import LOGIN, Aws
from backends.sagemaker.images import PARTS
from backends.sagemaker.machines import types_of
from backends.sagemaker.policies import SERVICE, tag_command, trust
from launcher.errors import BackendError, CredentialsError, JobNotFoundError, LaunchError, UnreachableError

QUOTA_PAGE = "https://{region}.console.aws.amazon.com/servicequotas/home/services/sagemaker/quotas/{code}"
CHAIN = "the environment, AWS_PROFILE or the default profile, SSO, this machine's own role"


class Account:
    """One account in one region, read-only."""

    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._unsure: list[Problem] = []

    def problems(self, site: Site, plan: Plan | None) -> list[Problem]:
        """What would stop the job, each with the command that mends it; what can't be seen is a note."""
        try:
            caller = self._aws.call("sts", "get_caller_identity", "asking AWS who you are")
        except CredentialsError as exc:
            profile = os.environ.get("AWS_PROFILE")
            tried = f"{CHAIN}{f' (AWS_PROFILE={profile})' if profile else ''}"
            return [Problem(what=f"{exc.message}; tried: {tried}", fix=LOGIN, kind="credentials")]
        except UnreachableError as exc:
            return [Problem(what=exc.message, fix=exc.hint or "see the network", kind="unreachable")]
        found: list[Problem] = []
        if role := site.get("role"):
            found += self._of_role(role, caller["Arn"])
        if bucket := site.get("bucket"):
            found += self._of_bucket(bucket)
        if plan is not None:
            found += [*self._of_quota(plan), *self._of_image(plan), *self._of_secrets(plan, site)]
        return [*found, *self._unsure]

    def signed_in(self) -> str:
        """Who, and which credential of the chain answered. Raises CredentialsError."""
        caller = self._aws.call("sts", "get_caller_identity", "asking AWS who you are", expects="Arn")
        return f"{caller['Arn']} (by {self._aws.provider()})"

    def facts(self) -> dict[str, list[str]]:
        """Roles that SageMaker may take on, and buckets of this region; what sounds like training comes first.

        Where one may not be listed, what there is of the other; raises what AWS says where neither may be.
        """
        self._aws.call("sts", "get_caller_identity", "asking AWS who you are")
        found: dict[str, list[str]] = {"region": [self._aws.region]}
        refused: list[LaunchError] = []
        for fact, look in (("role", self._roles), ("bucket", self._buckets)):
            try:
                found[fact] = look()
            except UnreachableError:
                raise
            except BackendError as exc:
                refused.append(exc)
        if len(found) == 1:
            raise refused[0]
        return found

    def _roles(self) -> list[str]:
        roles = [
            role["Arn"]
            for page in self._aws.pages("iam", "list_roles", "listing roles")
            for role in page["Roles"]
            if _trusts(role.get("AssumeRolePolicyDocument"))
        ]
        return sorted(roles, key=lambda arn: (not re.search("finelaunch|train", arn, re.I), arn))

    def _buckets(self) -> list[str]:
        names = [b["Name"] for b in self._aws.call("s3", "list_buckets", "listing buckets").get("Buckets", ())]
        likely = sorted(names, key=lambda name: (not re.search("finelaunch|sagemaker|train", name), name))
        return [name for name in likely[:20] if self._region_of(name) == self._aws.region]

    def _of_role(self, arn: str, caller: str) -> Iterator[Problem]:
        name = arn.rpartition("/")[2]
        advice = "launch setup sagemaker --advice prints the commands that make it"
        role = self._look(f"role {arn}", "iam", "get_role", RoleName=name)
        if role is None:
            yield from self._missing(f"there is no role {arn}", advice)
            return
        if role and not _trusts(role["Role"].get("AssumeRolePolicyDocument")):
            yield Problem(
                what=f"role {name} can't be taken on by SageMaker: its trust policy does not name {SERVICE}",
                fix=f"aws iam update-assume-role-policy --role-name {name} --policy-document '{trust()}'",
            )
        if not self._may(self._principal(caller), "iam:PassRole", arn, {"iam:PassedToService": SERVICE}):
            yield Problem(
                what=f"you ({caller}) may not pass role {name} to SageMaker (iam:PassRole)",
                fix="launch setup sagemaker --advice prints the policy; whoever manages the account attaches it",
            )

    def _of_bucket(self, bucket: str) -> Iterator[Problem]:
        region = self._aws.region
        make = f"aws s3 mb s3://{bucket} --region {region}"
        found = self._look(f"bucket {bucket}", "s3", "head_bucket", Bucket=bucket)
        if found is None:
            yield from self._missing(f"there is no bucket {bucket}", make)
            return
        lies = found.get("BucketRegion") if found else None
        if lies and lies != region:
            yield Problem(
                what=f"bucket {bucket} is in {lies}, and the jobs run in {region}",
                fix=f"launch setup sagemaker --region {lies}, or make one there: "
                f"aws s3 mb s3://NAME --region {region}",
            )

    def _of_quota(self, plan: Plan) -> Iterator[Problem]:
        """Of every machine that the job may get: SageMaker counts them all."""
        wanted, region = plan.job.resources, self._aws.region
        kind = "spot training job usage" if wanted.spot else "training job usage"
        names = [f"{name} for {kind}" for name in types_of(plan.request["ResourceConfig"])]
        try:
            pages = self._aws.pages(
                "service-quotas", "list_service_quotas", "reading quotas", ServiceCode="sagemaker"
            )
            quotas = {q["QuotaName"]: q for page in pages for q in page["Quotas"] if q["QuotaName"] in names}
        except (BackendError, JobNotFoundError) as exc:
            self._unsure.append(_unseen(f"the quota {names[0]!r}", exc))
            return
        for name, quota in sorted(quotas.items(), key=lambda found: names.index(found[0])):
            if quota["Value"] >= wanted.nodes:
                continue
            code = quota["QuotaCode"]
            yield Problem(
                what=f"the quota {name!r} is {quota['Value']:g} in {region}, and the job needs {wanted.nodes}",
                fix="aws service-quotas request-service-quota-increase --service-code sagemaker "
                f"--quota-code {code} --desired-value {wanted.nodes} --region {region}   "
                f"({QUOTA_PAGE.format(region=region, code=code)})",
                kind="quota",
            )

    def _of_image(self, plan: Plan) -> Iterator[Problem]:
        image = plan.request["AlgorithmSpecification"].get("TrainingImage", "")
        match = PARTS.fullmatch(image)
        if match is None:
            return
        if match["region"] != self._aws.region:
            yield Problem(
                what=f"image {image} is in {match['region']}, and SageMaker pulls from the job's region only "
                f"({self._aws.region})",
                fix="copy it to a registry there, or let launch choose: --set resources.image=null",
            )
            return
        which = {"imageDigest": match["digest"]} if match["digest"] else {"imageTag": match["tag"] or "latest"}
        found = self._look(
            f"image {image}", "ecr", "batch_get_image",
            registryId=match["account"], repositoryName=match["name"], imageIds=[which],
        )  # fmt: skip
        if found is None or (found and found.get("failures") and not found.get("images")):
            yield Problem(what=f"there is no image {image}", fix="push it, or --set resources.image=null")

    def _of_secrets(self, plan: Plan, site: Site) -> Iterator[Problem]:
        for name in plan.job.secrets:
            secret = self._look(f"secret {name}", "secretsmanager", "describe_secret", SecretId=name)
            if secret is None:
                yield Problem(
                    what=f"there is no secret {name} in Secrets Manager in {self._aws.region}",
                    fix=f"launch secrets put {name} --backend sagemaker",
                    kind="credentials",
                )
                continue
            # The simulator does not know a secret's tags: a policy that asks for one denies without.
            keys = ("aws:ResourceTag", "secretsmanager:ResourceTag")
            tags = {f"{key}/{t['Key']}": t["Value"] for key in keys for t in secret.get("Tags") or ()}
            if secret and not self._may(site.need("role"), "secretsmanager:GetSecretValue", secret["ARN"], tags):
                yield Problem(
                    what=f"role {site.need('role')} may not read the secret {name}",
                    fix=f"{tag_command(name, self._aws.region)}   (where the role has the policy that "
                    "launch setup sagemaker --advice prints)",
                    kind="credentials",
                )

    def _look(self, what: str, service: str, operation: str, **arguments: Any) -> dict[str, Any] | None:
        """AWS's answer, None when there is no such thing, and an empty one when it may not be seen."""
        try:
            return self._aws.call(service, operation, f"looking at {what}", **arguments)
        except JobNotFoundError:
            return None
        except BackendError as exc:
            self._unsure.append(_unseen(what, exc))
            return {}

    def _missing(self, what: str, fix: str) -> Iterator[Problem]:
        yield Problem(what=what, fix=fix)

    def _may(self, principal: str, action: str, resource: str, context: Mapping[str, str]) -> bool:
        """Does IAM's simulator allow it? True also where the simulator may not be asked: then it is noted."""
        entries = [
            {"ContextKeyName": k, "ContextKeyValues": [v], "ContextKeyType": "string"} for k, v in context.items()
        ]
        answer = self._look(
            f"the right {action}", "iam", "simulate_principal_policy",
            PolicySourceArn=principal, ActionNames=[action], ResourceArns=[resource], ContextEntries=entries,
        )  # fmt: skip
        if answer is None:
            unknown = f"the right {action} could not be checked: IAM does not know {principal}"
            fix = "sign in as a user or role of this account, or see that it has the right"
            self._unsure.append(Problem(what=unknown, fix=fix, fatal=False))
            return True
        results = answer.get("EvaluationResults") or ()
        return all(result["EvalDecision"] == "allowed" for result in results)

    def _principal(self, caller: str) -> str:
        """The role behind a session (arn:aws:sts::1:assumed-role/NAME/SESSION), else the caller itself."""
        match = re.fullmatch(r"(arn:[^:]+):sts::(\d+):assumed-role/([^/]+)/.+", caller)
        if match is None:
            return caller
        try:
            # A session does not tell its role's path, which those of single sign-on have.
            role = self._aws.call("iam", "get_role", "looking at your own role", RoleName=match[3])
        except (BackendError, JobNotFoundError):
            return f"{match[1]}:iam::{match[2]}:role/{match[3]}"
        return str(role["Role"]["Arn"])

    def _region_of(self, bucket: str) -> str | None:
        try:
            found = self._aws.call("s3", "head_bucket", f"looking at bucket {bucket}", Bucket=bucket)
        except LaunchError:
            return None
        return found.get("BucketRegion") or self._aws.region


def _trusts(document: Any) -> bool:
    """Does a role's trust policy name SageMaker?"""
    found = json.loads(document) if isinstance(document, str) else document or {}
    services = [s.get("Principal", {}).get("Service", ()) for s in found.get("Statement", ()) if _allows(s)]
    return any(SERVICE in ([service] if isinstance(service, str) else service) for service in services)


def _allows(statement: Mapping[str, Any]) -> bool:
    return statement.get("Effect") == "Allow" and isinstance(statement.get("Principal"), Mapping)


def _unseen(what: str, exc: LaunchError) -> Problem:
    hint = exc.hint or "ask whoever manages the account"
    return Problem(what=f"{what} could not be checked: {exc.message}", fix=hint, fatal=False)
