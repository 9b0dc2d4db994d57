"""One training job as the API tells it: the request, its state now, and every state it has been through."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

DONE = ("Completed", "Failed", "Stopped")
PRIMARY = {
    "Stopping": "Stopping", "Stopped": "Stopped", "MaxRuntimeExceeded": "Stopped",
    "MaxWaitTimeExceeded": "Stopped", "Completed": "Completed", "Failed": "Failed",
}  # fmt: skip
"""SecondaryStatus -> TrainingJobStatus; all others are InProgress.
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeTrainingJob.html (botocore 1.44.8)
"""
SPOT_SHARE = 0.3
"""What is billed of a managed spot job's seconds here; the real share is the market's."""
REASON_CHARS = 1024
TOLD = (
    "TrainingJobName", "HyperParameters", "AlgorithmSpecification", "RoleArn", "InputDataConfig",
    "OutputDataConfig", "ResourceConfig", "VpcConfig", "StoppingCondition", "CheckpointConfig", "Environment",
    "RetryStrategy", "ExperimentConfig", "DebugHookConfig", "ProfilerConfig", "RemoteDebugConfig",
    "InfraCheckConfig",
)  # fmt: skip
FLAGS = ("EnableNetworkIsolation", "EnableInterContainerTrafficEncryption", "EnableManagedSpotTraining")


class TrainingJob:
    """The job; `tags` is what moto's AddTags, ListTags and DeleteTags work on."""

    def __init__(self, request: Mapping[str, Any], account: str, region: str, key: str) -> None:
        self.request = dict(request)
        self.account = account
        self.region = region
        self.key = key
        """The access key id that stands for the job's role."""
        self.name: str = request["TrainingJobName"]
        self.arn = f"arn:aws:sagemaker:{region}:{account}:training-job/{self.name}"
        self.types = preferred(request)
        """Instance types in the order in which they are tried."""
        self.selected: str | None = None
        """The one of them that it runs on."""
        self.tags: list[dict[str, str]] = [dict(tag) for tag in request.get("Tags", [])]
        self.created = self.modified = now()
        self.started: datetime | None = None
        self.ended: datetime | None = None
        self.status = "InProgress"
        self.secondary = "Starting"
        self.transitions: list[dict[str, Any]] = []
        self.reason: str | None = None
        self.artifacts: str | None = None
        self.seconds = 0.0
        """On instances, over all attempts."""
        self.attempts: list[dict[str, Any]] = []
        """What tests may ask about: number, stream names, exit statuses, why it ended."""
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    @property
    def spot(self) -> bool:
        return bool(self.request.get("EnableManagedSpotTraining"))

    @property
    def instance_type(self) -> str:
        return self.selected or self.types[0]

    def select(self, missing: Collection[str]) -> bool:
        """Take the first type that is there, once and for all; was there one?"""
        if self.selected is None:
            self.selected = next((kind for kind in self.types if kind not in missing), None)
        return self.selected is not None and self.selected not in missing

    @property
    def instances(self) -> int:
        return int(self.request["ResourceConfig"].get("InstanceCount", 1))

    @property
    def done(self) -> bool:
        return self.status in DONE

    def enter(self, secondary: str, message: str) -> None:
        """The next state; a new message in the same one only replaces the message. A stop is never undone."""
        with self._lock:
            at = now()
            primary = PRIMARY.get(secondary, "InProgress")
            if self.status == "Stopping" and primary == "InProgress":
                if secondary != "Uploading":
                    return
                primary = "Stopping"
            last = self.transitions[-1] if self.transitions else None
            if last is not None and last["Status"] == secondary:
                last["StatusMessage"] = message
            else:
                if last is not None:
                    last["EndTime"] = at
                self.transitions.append({"Status": secondary, "StartTime": at, "StatusMessage": message})
            if primary in DONE:
                self.transitions[-1]["EndTime"] = at
                self.ended = at
            self.status, self.secondary, self.modified = primary, secondary, at

    def stop(self) -> bool:
        """Begin to stop; False where that is no longer possible."""
        with self._lock:
            if self.status != "InProgress":
                return False
            self.status = "Stopping"
        self.enter("Stopping", "Stopping the training job")
        self.stopping.set()
        return True

    def fail(self, reason: str) -> None:
        self.reason = reason[:REASON_CHARS]
        self.enter("Failed", "Training job failed")

    def describe(self) -> dict[str, Any]:
        """DescribeTrainingJob's answer."""
        told = {k: self.request[k] for k in TOLD if k in self.request}
        told |= {k: bool(self.request.get(k)) for k in FLAGS}
        with self._lock:
            told |= {
                "TrainingJobArn": self.arn, "TrainingJobStatus": self.status, "SecondaryStatus": self.secondary,
                "CreationTime": self.created, "LastModifiedTime": self.modified,
                "SecondaryStatusTransitions": [dict(t) for t in self.transitions],
            }  # fmt: skip
            if "InstancePreferences" in self.request["ResourceConfig"] and self.selected:
                selected = {"SelectedInstanceType": self.selected, "SelectedInstanceCount": self.instances}
                told["ResourceConfig"] = {**self.request["ResourceConfig"], **selected}
            if self.started is not None:
                told["TrainingStartTime"] = self.started
            if self.ended is not None and self.started is not None:
                told["TrainingEndTime"] = self.ended
                told["TrainingTimeInSeconds"] = math.ceil(self.seconds)
                told["BillableTimeInSeconds"] = math.ceil(self.seconds * (SPOT_SHARE if self.spot else 1))
            if self.reason is not None:
                told["FailureReason"] = self.reason
            if self.artifacts is not None:
                told["ModelArtifacts"] = {"S3ModelArtifacts": self.artifacts}
        return told

    def summary(self) -> dict[str, Any]:
        """One line of ListTrainingJobs."""
        told = self.describe()
        names = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "LastModifiedTime",
                 "TrainingJobStatus", "SecondaryStatus")  # fmt: skip
        return {name: told[name] for name in names if name in told}


def now() -> datetime:
    return datetime.now(UTC)


def preferred(request: Mapping[str, Any]) -> list[str]:
    """The instance types that a request would do with, in their order."""
    resources = request["ResourceConfig"]
    listed = [one["InstanceType"] for one in resources.get("InstancePreferences", ())]
    return [str(kind) for kind in (resources.get("InstanceType"), *listed) if kind]
