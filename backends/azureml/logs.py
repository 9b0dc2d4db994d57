"""A job's lines from the files that its machines write, resumable after any line.

The run's details name the files with a signed URL each; they are read on from a byte (Range). azure-ai-ml's own
stream reads the first rank only, again and again, and fails on a signed or keyless datastore (1.35.2).

A cursor is JSON: file -> [bytes read, hash of the last of them]. A machine that takes a spot job over may write
its file anew under the same name, by the next look as long as the old one. Its ETag would say nothing: it changes
with every line that is added. So where the bytes before the cursor are others than those that were read, the file
is read from its beginning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from hashlib import sha256

from backends.azureml.azure import Azure
from backends.base import LogLine
from launcher.errors import ConfigError, JobNotFoundError

MOST = 4 * 2**20
"""Bytes of one request."""
TAIL = 256
"""Bytes before a cursor that must still be what they were."""
FILE = re.compile(r"(?:.*/)?user_logs/std_log(?:_process_0*(\d+))?\.txt")
DOING = "reading the job's log"

Place = tuple[int, str]
"""Bytes read of a file, and the hash of the last of them."""
BEGINNING: Place = (0, "")


def lines(azure: Azure, job: str, files: Mapping[str, str], over: bool, cursor: str | None) -> Iterator[LogLine]:
    """The whole lines after `cursor`, file by file. `files`: name -> signed URL; `over`: no more will come."""
    places = _parse(cursor, job)
    for name in sorted(files, key=lambda name: (_rank(name), name)):
        if FILE.fullmatch(name) is None:
            continue
        for text, end in _of_file(azure, files[name], places.get(name, BEGINNING), over):
            places[name] = end
            yield LogLine(
                text=text, source=f"node-{_rank(name)}", cursor=json.dumps(places, separators=(",", ":"))
            )


def _of_file(azure: Azure, url: str, place: Place, over: bool) -> Iterator[tuple[str, Place]]:
    """(line, the place behind it) from `place` on."""
    end, expected = place
    known = min(end, TAIL)
    try:
        got = azure.bytes_from(url, end - known, MOST, DOING)
        tail, kept = got[:known], got[known:]
        if known and _hash(tail) != expected:  # another file
            end, tail, kept = 0, b"", (got := azure.bytes_from(url, 0, MOST, DOING))
        while True:
            *whole, kept = kept.split(b"\n")
            for line in whole:
                end, tail = end + len(line) + 1, (tail + line + b"\n")[-TAIL:]
                yield _text(line), (end, _hash(tail))
            if len(got) < MOST:
                break
            got = azure.bytes_from(url, end + len(kept), MOST, DOING)
            kept += got
    except JobNotFoundError:  # listed before it is there
        return
    if kept and over:
        yield _text(kept), (end + len(kept), _hash((tail + kept)[-TAIL:]))


def _hash(tail: bytes) -> str:
    return sha256(tail).hexdigest()[:16]


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", errors="replace").replace("\n", "\\n")


def _rank(name: str) -> int:
    found = FILE.fullmatch(name)
    return int(found[1] or 0) if found else 0


def _parse(cursor: str | None, job: str) -> dict[str, Place]:
    if cursor is None:
        return {}
    try:
        return {str(name): (int(end), str(mark)) for name, (end, mark) in json.loads(cursor).items()}
    except (ValueError, TypeError, AttributeError) as exc:
        raise ConfigError(f"{cursor!r} is not a cursor of {job}'s log", f"launch logs {job}") from exc
