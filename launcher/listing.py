"""Many jobs brought up to date at once: every backend is asked beside the others, and none that is away twice."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from launcher.errors import CredentialsError, LaunchError, UnreachableError
from launcher.store import JobRecord

Looks = Callable[[], AbstractContextManager[Callable[[JobRecord], object]]]
PATIENCE_S = 20.0
"""How long one look at a job may take before its backend is given up: the SDKs themselves wait for minutes."""


@dataclass(frozen=True)
class Looked:
    """One backend's news: it has answered, or can't be asked (`why`), or has no more jobs (`over`)."""

    backend: str
    why: str | None = None
    over: bool = False
    bug: BaseException | None = None


def bring_up_to_date(records: Iterable[JobRecord], looks: Looks, patience_s: float = PATIENCE_S) -> dict[str, str]:
    """Look at each job that is not over and read to its end; backend -> why it can't be asked now.

    `looks` makes what looks at one job, once in each backend's own thread.
    """
    by_backend: dict[str, list[JobRecord]] = {}
    for record in records:
        if not record.never_started and not (record.over and record.drained):
            by_backend.setdefault(record.backend, []).append(record)
    news: queue.SimpleQueue[Looked] = queue.SimpleQueue()
    for name, jobs in by_backend.items():
        # Daemons: a look that hangs keeps nobody from leaving. What it writes is one transaction, whole or not.
        threading.Thread(target=_look_at, args=(name, jobs, looks, news), daemon=True).start()
    silent: dict[str, str] = {}
    for one in _heard(news, set(by_backend), patience_s):
        if one.bug is not None:
            raise one.bug
        if one.why is not None:
            silent[one.backend] = one.why
    return silent


def _look_at(name: str, jobs: Iterable[JobRecord], looks: Looks, news: queue.SimpleQueue[Looked]) -> None:
    try:
        with looks() as look:
            for record in jobs:
                try:
                    look(record)
                except (CredentialsError, UnreachableError) as exc:
                    news.put(Looked(name, why=exc.message))
                    break
                except LaunchError:
                    pass  # this job stands there as it was seen last
                news.put(Looked(name))
    except BaseException as exc:  # noqa: BLE001 - raised again where the user can see it
        news.put(Looked(name, bug=exc))
    news.put(Looked(name, over=True))


def _heard(news: queue.SimpleQueue[Looked], pending: set[str], patience_s: float) -> Iterator[Looked]:
    """News until every backend is over, or has said nothing for `patience_s`."""
    last = dict.fromkeys(pending, time.monotonic())
    while last:
        try:
            one = news.get(timeout=max(0.01, min(last.values()) + patience_s - time.monotonic()))
        except queue.Empty:
            for name in [n for n, moment in last.items() if time.monotonic() - moment >= patience_s]:
                del last[name]
                yield Looked(name, why=f"no answer within {patience_s:g} s")
            continue
        if one.backend not in last:
            continue  # given up already
        if one.over:
            del last[one.backend]
        else:
            last[one.backend] = time.monotonic()
        yield one
