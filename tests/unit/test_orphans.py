"""What is alive at a backend and no record owns. The backend's answers are given; the record is a real one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from backends.base import Fact, JobRef, JobState, JobStatus, Machine, Site
from launcher.discovery import Discovery
from launcher.errors import UnreachableError
from launcher.store import JobRecord, Store


class Vendor:
    """Knows three jobs and two clusters; `down`: can't be asked."""

    facts: tuple[Fact, ...] = ()
    down = False

    def discover(self, site: Site, region: str | None = None) -> Iterable[JobRef]:
        if self.down:
            raise UnreachableError("no answer", "later")
        return [JobRef("skypilot", "x", name) for name in ("mine", "strange", "unpriced", "ended")]

    def status(self, ref: JobRef) -> JobStatus:
        return JobStatus(state=JobState.SUCCEEDED if ref.id == "ended" else JobState.RUNNING)

    def recorded(self, ref: JobRef) -> Mapping[str, Any]:
        return {"hourly": None if ref.id == "unpriced" else "2.50"}

    def machines(self, site: Site) -> Iterable[Machine]:
        for name in ("mine", "strange", "unpriced", "over", "by-hand"):
            yield Machine(name=name, what="1 x H100", hourly=3.0, since=None, stop=f"sky down {name}")


def record(name: str, state: JobState) -> JobRecord:
    return JobRecord(
        id=name, name=name, backend="skypilot", state=state, created=datetime.now(UTC), lineage=name,
        bundle_sha256="ab" * 32, spec={},
    )  # fmt: skip


def discovery(tmp_path: Path, vendor: Vendor) -> Discovery:
    store = Store(tmp_path / "record.db")
    store.add(record("mine", JobState.RUNNING))
    store.add(record("over", JobState.FAILED))
    return Discovery(store, lambda name: vendor, lambda name: Site(backend=name))  # type: ignore[arg-type,return-value]


def test_what_no_running_job_of_the_record_owns_is_told_once_with_its_price(tmp_path: Path) -> None:
    found, silent = discovery(tmp_path, Vendor()).orphans(["skypilot"])
    assert [(one.id, one.hourly) for one in found] == [
        ("strange", Decimal("2.50")), ("unpriced", Decimal("3.0")), ("over", Decimal("3.0")),
        ("by-hand", Decimal("3.0")),
    ]  # fmt: skip
    assert "launch cancel strange" in found[0].stop
    assert found[2].stop == "sky down over"
    assert silent == {}


def test_a_backend_that_does_not_answer_is_named(tmp_path: Path) -> None:
    vendor = Vendor()
    vendor.down = True
    assert discovery(tmp_path, vendor).orphans(["skypilot"]) == ([], {"skypilot": "no answer"})
