"""What is heard, recorded and shown of a job that waits for its machine. The vendor's answers are given."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from backends.base import Capabilities, JobRef, JobState, JobStatus, LogLine, Wait
from launcher import outcome, screen
from launcher.live import follow
from launcher.observing import Observer
from launcher.store import JobRecord, Store

BEGAN = datetime(2026, 11, 30, 10, tzinfo=UTC)
READY = BEGAN + timedelta(minutes=12)
TYPES = ("ml.g6e.2xlarge", "ml.g6.2xlarge")


def wait(said: str, until: datetime | None = None) -> JobStatus:
    return JobStatus(
        state=JobState.QUEUED, detail=f"waits for capacity ({said})", tries=dict.fromkeys(TYPES, "asked for"),
        waits=(Wait(since=BEGAN, until=until, said=said),),
    )  # fmt: skip


DONE = JobStatus(
    state=JobState.SUCCEEDED, tries=dict(zip(TYPES, ("no capacity", "given"), strict=True)),
    waits=(Wait(since=BEGAN, until=READY, said="Preparing the instances"),),
)  # fmt: skip


class Scarce:
    """Its vendor keeps the last of its messages only."""

    name = "scarce"
    capabilities = Capabilities(poll_s=0.01)

    def __init__(self) -> None:
        self.told = iter([wait("waiting"), wait("waiting"), wait("Preparing the instances"), DONE])

    def status(self, ref: JobRef) -> JobStatus:
        return next(self.told)

    def logs(self, ref: JobRef, cursor: str | None = None) -> Iterator[LogLine]:
        yield from ()


@pytest.fixture
def job(tmp_path: Path) -> JobRecord:
    return JobRecord(
        id="a-1", name="a", backend="scarce", state=JobState.STARTING, created=BEGAN, lineage="a-1",
        bundle_sha256="ab" * 32, spec={}, ref="scarce://here/a-1",
    )  # fmt: skip


def test_a_follower_shows_each_of_the_vendors_words_once_and_the_record_keeps_all(
    job: JobRecord, tmp_path: Path
) -> None:
    store, target, out = Store(tmp_path / "record.db"), Scarce(), io.StringIO()
    store.add(job)
    follow(Observer(store, lambda _: target).follow(job, True), "a-1", Console(file=out, width=80))  # type: ignore[arg-type,return-value]
    assert out.getvalue().splitlines() == [
        "waits for capacity (waiting)", "waits for capacity (Preparing the instances)",
    ]  # fmt: skip
    kept = store.get("a-1")
    assert kept is not None
    assert kept.capacity == {
        "tries": {TYPES[0]: "no capacity", TYPES[1]: "given"},
        "waits": [
            {
                "since": BEGAN.isoformat(), "until": READY.isoformat(),
                "said": ["waiting", "Preparing the instances"],
            }
        ],
    }  # fmt: skip
    rows = dict(outcome.capacity_rows(kept))
    assert rows["asked for"] == "ml.g6e.2xlarge (no capacity), then ml.g6.2xlarge (given)"
    assert rows["waited"].startswith("12m 00s from ")
    assert rows["waited"].endswith(": waiting; Preparing the instances")
    assert screen.facts(rows.items()).row_count == 2
    assert outcome.describe(
        JobRecord(**{**vars(kept), "spec": {"model": {"id": "m"}, "task": "sft"}})
    )["capacity"] == kept.capacity  # fmt: skip


def test_a_change_of_words_alone_is_no_new_state_for_a_program(
    job: JobRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, target = Store(tmp_path / "record.db"), Scarce()
    store.add(job)
    outcome._follow_json(Observer(store, lambda _: target).follow(job, True))  # type: ignore[arg-type,return-value]
    states = [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()]
    assert states == ["QUEUED", "SUCCEEDED"]
