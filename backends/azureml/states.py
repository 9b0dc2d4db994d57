"""Azure ML's words for where a job stands, and ours.

https://learn.microsoft.com/rest/api/azureml/jobs/get#jobstatus (azure-ai-ml 1.35.2, read 2026-11-25)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from backends.base import JobState

STATES: dict[str, JobState] = {
    "NotStarted": JobState.QUEUED,
    "Queued": JobState.QUEUED,
    "Starting": JobState.STARTING,
    "Provisioning": JobState.STARTING,
    "Preparing": JobState.STARTING,
    "Running": JobState.RUNNING,
    "Finalizing": JobState.RUNNING,
    "CancelRequested": JobState.RUNNING,
    "Completed": JobState.SUCCEEDED,
    "Failed": JobState.FAILED,
    "Canceled": JobState.CANCELLED,
    "NotResponding": JobState.UNKNOWN,
    "Paused": JobState.UNKNOWN,
    "Unknown": JobState.UNKNOWN,
}
"""JobStatus -> state. NotResponding: its machine is silent, and may come back."""
WORDS = {
    "NotStarted": "not started",
    "Queued": "waits for quota or machines",
    "Starting": "starting",
    "Provisioning": "making the machines",
    "Preparing": "preparing the image: its first use builds it, which takes a while",
    "Finalizing": "finishing",
    "CancelRequested": "stopping",
    "NotResponding": "the machine does not respond",
}
PREEMPTED = re.compile(r"(?i)preempt|pre-empted|evicted")
PROCESS_ENDED = re.compile(r"(?i)exited with (?:status|exit) ?code:? *(\d+)")
"""What stands behind it is the tail of the job's own log."""
STOPPED_ITSELF = 143
"""The entrypoint's exit status when it has checkpointed, at a signal or at its deadline."""
RESUME = "launch resume goes on from its checkpoints"


def state_of(word: str) -> JobState:
    """Our state of Azure's; an unheard one is UNKNOWN."""
    return STATES.get(word, JobState.UNKNOWN)


def detail_of(word: str) -> str:
    return WORDS.get(word, word.lower())


def reason_of(
    state: JobState, error: str, left: Mapping[str, Any], exit_code: int | None, preempted: bool = False
) -> str | None:
    """Why it ended, in words. `left`: the job's failure.json; `error`: what Azure says."""
    if state == JobState.CANCELLED:
        return "cancelled"
    if state != JobState.FAILED:
        return None
    if preempted:
        return "spot capacity was taken, and Azure ML did not start it again"
    if message := str(left.get("message") or "").strip():
        return message.splitlines()[0]
    if exit_code == STOPPED_ITSELF:
        return f"stopped before it was done (a signal or its time limit); {RESUME}"
    return error.splitlines()[0] if error.strip() else "failed; see the log"


def names_preemption(error: str) -> bool:
    """Does Azure itself say that the machine was taken away?"""
    return PREEMPTED.search(PROCESS_ENDED.split(error, maxsplit=1)[0]) is not None


def was_preempted(state: JobState, error: str, left: Mapping[str, Any], ended: Mapping[str, Any]) -> bool:
    """Of a job on spot: was its machine taken away? `left` and `ended`: its failure.json and state.json.

    Azure ML fails it with a word on that, or as a process that a signal has ended; with a whole cluster it is
    cancelled, as the documentation of its batch deployments has it.
    """
    if left.get("retry") is False or state not in (JobState.FAILED, JobState.CANCELLED):
        return False
    if names_preemption(error):
        return True
    told = PROCESS_ENDED.search(error)
    signalled = STOPPED_ITSELF in (ended.get("exit"), int(told[1]) if told else None)
    return state == JobState.FAILED and signalled and "over" not in ended


def error_of(run: Mapping[str, Any]) -> str:
    """What a run's details say went wrong; they nest errors."""
    error: Any = run.get("error")
    while isinstance(error, Mapping) and isinstance(error.get("error"), Mapping):
        error = error["error"]
    return str(error.get("message") or error.get("code") or "") if isinstance(error, Mapping) else ""


def time_of(text: object) -> datetime | None:
    """A time as Azure writes it: up to seven digits behind the second, with Z, an offset or neither."""
    found = re.fullmatch(
        r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)?", text if isinstance(text, str) else ""
    )
    if found is None:
        return None
    zone = "+00:00" if found[3] in (None, "Z") else found[3]
    return datetime.fromisoformat(f"{found[1]}{(found[2] or '.0')[:7].ljust(7, '0')}{zone}").astimezone(UTC)
