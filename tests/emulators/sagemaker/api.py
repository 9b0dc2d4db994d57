"""The operations that moto lacks or answers too kindly, put into its own service classes.

moto dispatches by method name: a method that is added or replaced is all it takes. Jobs are kept where moto
keeps them, so that its AddTags and ListTags work on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from moto.core.responses import ActionResult
from moto.iam.models import iam_backends
from moto.iam.responses import IamResponse
from moto.logs.responses import LogsResponse
from moto.s3.responses import S3Response
from moto.sagemaker.responses import SageMakerResponse
from moto.servicequotas.responses import ServiceQuotasResponse

from tests.emulators.sagemaker import quotas, rules, uploads
from tests.emulators.sagemaker.job import TrainingJob
from tests.emulators.sagemaker.life import Life
from tests.emulators.sagemaker.storage import Storage
from tests.emulators.sagemaker.world import ACCOUNT, World

PAGE = 10
"""What ListTrainingJobs and Search answer where no MaxResults is given."""
NOT_FOUND = "Requested resource not found."
Method = Callable[[Any], Any]


def install(world: World) -> None:
    """Make moto's classes this emulator's."""
    for cls, methods in (
        (SageMakerResponse, _training(world)),
        (IamResponse, {"simulate_principal_policy": _simulate(world)}),
        (S3Response, uploads.methods()),
        (LogsResponse, {"get_log_events": _log_events(world)}),
        (ServiceQuotasResponse, quotas.methods(world)),
    ):
        for name, method in methods.items():
            setattr(cls, name, method)


def _training(world: World) -> dict[str, Method]:
    search_all = SageMakerResponse.search

    def create_training_job(self: Any) -> ActionResult:
        request = json.loads(self.body)
        jobs = self.sagemaker_backend.training_jobs
        storage = Storage(self.current_account, self.region)
        rules.check_shape(request)
        rules.check_fields(request)
        rules.check_role(world, request["RoleArn"])
        rules.check_image(world, request)
        rules.check_storage(storage, request)
        with world.lock:
            name = request["TrainingJobName"]
            if name in jobs:
                rules.refuse(
                    "ResourceInUse",
                    "Training job names must be unique within an AWS account and region, and a training job with "
                    f"this name already exists ({jobs[name].arn})",
                )
            rules.check_quota(world, request, self.region, list(jobs.values()))
            key = world.new_role_key(request["RoleArn"])
            job = TrainingJob(request, self.current_account, self.region, key)
            jobs[name] = world.jobs[name] = job
        Life(world, job).start()
        return ActionResult({"TrainingJobArn": job.arn})

    def describe_training_job(self: Any) -> ActionResult:
        return ActionResult(_found(self).describe())

    def stop_training_job(self: Any) -> ActionResult:
        job = _found(self)
        if not job.stop():
            rules.invalid(f"The request was rejected because the training job is in status {job.status}.")
        return ActionResult({})

    def delete_training_job(self: Any) -> ActionResult:
        job = _found(self, "ResourceNotFound")
        if not job.done:
            rules.refuse("ResourceInUse", f"The training job is in status {job.status} and can't be deleted.")
        del self.sagemaker_backend.training_jobs[job.name]
        return ActionResult({})

    def list_training_jobs(self: Any) -> ActionResult:
        asked = json.loads(self.body or "{}")
        jobs = [j for j in self.sagemaker_backend.training_jobs.values() if _listed(j, asked)]
        keys = {"Name": lambda j: j.name, "Status": lambda j: j.status, "CreationTime": lambda j: j.created}
        jobs.sort(key=keys[asked.get("SortBy", "CreationTime")])
        if asked.get("SortOrder") == "Descending":
            jobs.reverse()
        page, token = _page(jobs, asked)
        return ActionResult({"TrainingJobSummaries": [job.summary() for job in page], **token})

    def search(self: Any) -> Any:
        asked = json.loads(self.body)
        if asked["Resource"] != "TrainingJob":
            return search_all(self)
        wanted = asked.get("SearchExpression", {})
        jobs = [j for j in self.sagemaker_backend.training_jobs.values() if _matches(j, wanted)]
        jobs.sort(key=lambda job: job.created, reverse=asked.get("SortOrder") != "Ascending")
        page, token = _page(jobs, asked)
        found = [{"TrainingJob": {**job.describe(), "Tags": job.tags}} for job in page]
        return ActionResult({"Results": found, **token})

    return {
        method.__name__: method
        for method in (create_training_job, describe_training_job, stop_training_job, delete_training_job,
                       list_training_jobs, search)
    }  # fmt: skip


def _found(response: Any, missing: str = "ValidationException") -> TrainingJob:
    """The job that a request names. Raises the service's error."""
    job = response.sagemaker_backend.training_jobs.get(json.loads(response.body)["TrainingJobName"])
    if job is None:
        raise rules.Refusal(missing, NOT_FOUND)
    found: TrainingJob = job
    return found


def _listed(job: TrainingJob, asked: Mapping[str, Any]) -> bool:
    """ListTrainingJobs' filters; times come as seconds since the epoch."""
    for name, at, later in (
        ("CreationTimeAfter", job.created, True), ("CreationTimeBefore", job.created, False),
        ("LastModifiedTimeAfter", job.modified, True), ("LastModifiedTimeBefore", job.modified, False),
    ):  # fmt: skip
        if name in asked:
            bound = datetime.fromtimestamp(float(asked[name]), UTC)
            if (at <= bound) if later else (at >= bound):
                return False
    return asked.get("NameContains", "") in job.name and asked.get("StatusEquals", job.status) == job.status


def _matches(job: TrainingJob, expression: Mapping[str, Any]) -> bool:
    """Search's filters over tags and text fields, joined by Operator."""
    if "SubExpressions" in expression or "NestedFilters" in expression:
        rules.invalid("not emulated: SubExpressions and NestedFilters")
    told: dict[str, Any] = {**job.describe(), **{f"Tags.{tag['Key']}": tag["Value"] for tag in job.tags}}
    results = [_holds(told, condition) for condition in expression.get("Filters", [])]
    return any(results) if results and expression.get("Operator") == "Or" else all(results)


def _holds(told: Mapping[str, Any], condition: Mapping[str, Any]) -> bool:
    has, value = told.get(condition["Name"]), condition.get("Value")
    operator = condition.get("Operator", "Equals")
    if operator in ("Exists", "NotExists"):
        return bool((has is not None) == (operator == "Exists"))
    if operator == "Contains":
        return has is not None and str(value) in str(has)
    if operator == "In":
        return str(has) in str(value).split(",")
    if operator in ("Equals", "NotEquals"):
        return bool((str(has) == str(value)) == (operator == "Equals"))
    rules.invalid(f"not emulated: Operator {operator}")
    return False


def _page(items: list[Any], asked: Mapping[str, Any]) -> tuple[list[Any], dict[str, str]]:
    """One page and the token for the next."""
    start, size = int(asked.get("NextToken") or 0), int(asked.get("MaxResults") or PAGE)
    if not 1 <= size <= 100:
        rules.invalid("1 validation error detected: Value at 'maxResults' failed to satisfy constraint")
    rest = {"NextToken": str(start + size)} if start + size < len(items) else {}
    return items[start : start + size], rest


def _simulate(world: World) -> Method:
    def simulate_principal_policy(self: Any) -> ActionResult:
        """Everything is allowed but what `deny` denies: policies are not read."""
        who, resources = self._get_param("PolicySourceArn"), _members(self, "ResourceArns") or ["*"]
        _check_principal(who)
        context = {key.rpartition("/")[2] for key in _context_keys(self)}

        def denied(action: str) -> bool:
            untagged = (told.partition("?") for by, told in world.denied if by == who)
            return world.is_denied(who, action) or any(
                name == action and tag and tag not in context for name, _, tag in untagged
            )

        results = [
            {
                "EvalActionName": action,
                "EvalResourceName": resource,
                "EvalDecision": "implicitDeny" if denied(action) else "allowed",
            }
            for action in _members(self, "ActionNames")
            for resource in resources
        ]
        return ActionResult({"EvaluationResults": results, "IsTruncated": False})

    return simulate_principal_policy


def _log_events(world: World) -> Method:
    sound = LogsResponse.get_log_events

    def get_log_events(self: Any) -> Any:
        """`Partially full or empty pages don't necessarily mean that pagination is finished.`

        https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html (2026-11-25)
        """
        asked = self._get_param("nextToken") or f"f/{-1:056d}"  # before the first event
        with world.lock:
            if world.settings.empty_log_pages <= 0 or not asked.startswith("f/"):
                return sound(self)
            world.settings.empty_log_pages -= 1
        digits = asked.removeprefix("f/")  # a zero less is another token for the same place
        token = f"f/{int(digits):0{len(digits) - 1}d}"
        return json.dumps({"events": [], "nextForwardToken": token, "nextBackwardToken": token.replace("f", "b")})

    return get_log_events


def _members(response: Any, name: str) -> list[str]:
    """A list of the query protocol."""
    found = response._get_param(name)
    if isinstance(found, list):
        return found
    told = response.querystring
    return [told[key][0] for key in sorted(told) if key.startswith(f"{name}.member.")]


def _context_keys(response: Any) -> list[str]:
    """ContextEntries.member.N.ContextKeyName of the query protocol."""
    told = response.querystring
    return [told[key][0] for key in told if key.startswith("ContextEntries.") and key.endswith("ContextKeyName")]


def _check_principal(arn: str) -> None:
    if ":assumed-role/" in arn or ":sts:" in arn:
        rules.refuse("InvalidInput", f"Invalid Entity Arn: {arn} does not clearly define entity type and name.")
    backend = iam_backends[ACCOUNT]["aws"]
    known = {*(role.arn for role in backend.roles.values()), *(user.arn for user in backend.users.values())}
    if arn not in known:
        rules.refuse("NoSuchEntity", f"The policy source {arn} cannot be found.")
