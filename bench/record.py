"""The record's write rate: events a second, each on disk when the call returns, against a bare append + fsync."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from launcher.events import Event
from launcher.store import JobRecord, Store

EVENTS = 2000
BATCHES = (1, 50)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        bare = _bare(Path(folder) / "bare.jsonl", 300)
        print(f"append + fsync     {bare:8.0f} lines/s")
        for batch in BATCHES:
            store = Store(Path(folder) / f"record-{batch}.db")
            job = JobRecord(
                id="bench", name="bench", backend="local", state="RUNNING", created=datetime.now(UTC),
                lineage="bench", bundle_sha256="", spec={},
            )  # fmt: skip
            store.add(job)
            rate = _events(store, batch, EVENTS if batch > 1 else 300)
            store.close()
            print(f"record, {batch:3} a write {rate:8.0f} events/s   {rate / bare:.2f} times the bare append")
    return 0


def _bare(path: Path, count: int) -> float:
    began = time.perf_counter()
    with path.open("ab") as file:
        for number in range(count):
            file.write(b'{"event": "step", "step": %d}\n' % number)
            file.flush()
            os.fsync(file.fileno())
    return count / (time.perf_counter() - began)


def _events(store: Store, batch: int, count: int) -> float:
    now = datetime.now(UTC)
    began = time.perf_counter()
    for start in range(0, count, batch):
        events = [
            Event("run", n, now, "step", {"step": n, "loss": 0.5, "tokens_per_s": 100.0})
            for n in range(start, start + batch)
        ]
        store.add_events("bench", events, str(start))
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
