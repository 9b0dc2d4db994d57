"""A job as JSON has the same names whatever is known of it."""

from __future__ import annotations

from datetime import UTC, datetime

from launcher.outcome import describe
from launcher.store import JobRecord


def test_the_estimate_of_a_rebuilt_job_has_its_names() -> None:
    record = JobRecord(
        id="a-1", name="a", backend="local", state="SUCCEEDED", lineage="a-1",
        created=datetime(2026, 1, 1, tzinfo=UTC), bundle_sha256="0",
        spec={"model": {"id": "m"}, "task": "generation"},
    )  # fmt: skip
    assert describe(record)["estimate"] == {
        "low": None, "expected": None, "high": None, "assumptions": [], "missing": [],
    }  # fmt: skip
