"""What a spot job that lost its machine has left when it is submitted anew."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from backends.base import JobState
from launcher.errors import LaunchError
from launcher.resuming import what_is_left
from launcher.spec import JobSpec
from launcher.store import JobRecord

BEGAN = datetime(2026, 11, 25, 9, tzinfo=UTC)


def lost(hours: float | None, resubmits: int = 0, hourly: str | None = "2", **changes: Any) -> JobRecord:
    """A job that ran for so long and was then ended."""
    spec = {"name": "demo", "model": "org/m", "task": "generation", "data": {"train": "rows.jsonl"}, **changes}
    started = None if hours is None else BEGAN
    ended = BEGAN + timedelta(hours=hours or 0)
    return JobRecord(
        id="demo-1", name="demo", backend="azureml", state=JobState.FAILED, created=BEGAN, lineage="demo-1",
        bundle_sha256="0" * 64, spec=JobSpec.model_validate(spec).model_dump(mode="json"), started=started,
        ended=ended, resubmits=resubmits, estimate={"hourly": hourly},
    )  # fmt: skip


def test_hours_and_money_that_are_spent_count() -> None:
    left = what_is_left(lost(1.5, budget=10, resources={"max_hours": 4}))
    assert left.resources.max_hours == pytest.approx(2.5)
    assert left.budget == Decimal(7)


def test_what_is_left_is_what_the_next_one_begins_with() -> None:
    left = what_is_left(lost(1, budget=10, resources={"max_hours": 4}))
    again = what_is_left(lost(1, 1, **left.model_dump(mode="json", include={"budget", "resources"})))
    assert again.resources.max_hours == pytest.approx(2)
    assert again.budget == Decimal(6)


def test_two_clocks_that_differ_give_no_time_or_money_back() -> None:
    left = what_is_left(lost(-0.5, budget=10, resources={"max_hours": 4}))
    assert (left.resources.max_hours, left.budget) == (4, Decimal(10))


def test_a_job_that_never_got_a_machine_has_spent_nothing() -> None:
    left = what_is_left(lost(None, budget=10, resources={"max_hours": 4}))
    assert (left.resources.max_hours, left.budget) == (4, Decimal(10))


def test_a_job_whose_end_is_not_known_has_run_until_now() -> None:
    job = lost(0, budget=10, resources={"max_hours": 4})
    began = datetime.now(UTC) - timedelta(hours=1)
    left = what_is_left(dataclasses.replace(job, started=began, ended=None))
    assert left.resources.max_hours == pytest.approx(3, abs=0.01)
    assert left.budget is not None and float(left.budget) == pytest.approx(8, abs=0.02)


@pytest.mark.parametrize(
    ("job", "why"),
    [
        (lost(3.9, resources={"max_hours": 4}), "3.9 of its 4 hours"),
        (lost(6, budget=10, resources={"max_hours": 20}), r"budget of \$10 is used up"),
        (lost(0.1, resubmits=3), "3 times"),
        (lost(0.1, resubmits=5, resources={"resubmits": 5}), "5 times"),
        (lost(0.1, resources={"resubmits": 0}), "0 times"),
    ],
)
def test_nothing_is_submitted_beyond_the_limits(job: JobRecord, why: str) -> None:
    with pytest.raises(LaunchError, match=why):
        what_is_left(job)
