"""Where a job stands, by what its nodes have marked and what SkyPilot says."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from backends.base import JobState, JobStatus
from backends.skypilot.seen import Seen

PREEMPTED = 143
"""Exit status of a job that has checkpointed and stopped (train_entry)."""
QUIET_S = 60
"""After so long without a word SkyPilot is asked whether the machines are still there; it takes seconds."""
THROWN_BACK = ("recovering", "launching", "waiting")
GONE = ("none", "over", "failed")
ELSEWHERE = "another machine's SkyPilot runs it"
"""Said of a job that SkyPilot here does not know, and that was not sent from here (phase `elsewhere`)."""
STOPPED_ITSELF = "stopped before it was done (a signal or its time limit); launch resume goes on"


OWN_ENDS = ("FAILED", "FAILED_SETUP")
"""SkyPilot's words for a job that failed by itself: its marks tell more. The others are about what runs it."""


def told(seen: Seen, said: Mapping[str, Any] | None = None) -> JobState | None:
    """How it ended, where the marks say that; `said`: SkyPilot's `look` at a job that is over for it."""
    if seen.end is None:
        return None
    code = seen.end[1]
    if code == 0:
        return JobState.SUCCEEDED
    if "cancel" in seen.has:
        return JobState.CANCELLED
    # A managed job that lost a machine may go on: its nodes were asked to stop, or failed without their peer.
    own = said is not None and (said["phase"] == "none" or said["detail"] in OWN_ENDS)
    return None if seen.managed and not own else JobState.FAILED


def is_to_be_asked(seen: Seen) -> bool:
    """Can't the marks be believed without SkyPilot's word?"""
    return seen.managed or not seen.starts or (seen.quiet_s or 0) >= QUIET_S


def status_of(seen: Seen, said: Mapping[str, Any]) -> JobStatus:
    """Of a job whose marks don't say how it ended; `said`: SkyPilot's `look`, empty when it was not asked."""
    phase = said.get("phase")
    first = moment(seen.starts[0]) if seen.starts else None
    if phase in GONE:
        return _gone(seen, said, first)
    if not seen.starts:
        waits = phase == "waiting" and not seen.logs
        detail = "set-up" if seen.logs else said.get("detail") or "launching"
        return JobStatus(state=JobState.QUEUED if waits else JobState.STARTING, detail=detail)
    if phase in THROWN_BACK and len(seen.starts) <= said["recoveries"] + 1:
        detail = "interrupted; SkyPilot starts it again"
        return JobStatus(state=JobState.STARTING, detail=detail, started=first, interruptions=len(seen.starts))
    ended = f"ended with {seen.end[1]}; SkyPilot says whether it starts again" if seen.end else "running"
    detail = ELSEWHERE if phase == "elsewhere" else ended
    return JobStatus(state=JobState.RUNNING, detail=detail, started=first, interruptions=len(seen.starts) - 1)


def ending(seen: Seen) -> JobStatus:
    """Of a job whose first node has ended, and others may still have something to say."""
    first = moment(seen.starts[0]) if seen.starts else None
    return JobStatus(
        state=JobState.RUNNING, detail="ending", started=first, interruptions=max(0, len(seen.starts) - 1)
    )


def _gone(seen: Seen, said: Mapping[str, Any], first: datetime | None) -> JobStatus:
    """SkyPilot has no machines for it any more, or its job there is over; no mark says how."""
    state, reason = JobState.FAILED, said.get("reason") or "its machines are gone"
    if said["phase"] == "over" and said.get("detail") == "SUCCEEDED":
        state, reason = JobState.SUCCEEDED, None
    elif "cancel" in seen.has:
        state, reason = JobState.CANCELLED, "cancelled"
    return JobStatus(
        state=state, reason=reason,
        started=first, ended=datetime.now(UTC), interruptions=max(0, len(seen.starts) - 1),
    )  # fmt: skip


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
