"""A job's lines from CloudWatch Logs: all streams of all its machines, resumable after any line.

A stream is JOB/algo-N-STAMP; a restarted machine gets a new one. A cursor is JSON, for each stream [token of the
page that is being read (null: the first), events read of it, events before it].
https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_GetLogEvents.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from backends.base import LogLine
from backends.sagemaker.aws import Aws
from launcher.errors import BackendError, ConfigError, JobNotFoundError

GROUP = "/aws/sagemaker/TrainingJobs"
DOING = "reading the job's log"


class Position(NamedTuple):
    """Behind an event of a stream."""

    token: str | None = None
    read: int = 0
    before: int = 0


class LogReader:
    """Reads jobs' logs in one region; remembers where pages ended, so that following does not read them again."""

    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._next_page: dict[tuple[str, Position], Position] = {}

    def lines(self, job: str, cursor: str | None) -> Iterator[LogLine]:
        """The whole lines after `cursor`, stream by stream in the order in which the streams began."""
        positions = _parse(cursor, job)
        for stream in self._streams(job):
            for event, position in self._events(stream, positions.get(stream, Position())):
                positions[stream] = position
                yield LogLine(
                    text=event["message"].rstrip("\r\n").replace("\n", "\\n"),
                    source=_source(stream),
                    cursor=json.dumps(positions, separators=(",", ":")),
                    time=datetime.fromtimestamp(event["timestamp"] / 1000, UTC),
                )

    def _streams(self, job: str) -> list[str]:
        """Names, first event first."""
        found: list[dict[str, Any]] = []
        try:
            asked = {"logGroupName": GROUP, "logStreamNamePrefix": f"{job}/"}
            for page in self._aws.pages("logs", "describe_log_streams", DOING, **asked):
                found += page.get("logStreams") or ()
        except JobNotFoundError:  # the account's first job makes the group
            return []
        ordered = sorted(
            found, key=lambda s: (s.get("firstEventTimestamp") or s["creationTime"], s["logStreamName"])
        )
        return [stream["logStreamName"] for stream in ordered]

    def _events(self, stream: str, at: Position) -> Iterator[tuple[dict[str, Any], Position]]:
        """The events after `at`, each with the position behind it."""
        last = at
        at = self._next_page.get((stream, at), at)
        while True:
            page, at = self._page(stream, at)
            for event in page["events"][at.read :]:
                last = at = at._replace(read=at.read + 1)
                yield event, at
            following = page["nextForwardToken"]
            # At a stream's end AWS gives back the token that it was asked with; an empty page is no end.
            ended = following == at.token
            if not ended:
                at = Position(following, 0, at.before + at.read)
            self._next_page[(stream, last)] = at
            if ended:
                return

    def _page(self, stream: str, at: Position) -> tuple[dict[str, Any], Position]:
        """The page that `at` is in. A token lives for a day only: with an old one it is counted from the start."""
        asked = {"logGroupName": GROUP, "logStreamName": stream, "startFromHead": True}
        more = {"nextToken": at.token} if at.token else {}
        try:
            return self._aws.call("logs", "get_log_events", DOING, expects="events", **asked, **more), at
        except BackendError as exc:
            if at.token is None or "InvalidParameter" not in exc.message:
                raise
        wanted, at = at.before + at.read, Position()
        while True:
            more = {"nextToken": at.token} if at.token else {}
            page = self._aws.call("logs", "get_log_events", DOING, expects="events", **asked, **more)
            count, following = len(page["events"]), page["nextForwardToken"]
            if at.before + count >= wanted or following == at.token:
                # Where fewer are there than were read, those that still come are new.
                return page, at._replace(read=min(count, wanted - at.before))
            at = Position(following, 0, at.before + count)


def _parse(cursor: str | None, job: str) -> dict[str, Position]:
    if cursor is None:
        return {}
    try:
        found = {str(k): (v[0], int(v[1]), int(v[2])) for k, v in json.loads(cursor).items()}
        return {k: Position(None if t is None else str(t), read, before) for k, (t, read, before) in found.items()}
    except (ValueError, TypeError, AttributeError, LookupError) as exc:
        raise ConfigError(f"{cursor!r} is not a cursor of {job}'s log", f"launch logs {job}") from exc


def _source(stream: str) -> str:
    """`job/algo-1-1700000000` -> `algo-1`."""
    return "-".join(stream.rpartition("/")[2].split("-")[:2])
