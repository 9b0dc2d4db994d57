"""One GET that is worth trusting: bounded, timed, tried again when the vendor is busy, whole or an error."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
ATTEMPTS = 4
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Who asks for more patience than this is asked again by the user, later."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
MOST_PAGE_BYTES = 64 * 2**20
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class RefreshError(Exception):
    """A price list could not be read; says in words what the vendor answered."""


class NotSetUp(RefreshError):
    """What the reading needs (a key, an environment) is not there; nobody was asked."""


class Truncated(RefreshError):
    """The body ends before the document does."""


class _Busy(Exception):
    """The vendor asks to be asked again; `pause_s` if it says when."""

    def __init__(self, what: str, pause_s: float | None = None) -> None:
        super().__init__(what)
        self.pause_s = pause_s


@dataclass(frozen=True)
class Fetch:
    """GET with retries through one connection pool. `pause` waits; tests don't."""

    client: httpx.Client
    pause: Callable[[float], None] = time.sleep

    def json(
        self, url: str, params: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """The JSON document at `url`, numbers with a point as Decimal. Raises RefreshError."""
        return self.stream(url, _document, params, headers)

    def stream(
        self, url: str, read: Callable[[Iterable[bytes]], T], params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:  # fmt: skip
        """What `read` makes of the body, in chunks; it may stop before the end. Raises RefreshError.

        `read` is called anew, with the whole body, when an attempt breaks off.
        """
        place = url.split("?")[0]  # without what may be long or private
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._once(url, read, params, headers)
            except _Busy as exc:
                pause = FIRST_PAUSE_S * 2 ** (attempt - 1) if exc.pause_s is None else exc.pause_s
                if pause > LONGEST_PAUSE_S:
                    raise RefreshError(f"{place} {exc} and asks to wait {pause:.0f} s: try again later") from exc
                if attempt == ATTEMPTS:
                    raise RefreshError(f"{place} {exc}, {ATTEMPTS} times") from exc
                self.pause(pause)
            except RefreshError as exc:
                raise RefreshError(f"{place} {exc}") from exc
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self, url: str, read: Callable[[Iterable[bytes]], T], params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
    ) -> T:  # fmt: skip
        import httpx

        # None keeps the query that `url` has; an empty mapping would remove it.
        try:
            with self.client.stream("GET", url, params=params or None, headers=headers) as response:
                if response.status_code in RETRIED:
                    raise _Busy(f"answered {response.status_code}", _retry_after(response.headers))
                if response.status_code != 200:
                    raise RefreshError(f"answered {response.status_code} {_said(response)}".rstrip())
                return read(response.iter_bytes())
        except Truncated as exc:
            raise _Busy(str(exc)) from exc
        except httpx.TimeoutException as exc:
            raise _Busy("does not answer in time") from exc
        except httpx.RemoteProtocolError as exc:
            raise _Busy(f"broke off: {exc}") from exc
        except httpx.ConnectError as exc:  # no network: at once, not after three pauses
            raise RefreshError(f"can't be reached: {exc}") from exc
        except httpx.TransportError as exc:
            raise _Busy(f"can't be reached: {exc}") from exc
        except httpx.DecodingError as exc:
            raise _Busy(f"sent a damaged body: {exc}") from exc
        except httpx.InvalidURL as exc:
            raise RefreshError(f"is no address: {exc}") from exc


@contextlib.contextmanager
def fetcher(pause: Callable[[float], None] = time.sleep) -> Iterator[Fetch]:
    """A Fetch whose connections are closed at the end. Redirects are not followed: a key might go along."""
    import httpx

    timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    with httpx.Client(timeout=timeout, headers={"Accept": "application/json"}) as client:
        yield Fetch(client, pause)


def _document(chunks: Iterable[bytes]) -> Any:
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > MOST_PAGE_BYTES:
            raise RefreshError(f"sent more than {MOST_PAGE_BYTES >> 20} MiB in one page")
    try:
        return json.loads(content, parse_float=Decimal)
    except ValueError as exc:
        # A proxy's page of HTML is no JSON from its first character on.
        if not content.lstrip().startswith((b"{", b"[")):
            raise RefreshError("sent something else than JSON") from exc
        raise Truncated("sent JSON that breaks off or is damaged") from exc


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a number or a date (RFC 9110, 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _said(response: httpx.Response) -> str:
    """The vendor's own message, one short line."""
    try:
        body = json.loads(response.read())
        error = body.get("error") or body.get("Error") or {}
        text = error.get("message") or error.get("Message") or ""
    except (ValueError, AttributeError):
        text = ""
    return " ".join(str(text).split())[:200]
