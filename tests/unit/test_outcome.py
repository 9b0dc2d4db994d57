"""A job as JSON has the same names whatever is known of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from backends.base import JobState
from launcher.client import Client
from launcher.outcome import describe, detaching
from launcher.store import JobRecord
from tests.unit.local_jobs import sleeping
from tests.unit.test_client import record_of


def test_the_estimate_of_a_rebuilt_job_has_its_names() -> None:
    record = JobRecord(
        id="a-1", name="a", backend="local", state="SUCCEEDED", lineage="a-1",
        created=datetime(2026, 1, 1, tzinfo=UTC), bundle_sha256="0",
        spec={"model": {"id": "m"}, "task": "generation"},
    )  # fmt: skip
    assert describe(record)["estimate"] == {
        "low": None, "expected": None, "high": None, "assumptions": [], "missing": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "said"), [(JobState.RUNNING, " goes on"), (JobState.FAILED, " is over: FAILED")]
)
def test_who_detaches_is_told_whether_the_job_goes_on(
    state: JobState, said: str, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the moment between the loss of a machine and the job that is submitted in its place."""
    backend, ref, plan = sleeping(client, tmp_path)
    client._store.add(record_of(plan, ref, state=state))
    with pytest.raises(click.exceptions.Exit), detaching(client, ref.id):
        raise KeyboardInterrupt
    told = " ".join(capsys.readouterr().err.split())
    assert f"detached; {ref.id}{said}" in told
    assert ("launch resume" in told) == (state == JobState.FAILED)
    backend.cancel(ref)
