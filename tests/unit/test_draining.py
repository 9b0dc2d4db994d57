"""When a job that is over has said everything. The backend's answers are given; the record is a real one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backends.base import Capabilities, JobRef, JobState, JobStatus, LogLine
from launcher.observing import Observer
from launcher.store import JobRecord, Store


class Mute:
    """Its job is over, it doesn't say since when, and the log has no last event."""

    name = "mute"
    capabilities = Capabilities(poll_s=0.01, drain_s=0.3)

    def status(self, ref: JobRef) -> JobStatus:
        return JobStatus(state=JobState.FAILED)

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        yield from ()


@pytest.mark.timeout(60)
def test_a_follower_of_a_job_whose_end_is_not_dated_comes_to_its_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "record.db")
    job = JobRecord(
        id="a-1", name="a", backend="mute", state=JobState.RUNNING, created=datetime.now(UTC), lineage="a-1",
        bundle_sha256="ab" * 32, spec={}, ref="mute://here/a-1",
    )  # fmt: skip
    store.add(job)
    began = time.monotonic()
    heard = list(Observer(store, lambda name: Mute()).follow(job, True))  # type: ignore[arg-type,return-value]
    assert time.monotonic() - began >= 0.3, "lines that are on their way are waited for"
    assert heard[-1] == JobStatus(state=JobState.FAILED)
    kept = store.get("a-1")
    assert kept is not None and kept.drained == 1
