"""A job's lines from Cloud Logging: all its replicas, resumable after any line.

Entries arrive some seconds late and out of order, so every look goes back a while. A cursor is JSON, [nanoseconds
of the newest entry that was read, {mark of an entry read within OVERLAP_S before it: how much before}].
https://cloud.google.com/logging/docs/reference/v2/rest/v2/entries/list
"""

from __future__ import annotations

import calendar
import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from backends.base import LogLine
from backends.vertex.google import Google
from launcher.errors import ConfigError

OVERLAP_S = 20
PAGE = 1000
PIECE_BYTES = 16 * 1024
"""What a container's line is cut into on its way: a record of Docker's json-file log, whose form the entries have
(`attrs.tag`, messages with the line's end), holds no more. An evaluation of many labels is longer.
"""
SERVICE = "service"
"""The task of what Vertex itself says."""
DOING = "reading the job's log"
STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00)")
BILLION = 10**9


def lines(google: Google, number: str, since: datetime, cursor: str | None) -> Iterator[LogLine]:
    """The whole lines of job `number`, which was made at `since`, after `cursor`, in order of time."""
    newest, seen = _parse(cursor)
    start = newest - OVERLAP_S * BILLION if cursor else _nanoseconds(since.isoformat())
    begun: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for entry in _entries(google, number, start):
        if _mark(entry["insertId"]) in seen:
            continue
        task = entry.get("resource", {}).get("labels", {}).get("task_name") or SERVICE
        stream = task, entry.get("severity")  # stderr's lines may come between the pieces of one of stdout
        if _is_piece(entry):  # no cursor stands behind it before the whole line was told
            begun.setdefault(stream, []).append(entry)
            continue
        pieces = [*begun.pop(stream, ()), entry]
        seen |= {_mark(piece["insertId"]): _nanoseconds(piece["timestamp"]) for piece in pieces}
        at = _nanoseconds(entry["timestamp"])
        newest = max(newest, at)
        if len(seen) > 1:
            seen = {m: t for m, t in seen.items() if t >= newest - OVERLAP_S * BILLION}
        yield LogLine(
            text="".join(map(text_of, pieces)).rstrip("\r\n").replace("\n", "\\n"),
            source=task,
            cursor=json.dumps([newest, {m: newest - t for m, t in seen.items()}], separators=(",", ":")),
            time=datetime.fromtimestamp(at // BILLION, UTC) + timedelta(microseconds=at % BILLION // 1000),
        )


def last_errors(google: Google, number: str, since: datetime, count: int) -> list[str]:
    """The last lines of severity ERROR, oldest first: what the processes wrote to stderr.

    Not Vertex's own, task `service`: the job's error message says the same.
    """
    own = f'severity>=ERROR resource.labels.task_name!="{SERVICE}"'
    wanted = f"{_of_job(number, _nanoseconds(since.isoformat()))} {own}"
    body = {
        "resourceNames": [f"projects/{google.project}"], "filter": wanted, "orderBy": "timestamp desc",
        "pageSize": count,
    }  # fmt: skip
    found = google.ask("logging", "v2/entries:list", DOING, body).get("entries") or []
    return [text_of(entry).strip() for entry in reversed(found)]


def text_of(entry: Mapping[str, Any]) -> str:
    """What the process has said: Vertex's agent puts it into one of two fields."""
    return str(entry.get("jsonPayload", {}).get("message") or entry.get("textPayload") or "")


def _is_piece(entry: Mapping[str, Any]) -> bool:
    """Does the line go on in the task's next entry? Its last one ends with the line's end."""
    said = str(entry.get("jsonPayload", {}).get("message") or "")
    return not said.endswith("\n") and len(said.encode()) >= PIECE_BYTES


def _entries(google: Google, number: str, start: int) -> Iterator[dict[str, Any]]:
    body: dict[str, Any] = {
        "resourceNames": [f"projects/{google.project}"], "filter": _of_job(number, start),
        "orderBy": "timestamp asc", "pageSize": PAGE,
    }  # fmt: skip
    while True:
        page = google.ask("logging", "v2/entries:list", DOING, body)
        yield from page.get("entries") or ()
        if not page.get("nextPageToken"):
            return
        body = {**body, "pageToken": page["nextPageToken"]}


def _of_job(number: str, start: int) -> str:
    at = datetime.fromtimestamp(start // BILLION, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f'resource.type="ml_job" resource.labels.job_id="{number}" timestamp>="{at}.{start % BILLION:09d}Z"'


def _nanoseconds(stamp: str) -> int:
    """Of a time as Google writes it: to the nanosecond, which datetime does not hold."""
    match = STAMP.fullmatch(stamp)
    if match is None:
        raise ValueError(f"{stamp!r} is not a time in UTC")
    *parts, fraction = match.groups()
    return calendar.timegm(tuple(int(part) for part in parts)) * BILLION + int((fraction or "0").ljust(9, "0"))


def _mark(insert_id: str) -> str:
    return urlsafe_b64encode(blake2b(insert_id.encode(), digest_size=6).digest()).decode()


def _parse(cursor: str | None) -> tuple[int, dict[str, int]]:
    if cursor is None:
        return 0, {}
    try:
        newest, marks = json.loads(cursor)
        return int(newest), {str(mark): int(newest) - int(before) for mark, before in marks.items()}
    except (ValueError, TypeError, AttributeError) as exc:
        raise ConfigError(f"{cursor!r} is not a cursor of a job's log on Vertex", "launch logs JOB") from exc
