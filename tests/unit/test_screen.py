"""What a person sees of jobs and plans."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from launcher.client import Client
from launcher.screen import jobs_table, plan_rows
from launcher.store import JobRecord
from tests.unit.local_jobs import planned


def seen(shown: object, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


def record(number: int, owner: str | None) -> JobRecord:
    return JobRecord(
        id=f"job-{number}", name="job", backend="vertex", state="RUNNING", created=datetime.now(UTC), lineage="x",
        bundle_sha256="", spec={"model": {"id": "example/model"}}, data={}, estimate={}, owner=owner,
    )  # fmt: skip


def test_whose_jobs_they_are_is_shown_where_not_all_are_mine() -> None:
    assert "OWNER" not in seen(jobs_table([record(1, "anna"), record(2, "anna")], 120, "anna"))
    assert "anna" in seen(jobs_table([record(1, "anna")], 120, "ben")), "all of them somebody else's"
    both = seen(jobs_table([record(1, "anna"), record(2, "ben")], 120, "anna"))
    assert "OWNER" in both and "anna" in both and "ben" in both


def test_an_id_is_whole_in_its_line_and_never_cut() -> None:
    result = {"tuned": {"rows": 1, "macro_f1": 0.5, "accuracy": 0.5}, "baseline": {"rows": 1, "macro_f1": 0.25}}
    one = replace(record(1, "anna"), id="support-triage-3f9c2a", evaluation=result, state="SUCCEEDED")
    assert "support-triage-3f9c2a  SUCCEEDED" in seen(jobs_table([one], 60, "ben"), 60)
    long = replace(one, id="n" * 50 + "-3f9c2a")
    cells = [line.split("  ")[0].strip() for line in seen(jobs_table([long], 60, "ben"), 60).splitlines()[1:]]
    assert "".join(cells).startswith(long.id)


def test_a_plan_says_what_is_sent_the_largest_first(client: Client, tmp_path: Path) -> None:
    rows = dict(plan_rows(planned(client, tmp_path)))
    holds = str(rows["contents"]).split(", ")
    assert holds[0].startswith("code/ ") and holds[0].endswith(" files)")
    assert any(item.startswith("job.json ") for item in holds)
    assert len(holds) < 8
