"""What a person sees of jobs and plans."""

from __future__ import annotations

import dataclasses
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.client import Client
from launcher.screen import facts, jobs_table, out, plan_rows
from launcher.store import JobRecord
from tests.unit.local_jobs import planned


def seen(shown: object, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


def record(number: int, owner: str | None, **changes: Any) -> JobRecord:
    base = JobRecord(
        id=f"job-{number}", name="job", backend="vertex", state="RUNNING", created=datetime.now(UTC), lineage="x",
        bundle_sha256="", spec={"model": {"id": "example/model"}}, data={}, estimate={}, owner=owner,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_a_listing_keeps_whole_ids_at_80_columns_and_says_what_came_of_jobs() -> None:
    figures = {"baseline": {"macro_f1": 0.1}, "tuned": {"macro_f1": 0.6}}
    jobs = [
        record(1, "anna", id="support-triage-3f9c1a", state="FAILED", reason="oom: out of memory\nat step 3"),
        record(2, "benjamin", id="support-triage-77aa01", state="SUCCEEDED", evaluation=figures),
    ]
    lines = seen(jobs_table(jobs, 80), 80).splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= 80
    assert lines[1].startswith("support-triage-3f9c1a ") and "oom: out of" in lines[1]
    assert "macro-F1 0.60" in lines[2]
    assert "macro-F1 0.10 -> 0.60" in seen(jobs_table(jobs, 120))


def test_whose_jobs_they_are_is_shown_where_not_all_are_mine() -> None:
    assert "OWNER" not in seen(jobs_table([record(1, "anna"), record(2, "anna")], 120, me="anna"))
    assert "anna" in seen(jobs_table([record(1, "anna")], 120, me="ben")), "all of them somebody else's"
    both = seen(jobs_table([record(1, "anna"), record(2, "ben")], 120, me="anna"))
    assert "OWNER" in both and "anna" in both and "ben" in both


def test_a_plan_says_what_is_sent_the_largest_first(client: Client, tmp_path: Path) -> None:
    rows = dict(plan_rows(planned(client, tmp_path)))
    holds = str(rows["contents"]).split(", ")
    assert holds[0].startswith("code/ ") and holds[0].endswith(" files)")
    assert any(item.startswith("job.json ") for item in holds)
    assert len(holds) < 8


def test_brackets_and_colons_in_a_text_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """A path or a vendor's words may hold what is markup elsewhere."""
    said = "no [bold] file [/data/x] at :key: s3"
    out().print(facts([("reason", said)]))
    out().print(said)
    assert capsys.readouterr().out.count(said) == 2
