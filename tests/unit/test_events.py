"""The event stream: written once, known again in any log."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from launcher.events import from_line
from train_entry.events import PREFIX, EventWriter, parse


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_what_is_written_to_file_and_stdout_is_the_same_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EventWriter(tmp_path / "events.jsonl", "r1").emit("eval", which="tuned", metrics={"größe": 0.5})
    (written,) = lines(tmp_path / "events.jsonl")
    shown = capsys.readouterr().out
    assert shown == f"{PREFIX}{written}\n"
    event = from_line(shown)
    assert event is not None
    assert (event.run, event.seq, event.name) == ("r1", 0, "eval")
    assert event.fields == {"which": "tuned", "metrics": {"größe": 0.5}}
    assert event.time.tzinfo is UTC
    assert event.as_json() == {**json.loads(written), "time": event.as_json()["time"]}
    assert datetime.fromisoformat(event.as_json()["time"]) == event.time


def test_a_vendors_prefix_before_ours_does_not_hide_the_event() -> None:
    line = (
        '2026-05-01 12:00:00 [algo-1] ::launch:: {"run":"r","seq":1,"time":"2026-05-01T12:00:00Z","event":"step"}'
    )
    event = from_line(line)
    assert event is not None and event.name == "step"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "an ordinary line",
        PREFIX,
        f'{PREFIX}{{"run": "r", "seq": 1, "time": "2026-05-01T12:00:00Z", "event": "st',
        f"{PREFIX}[1, 2]",
        f'{PREFIX}{{"seq": 1, "event": "step", "time": "2026-05-01T12:00:00Z"}}',
        f'{PREFIX}{{"run": "r", "seq": "x", "event": "step", "time": "2026-05-01T12:00:00Z"}}',
        f'{PREFIX}{{"run": "r", "seq": 1, "event": "step", "time": "yesterday"}}',
        f'{PREFIX}{{"run": "r", "seq": 1, "event": "step", "time": 5}}',
    ],
)
def test_a_foreign_or_torn_line_is_no_event(line: str) -> None:
    assert from_line(line) is None


def test_ranks_of_one_start_number_on_and_another_start_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for run, name in (("r1", "phase"), ("r1", "step"), ("r2", "phase")):
        EventWriter(path, run).emit(name)
    found = [json.loads(line) for line in lines(path)]
    assert [(e["run"], e["seq"]) for e in found] == [("r1", 0), ("r1", 1), ("r2", 0)]


def test_a_torn_last_line_does_not_take_the_next_event_with_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventWriter(path, "r1").emit("step", step=1)
    with path.open("a") as file:
        file.write('{"run": "r1", "seq": 1, "ev')
    EventWriter(path, "r2").emit("resumed", step=1)
    whole = [parse(f"{PREFIX}{line}") for line in lines(path)]
    assert [e and e["event"] for e in whole] == ["step", None, "resumed"]


def test_a_number_that_json_lacks_is_an_error_not_a_broken_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        EventWriter(tmp_path / "events.jsonl", "r1").emit("step", loss=float("nan"))
    assert not (tmp_path / "events.jsonl").exists()
