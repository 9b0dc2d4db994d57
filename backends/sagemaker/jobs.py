"""Training jobs after the plan: sent, looked at, stopped, their output fetched, what they left removed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from backends.base import Bundle, JobRef, JobStatus, LogLine, Plan, Progress, Site
from backends.sagemaker.aws import Aws, code_of, is_missing, is_refusal
from backends.sagemaker.logs import LogReader
from backends.sagemaker.places import BUNDLE_TAG, JOB_TAG, LINEAGE_TAG, output_key
from backends.sagemaker.policies import SECRET_TAG
from backends.sagemaker.states import status_of
from backends.sagemaker.storage import Storage
from backends.storage import ROOT, record_key
from launcher.errors import BackendError, ConfigError, JobNotFoundError, LaunchError
from launcher.spec import JobSpec

CONSOLE = "https://{region}.console.aws.amazon.com/sagemaker/home?region={region}#/jobs/{name}"


class SageMakerJobs:
    """The half of the backend that talks to AWS. Making one does no I/O."""

    name: str

    def __init__(self, home: Path) -> None:
        self._regions: dict[str, Aws] = {}
        self._readers: dict[str, LogReader] = {}

    def stage(self, plan: Plan, progress: Progress) -> None:
        storage = self._storage(plan.job, plan.site)
        storage.put_bundle(plan.bundle, plan.token, progress)
        storage.put_record(plan)

    def submit(self, plan: Plan) -> JobRef:
        region = region_of(plan.job, plan.site)
        aws = self._aws(region)
        ref = JobRef(self.name, region, plan.token)
        with aws.errors(f"starting {plan.token}"):
            try:
                aws.client("sagemaker").create_training_job(**plan.request)
            except Exception as exc:
                # The answer to an earlier try of this very request was lost, or this is its repetition.
                if code_of(exc) == "ResourceInUse" and self._is_ours(ref, plan.bundle.sha256):
                    return ref
                with contextlib.suppress(LaunchError):  # what stays is swept later
                    if is_refusal(exc) and self.find(plan.site, plan.token, region) is None:
                        self._storage(plan.job, plan.site).withdraw(plan.bundle.sha256, plan.token)
                raise
        return ref

    def status(self, ref: JobRef) -> JobStatus:
        url = CONSOLE.format(region=ref.scope, name=ref.id)
        return status_of(self._describe(ref), url)

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        reader = self._readers.setdefault(ref.scope, LogReader(self._aws(ref.scope)))
        nothing = True
        for line in reader.lines(ref.id, cursor):
            nothing = False
            yield line
        if nothing:
            self._describe(ref)  # a job without a line may be none at all

    def cancel(self, ref: JobRef) -> None:
        if self.status(ref).state.terminal:
            return
        aws = self._aws(ref.scope)
        with aws.errors(f"stopping {ref.id}"):
            try:
                aws.client("sagemaker").stop_training_job(TrainingJobName=ref.id)
            except Exception as exc:
                # It ended by itself meanwhile.
                if code_of(exc) != "ValidationException" or is_missing(exc):
                    raise

    def download(self, ref: JobRef, to: Path) -> None:
        storage = self._storage_of(self._describe(ref))
        storage.bring_output(output_key(ref.id), to)

    def release(self, ref: JobRef) -> None:
        job = self._describe(ref)
        tags = self._tags(job)
        for kin in self._kin(ref, tags):
            if not status_of(kin, "").state.terminal:
                name = kin["TrainingJobName"]
                raise ConfigError(f"{ref.id} can't be removed: {name} still runs", f"launch cancel {name}")
        storage = self._storage_of(job)
        if sha256 := tags.get(BUNDLE_TAG):
            storage.drop_bundle(sha256, ref.id)
        storage.remove(f"{ROOT}/jobs/{ref.id}/")
        # The job itself goes last: a removal that was interrupted can be repeated.
        self._aws(ref.scope).call("sagemaker", "delete_training_job", f"removing {ref.id}", TrainingJobName=ref.id)

    def sweep(self, site: Site, before: datetime) -> int:
        storage = Storage(self._aws(site.need("region")), site.need("bucket"), site.get("kms_key"))
        return storage.sweep(before, lambda token: self._may_be_a_job(storage, site, token))

    def _may_be_a_job(self, storage: Storage, site: Site, token: str) -> bool:
        """Whose the bucket is beside: another backend, region or account, of which this one knows no job."""
        region = None
        if storage.get(record_key(token)) is not None:
            try:
                record = storage.record(token)
            except BackendError:
                return True
            if (record.get("backend"), _place(record.get("facts", {}))) != (self.name, _place(site.facts)):
                return True
            region = record["job"]["resources"].get("region")
        return self.find(site, token, region) is not None

    def find(self, site: Site, token: str, region: str | None = None) -> JobRef | None:
        ref = JobRef(self.name, region or site.need("region"), token)
        try:
            self._describe(ref)
        except JobNotFoundError:
            return None
        return ref

    def discover(self, site: Site, region: str | None = None) -> Iterable[JobRef]:
        region = region or site.need("region")
        for found in self._search(region, JOB_TAG, None):
            yield JobRef(self.name, region, found["TrainingJobName"])

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        return self._storage_of(self._describe(ref)).record(ref.id)

    def bundle(self, ref: JobRef, to: Path | None = None) -> Bundle:
        return self._storage_of(self._describe(ref)).bring_bundle(ref.id, to)

    def put_secret(self, site: Site, name: str, value: str) -> str:
        region = site.get("region")
        if region is None:
            raise ConfigError("backend sagemaker is not set up: region", "launch setup sagemaker --region ...")
        aws = self._aws(region)
        if aws.is_plain_http("secretsmanager"):
            raise ConfigError(
                "a secret would leave this machine without TLS (AWS_ENDPOINT_URL is plain http)",
                "unset it, or name an https:// address",
            )
        with aws.errors(f"storing {name} in Secrets Manager"):
            client = aws.client("secretsmanager")
            tags = [{"Key": SECRET_TAG, "Value": name}]
            try:
                client.create_secret(Name=name, SecretString=value, Tags=tags)
            except client.exceptions.ResourceExistsException:
                if {"Key": SECRET_TAG, "Value": name} not in client.describe_secret(SecretId=name).get("Tags", ()):
                    raise _not_ours(name, region) from None
                client.put_secret_value(SecretId=name, SecretString=value)
        return f"Secrets Manager in {region}, {name}"

    def _aws(self, region: str) -> Aws:
        return self._regions.setdefault(region, Aws(region))

    def _storage(self, job: JobSpec, site: Site) -> Storage:
        return Storage(self._aws(region_of(job, site)), site.need("bucket"), site.get("kms_key"))

    def _storage_of(self, job: Mapping[str, Any]) -> Storage:
        """The bucket that a job was given; its region is part of the job's ARN."""
        place = job["OutputDataConfig"]
        region = job["TrainingJobArn"].split(":")[3]
        bucket = place["S3OutputPath"].removeprefix("s3://").partition("/")[0]
        return Storage(self._aws(region), bucket, place.get("KmsKeyId") or None)

    def _describe(self, ref: JobRef) -> dict[str, Any]:
        return self._aws(ref.scope).call(
            "sagemaker",
            "describe_training_job",
            f"looking at {ref.id}",
            expects="TrainingJobArn",
            TrainingJobName=ref.id,
        )

    def _tags(self, job: Mapping[str, Any]) -> dict[str, str]:
        region = job["TrainingJobArn"].split(":")[3]
        asked = {"ResourceArn": job["TrainingJobArn"]}
        pages = self._aws(region).pages("sagemaker", "list_tags", "reading a job's tags", **asked)
        return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}

    def _is_ours(self, ref: JobRef, bundle: str) -> bool:
        tags = self._tags(self._describe(ref))
        return tags.get(JOB_TAG) == ref.id and tags.get(BUNDLE_TAG) == bundle

    def _kin(self, ref: JobRef, tags: Mapping[str, str]) -> list[dict[str, Any]]:
        """The job and, where its checkpoints are those of a lineage, the others that go on from them."""
        found = [self._describe(ref)]
        if tags.get(LINEAGE_TAG) == ref.id:
            found += self._search(ref.scope, LINEAGE_TAG, ref.id)
        return found

    def _search(self, region: str, tag: str, value: str | None) -> Iterator[dict[str, Any]]:
        """The region's training jobs that have the tag, with this value where it is given.

        https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_Search.html
        """
        wanted = {"Name": f"Tags.{tag}", "Operator": "Exists"}
        if value is not None:
            wanted = {"Name": f"Tags.{tag}", "Operator": "Equals", "Value": value}
        pages = self._aws(region).pages(
            "sagemaker", "search", "looking for our training jobs",
            Resource="TrainingJob", SearchExpression={"Filters": [wanted]},
        )  # fmt: skip
        for page in pages:
            for result in page.get("Results") or ():
                yield result["TrainingJob"]


def _not_ours(name: str, region: str) -> ConfigError:
    tag = f"Key={SECRET_TAG},Value={name}"
    return ConfigError(
        f"Secrets Manager in {region} has a secret {name} that launch did not put there: it stays as it is",
        "a job reads it as it is; to let launch replace its value: aws secretsmanager tag-resource "
        f"--secret-id {name} --tags {tag} --region {region}",
    )


def region_of(job: JobSpec, site: Site) -> str:
    """Where the job runs: its own region, else the account's."""
    return job.resources.region or site.need("region")


def _place(facts: Mapping[str, str | None]) -> tuple[str | None, str]:
    """(region, account) of the jobs."""
    return facts.get("region"), "".join((facts.get("role") or "").split(":")[4:5])
