"""Jobs of the local backend that need no torch: real processes that fail at once, or sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backends.base import JobRef
from backends.local import LocalBackend
from launcher.client import Client
from launcher.planning import Planned
from launcher.spec import JobSpec

SLEEP = "import time\ntime.sleep(60)\n"


def planned(client: Client, folder: Path, **changes: Any) -> Planned:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    spec = {"name": "demo", "model": "org/m", "task": "generation", "data": {"train": "rows.jsonl"}, **changes}
    return client.plan(JobSpec.model_validate(spec), folder)


def sleeping(client: Client, tmp_path: Path) -> tuple[LocalBackend, JobRef, Planned]:
    """A submitted job whose entrypoint sleeps, as training would."""
    backend, plan = LocalBackend(client.home), planned(client, tmp_path / "project")
    backend.stage(plan.plan, lambda line: None)
    code = client.home / "jobs" / plan.plan.token / "input" / "code" / "train_entry" / "__main__.py"
    code.write_text(SLEEP)
    return backend, backend.submit(plan.plan), plan


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def folder_of(client: Client, ref: JobRef) -> Path:
    return client.home / "jobs" / ref.id
