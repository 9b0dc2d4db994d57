"""Vertex's words for where a job stands, and ours.

https://cloud.google.com/vertex-ai/docs/reference/rest/v1/JobState (google-cloud-aiplatform 2.7.0)
"""

from __future__ import annotations

from typing import Any

from backends.base import JobState, JobStatus

STATES: dict[str, JobState] = {
    "JOB_STATE_UNSPECIFIED": JobState.UNKNOWN,
    "JOB_STATE_QUEUED": JobState.QUEUED,
    "JOB_STATE_PENDING": JobState.STARTING,
    "JOB_STATE_RUNNING": JobState.RUNNING,
    "JOB_STATE_SUCCEEDED": JobState.SUCCEEDED,
    "JOB_STATE_FAILED": JobState.FAILED,
    "JOB_STATE_CANCELLING": JobState.RUNNING,
    "JOB_STATE_CANCELLED": JobState.CANCELLED,
    "JOB_STATE_PAUSED": JobState.QUEUED,
    "JOB_STATE_EXPIRED": JobState.FAILED,
    "JOB_STATE_UPDATING": JobState.RUNNING,
    "JOB_STATE_PARTIALLY_SUCCEEDED": JobState.FAILED,
}
"""JobState -> state. A job of which some replicas only succeeded has no whole output."""
WORDS = {
    "JOB_STATE_QUEUED": "waits for quota or capacity",
    "JOB_STATE_PENDING": "preparing the machines",
    "JOB_STATE_CANCELLING": "stopping: it checkpoints first",
    "JOB_STATE_PAUSED": "paused by Vertex",
}
AGAIN = "interrupted; Vertex starts it again"
WAITING = (JobState.QUEUED, JobState.STARTING)


def state_of(job: Any) -> JobState:
    """Of a CustomJob message; UNKNOWN for a state that a later API adds."""
    return STATES.get(getattr(job.state, "name", ""), JobState.UNKNOWN)


def is_ending(job: Any) -> bool:
    """Is there nothing left to stop?"""
    return state_of(job).terminal or getattr(job.state, "name", "") == "JOB_STATE_CANCELLING"


def was_thrown_back(job: Any) -> bool:
    """Does it wait for machines though it has run? `start_time` is when it ran for the first time."""
    return state_of(job) in WAITING and job.start_time is not None


def status_of(job: Any, url: str, starts: int, reason: str | None) -> JobStatus:
    """`starts`: how often the entrypoint has begun, as it says itself; Vertex keeps no count."""
    state = state_of(job)
    thrown_back = was_thrown_back(job)
    name = getattr(job.state, "name", str(job.state))
    words = WORDS.get(name, name.removeprefix("JOB_STATE_").lower().replace("_", " "))
    return JobStatus(
        state=state,
        detail=AGAIN if thrown_back else words,
        reason=reason,
        started=job.start_time,
        ended=(job.end_time or job.update_time) if state.terminal else None,
        interruptions=max(1, starts) if thrown_back else max(0, starts - 1),
        url=url,
    )
