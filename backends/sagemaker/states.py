"""SageMaker's words for where a job stands, and ours.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeTrainingJob.html (boto3 1.44.8)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from backends.base import JobState, JobStatus

SECONDARY: dict[str, JobState] = {
    "Starting": JobState.STARTING,
    "Pending": JobState.QUEUED,
    "LaunchingMLInstances": JobState.STARTING,
    "PreparingTrainingStack": JobState.STARTING,
    "Downloading": JobState.STARTING,
    "DownloadingTrainingImage": JobState.STARTING,
    "Training": JobState.RUNNING,
    "Interrupted": JobState.QUEUED,
    "Restarting": JobState.STARTING,
    "Updating": JobState.RUNNING,
    "Uploading": JobState.RUNNING,
    "Stopping": JobState.RUNNING,
    "Stopped": JobState.CANCELLED,
    "MaxRuntimeExceeded": JobState.FAILED,
    "MaxWaitTimeExceeded": JobState.FAILED,
    "Completed": JobState.SUCCEEDED,
    "Failed": JobState.FAILED,
}
"""SecondaryStatus -> state."""
PRIMARY: dict[str, JobState | None] = {
    "InProgress": None, "Stopping": None, "Completed": JobState.SUCCEEDED, "Failed": JobState.FAILED,
    "Stopped": None, "Deleting": JobState.UNKNOWN,
}  # fmt: skip
"""TrainingJobStatus -> state; None: the secondary status says which."""
WORDS = {
    "Pending": "waits for capacity",
    "Starting": "starting",
    "LaunchingMLInstances": "launching instances",
    "PreparingTrainingStack": "preparing the instances",
    "Downloading": "downloading the bundle",
    "DownloadingTrainingImage": "downloading the image",
    "Interrupted": "interrupted: spot capacity was taken; waits for more",
    "Uploading": "uploading the output",
    "Stopping": "stopping: it has two minutes to checkpoint",
}
ENDED_EARLY = {
    "MaxRuntimeExceeded": "it ran into its hard stop (MaxRuntimeInSeconds); launch resume goes on",
    "MaxWaitTimeExceeded": "no spot capacity came in time (MaxWaitTimeInSeconds)",
}
STOPPED_ITSELF = 143
"""The entrypoint's exit status when it has checkpointed at its deadline."""
ALGORITHM_ERROR = re.compile(r"^AlgorithmError: (?P<text>.*?)(?:,? exit code: (?P<code>-?\d+))?$", re.S)


def status_of(job: Mapping[str, Any], url: str) -> JobStatus:
    """What DescribeTrainingJob says, as a JobStatus."""
    primary, secondary = job["TrainingJobStatus"], job.get("SecondaryStatus") or "Starting"
    state = PRIMARY.get(primary) or SECONDARY.get(secondary, JobState.UNKNOWN)
    transitions: Sequence[Mapping[str, Any]] = job.get("SecondaryStatusTransitions") or ()
    return JobStatus(
        state=state,
        detail=_detail(secondary, transitions),
        reason=_reason(state, secondary, job.get("FailureReason")),
        started=job.get("TrainingStartTime"),
        ended=(job.get("TrainingEndTime") or job.get("LastModifiedTime")) if state.terminal else None,
        interruptions=interruptions(transitions),
        url=url,
        billable_s=job.get("BillableTimeInSeconds"),
        machine=(job.get("ResourceConfig") or {}).get("SelectedInstanceType"),
    )


def interruptions(transitions: Sequence[Mapping[str, Any]]) -> int:
    """How often the job was thrown back: each Interrupted, and each Restarting that does not follow one."""
    names = [str(transition["Status"]) for transition in transitions]
    again = sum(name == "Restarting" and (i == 0 or names[i - 1] != "Interrupted") for i, name in enumerate(names))
    return names.count("Interrupted") + again


def _detail(secondary: str, transitions: Sequence[Mapping[str, Any]]) -> str:
    """Where it is, in words, with what SageMaker says of it."""
    said = str(transitions[-1].get("StatusMessage") or "") if transitions else ""
    words = WORDS.get(secondary, secondary.lower())
    return f"{words} ({said})" if said and secondary in ("Pending", "Interrupted", "Restarting") else words


def _reason(state: JobState, secondary: str, failure: str | None) -> str | None:
    if secondary in ENDED_EARLY:
        return ENDED_EARLY[secondary]
    if state == JobState.CANCELLED:
        return "cancelled"
    if state != JobState.FAILED:
        return None
    if not failure:
        return "failed; see the log"
    match = ALGORITHM_ERROR.match(failure.strip())
    if match is None:
        return failure.strip()
    if match["code"] == str(STOPPED_ITSELF):
        return "stopped before it was done (a signal or its time limit); launch resume goes on"
    text = match["text"].strip()
    return text.splitlines()[0] if text else f"failed with exit code {match['code']}; see the log"
