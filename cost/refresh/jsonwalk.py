"""Walks a JSON object of any size member by member: AWS's list of EC2 prices is hundreds of megabytes.

    walk = JsonWalk(chunks)
    for name in walk.members():
        if name == "products":
            for sku in walk.members():
                product = walk.value()
        else:
            walk.value()

Only the member at hand is in memory.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any

from cost.refresh.fetch import RefreshError, Truncated

MOST_MEMBER_CHARS = 16 * 2**20
_SPACE = " \t\r\n"


class JsonWalk:
    """A cursor over the text; raises Truncated when it ends too soon, RefreshError when it is not JSON."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._whole = False

    def members(self) -> Iterator[str]:
        """The names of the object that stands here; the caller takes each one's value before the next."""
        self._take("{")
        if self._peek() == "}":
            self._at += 1
            return
        while True:
            if self._peek() != '"':
                raise RefreshError("sent something else than JSON")
            name = str(self.value())
            self._take(":")
            yield name
            if self._take(",}") == "}":
                return

    def value(self) -> Any:
        """The value that stands here, whole."""
        self._peek()
        while True:
            try:
                found, end = self._json.raw_decode(self._text, self._at)
                # A number or a word at the end of what is here may go on.
                if end < len(self._text) or self._whole:
                    self._at = end
                    return found
            except json.JSONDecodeError:
                if self._whole:
                    raise Truncated("sent JSON that breaks off or is damaged") from None
            if len(self._text) - self._at > MOST_MEMBER_CHARS:
                raise RefreshError("sent JSON with an unexpectedly large part, or that is damaged")
            self._more()

    def _take(self, wanted: str) -> str:
        found = self._peek()
        if found not in wanted:
            raise RefreshError("sent something else than JSON")
        self._at += 1
        return found

    def _peek(self) -> str:
        """The next character that is no space."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._whole:
                raise Truncated("sent JSON that breaks off")
            self._more()

    def _more(self) -> None:
        # What grows with the member's size: a large one would otherwise be decoded once for every small chunk.
        wanted = max(1, len(self._text) - self._at)
        parts = [self._text[self._at :]]
        gained = 0
        while gained < wanted and not self._whole:
            chunk = next(self._chunks, None)
            self._whole = chunk is None
            try:
                part = self._utf8.decode(chunk or b"", final=self._whole)
            except UnicodeDecodeError:
                raise RefreshError("sent something else than UTF-8") from None
            parts.append(part)
            gained += len(part)
        self._text, self._at = "".join(parts), 0
