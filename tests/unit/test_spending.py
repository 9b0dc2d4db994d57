"""Whoever follows a job is told once that its budget comes to an end, while there is something left to decide."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from backends.base import JobState, JobStatus
from launcher.client import Client
from launcher.live import follow
from launcher.observing import Spending, spent
from launcher.store import JobRecord
from tests.unit.local_jobs import sleeping

STARTED = datetime(2026, 11, 25, 12, tzinfo=UTC)


def record(budget: str | None = "12", hourly: str | None = "2.50") -> JobRecord:
    return JobRecord(
        id="a-1", name="a", backend="sagemaker", state="RUNNING", created=STARTED, lineage="a-1", bundle_sha256="",
        spec={"budget": budget}, estimate={"hourly": hourly},
    )  # fmt: skip


def running(**changes: Any) -> JobStatus:
    return JobStatus(**{"state": JobState.RUNNING, "started": STARTED, **changes})


@pytest.mark.parametrize(
    ("hours", "told"), [(3.83, None), (3.85, "9.62"), (4, "10.00"), (6, "15.00")], ids=lambda v: str(v)
)
def test_a_follower_is_warned_from_80_per_cent_on(hours: float, told: str | None) -> None:
    found = spent(record(), running(), STARTED + timedelta(hours=hours))
    assert found == (Spending(Decimal(told), Decimal(12)) if told else None)


@pytest.mark.parametrize(
    ("job", "status"),
    [
        (record(budget=None), running()),
        (record(hourly=None), running()),
        (record(), running(started=None)),
        (record(), running(state=JobState.SUCCEEDED)),
        (record(), None),
    ],
    ids=["no budget", "no price", "not started", "over", "not seen"],
)
def test_nothing_is_said_of_what_is_not_known_or_over(job: JobRecord, status: JobStatus | None) -> None:
    assert spent(job, status, STARTED + timedelta(hours=10)) is None


def test_a_running_job_is_warned_of_once_and_goes_on(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_POLL_S", "0.05")
    backend, ref, plan = sleeping(client, tmp_path)
    spec = {**plan.plan.job.model_dump(mode="json"), "budget": "100"}
    client._store.add(
        JobRecord(
            id=ref.id, name="demo", backend="local", state="STARTING", created=datetime.now(UTC), lineage=ref.id,
            bundle_sha256="", spec=spec, estimate={"hourly": "3600000"}, ref=str(ref),
        )
    )  # fmt: skip
    items, warned = client.follow(ref.id), []
    with (tmp_path / "seen").open("w") as file:

        def until_cancelled():
            for item in items:
                if isinstance(item, Spending):
                    warned.append(item)
                    assert client.get(ref.id).state in ("STARTING", "RUNNING")
                    backend.cancel(ref)
                yield item

        seen = follow(until_cancelled(), ref.id, Console(file=file, width=200))
    assert len(warned) == 1 and warned[0].dollars >= 80
    assert seen.spending == warned[0]
    assert f"launch cancel {ref.id}" in (tmp_path / "seen").read_text()
