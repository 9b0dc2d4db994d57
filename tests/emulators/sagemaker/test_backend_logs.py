"""The SageMaker backend's reading of CloudWatch Logs: pages, tokens, cursors."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from backends.sagemaker.aws import Aws
from backends.sagemaker.logs import GROUP, LogReader
from tests.emulators.sagemaker.conftest import Account


class Stream:
    """A job's log with one stream; `say` adds lines."""

    def __init__(self, account: Account, job: str) -> None:
        self.job, self.name = job, f"{job}/algo-1-1"
        self._client, self._said, self._began = account.aws.client("logs"), 0, int(time.time() * 1000)
        with contextlib.suppress(self._client.exceptions.ResourceAlreadyExistsException):
            self._client.create_log_group(logGroupName=GROUP)
        self._client.create_log_stream(logGroupName=GROUP, logStreamName=self.name)

    def say(self, *lines: str) -> None:
        events = [{"timestamp": self._began + n, "message": line} for n, line in enumerate(lines, self._said)]
        self._said += len(lines)
        self._client.put_log_events(logGroupName=GROUP, logStreamName=self.name, logEvents=events)


@pytest.fixture
def stream(account: Account, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Stream:
    for name, value in account.aws.environment.items():
        monkeypatch.setenv(name, value)
    return Stream(account, f"log-{abs(hash(request.node.name))}")


@pytest.fixture
def reader(stream: Stream, account: Account) -> LogReader:
    return LogReader(Aws(account.aws.region))


def read(reader: LogReader, stream: Stream, cursor: str | None = None) -> tuple[list[str], str | None]:
    """The lines after `cursor`, and the cursor behind the last."""
    lines = list(reader.lines(stream.job, cursor))
    return [line.text for line in lines], lines[-1].cursor if lines else cursor


def pages_read(account: Account) -> int:
    return sum(call.operation == "GetLogEvents" for call in account.aws.calls)


def test_lines_behind_empty_pages_are_read(reader: LogReader, stream: Stream, account: Account) -> None:
    stream.say("one", "two")
    account.aws.set(empty_log_pages=3)
    lines, cursor = read(reader, stream)
    assert lines == ["one", "two"]
    stream.say("three")
    account.aws.set(empty_log_pages=2)
    assert read(reader, stream, cursor)[0] == ["three"]


def test_an_empty_log_ends_and_goes_on_where_it_ended(reader: LogReader, stream: Stream, account: Account) -> None:
    assert read(reader, stream) == ([], None)
    before = pages_read(account)
    assert read(reader, stream) == ([], None)
    assert pages_read(account) - before == 1, "it does not start again at the first page"
    stream.say("one")
    assert read(reader, stream)[0] == ["one"]


def test_the_token_behind_an_empty_page_is_kept(reader: LogReader, stream: Stream, account: Account) -> None:
    stream.say("one")
    account.aws.set(empty_log_pages=2)
    _, cursor = read(reader, stream)
    before = pages_read(account)
    assert read(reader, stream, cursor) == ([], cursor)
    assert pages_read(account) - before == 1
    stream.say("two")
    lines, cursor = read(reader, stream, cursor)
    assert lines == ["two"]
    assert read(LogReader(Aws(account.aws.region)), stream, cursor)[0] == [], "the cursor is good elsewhere, too"


def test_an_old_token_is_counted_from_the_start_across_empty_pages(
    reader: LogReader, stream: Stream, account: Account
) -> None:
    stream.say("one", "two", "three")
    account.aws.set(empty_log_pages=2)
    assert read(reader, stream, json.dumps({stream.name: ["too-old", 1, 1]}))[0] == ["three"]


def test_lines_that_were_never_there_are_not_taken_for_read(reader: LogReader, stream: Stream) -> None:
    stream.say("one", "two")
    lines, _ = read(reader, stream, json.dumps({stream.name: ["too-old", 2, 3]}))
    assert lines == []
    stream.say("three")
    lines, cursor = read(reader, stream, json.dumps({stream.name: ["too-old", 2, 3]}))
    assert lines == ["three"]
    assert json.loads(cursor or "")[stream.name][1:] == [1, 2]
