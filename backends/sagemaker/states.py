"""SageMaker's words for where a job stands, and ours.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeTrainingJob.html (boto3 1.44.8)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backends.base import JobState, JobStatus, Wait
from backends.sagemaker.machines import types_of

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
WITHOUT_MACHINE = frozenset(
    ("Starting", "Pending", "LaunchingMLInstances", "PreparingTrainingStack", "Interrupted", "Restarting")
)
ENDED_EARLY = {
    "MaxRuntimeExceeded": "it ran into its hard stop (MaxRuntimeInSeconds); launch resume goes on",
    "MaxWaitTimeExceeded": "no capacity came in time (resources.max_wait_hours); launch resume asks again",
}
NO_CAPACITY = "CapacityError"
"""What FailureReason begins with where no machine could be had.
https://docs.aws.amazon.com/batch/latest/userguide/sm_job_stuck_in_runnable_capacity.html (read 2026-11-30)
"""
STOPPED_ITSELF = 143
"""The entrypoint's exit status when it has checkpointed at its deadline."""
ALGORITHM_ERROR = re.compile(r"^AlgorithmError: (?P<text>.*?)(?:,? exit code: (?P<code>-?\d+))?$", re.S)


def status_of(job: Mapping[str, Any], url: str) -> JobStatus:
    """What DescribeTrainingJob says, as a JobStatus."""
    primary, secondary = job["TrainingJobStatus"], job.get("SecondaryStatus") or "Starting"
    state = PRIMARY.get(primary) or SECONDARY.get(secondary, JobState.UNKNOWN)
    if primary == "Stopped" and (_waited_in_vain(job) or state == JobState.UNKNOWN):
        # Over, though nobody cancelled it, and perhaps in a word that this version does not know.
        state, secondary = JobState.FAILED, "MaxWaitTimeExceeded" if _waited_in_vain(job) else secondary
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
        tries=tries(job),
        waits=tuple(waits(transitions)),
    )


def tries(job: Mapping[str, Any]) -> dict[str, str]:
    """What became of each machine that was asked for, in this order.

    SageMaker tells the one that it selected, and that it takes the first in the list that has capacity: so those
    before it had none. Of single tries it tells no times.
    https://docs.aws.amazon.com/sagemaker/latest/dg/train-instance-preferences.html (read 2026-11-30)
    """
    resources = job.get("ResourceConfig") or {}
    asked = [] if resources.get("InstanceGroups") else types_of(resources)  # groups: all of them, or none
    given = resources.get("SelectedInstanceType")
    if given is None and job.get("TrainingStartTime") and len(asked) == 1:
        given = asked[0]
    if given in asked:
        at = asked.index(given)
        return {
            name: "given" if i == at else "no capacity" if i < at else "not needed" for i, name in enumerate(asked)
        }
    if str(job.get("FailureReason") or "").startswith(NO_CAPACITY) or _waited_in_vain(job):
        return dict.fromkeys(asked, "no capacity")
    over = job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped")
    return dict.fromkeys(asked, "not given" if over else "asked for")


def waits(transitions: Sequence[Mapping[str, Any]]) -> Iterator[Wait]:
    """Every time without a machine; SageMaker keeps the last of its messages only."""
    for found in transitions:
        if found["Status"] in WITHOUT_MACHINE and "StartTime" in found:
            said = str(found.get("StatusMessage") or WORDS.get(found["Status"], found["Status"]))
            yield Wait(since=found["StartTime"], until=found.get("EndTime"), said=said)


def _waited_in_vain(job: Mapping[str, Any]) -> bool:
    """Did SageMaker end it for MaxPendingTimeInSeconds? Stopped, and it never had a machine."""
    most = (job.get("StoppingCondition") or {}).get("MaxPendingTimeInSeconds")
    if job["TrainingJobStatus"] != "Stopped" or most is None or job.get("TrainingStartTime"):
        return False
    ended = job.get("TrainingEndTime") or job.get("LastModifiedTime")
    return bool(ended and job.get("CreationTime") and (ended - job["CreationTime"]).total_seconds() >= most)


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
        known = secondary in ("Failed", "Stopped")
        return "failed; see the log" if known else f"SageMaker ended it: {secondary}"
    if failure.startswith(NO_CAPACITY):
        return f"{failure.strip()} resources.fallback names others, resources.max_wait_hours waits"
    match = ALGORITHM_ERROR.match(failure.strip())
    if match is None:
        return failure.strip()
    if match["code"] == str(STOPPED_ITSELF):
        return "stopped before it was done (a signal or its time limit); launch resume goes on"
    text = match["text"].strip()
    return text.splitlines()[0] if text else f"failed with exit code {match['code']}; see the log"
