"""Jobs of the tiny model, and the killing of their processes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

LABELS = ("Critical", "High", "Medium", "Low")


def write_job(folder: Path, model: Path, **train: object) -> Path:
    """A job file of 48 rows for the tiny model; `train` are lines of its train section."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, start, count in (("train", 0, 48), ("eval", 1000, 8)):
        rows = [
            {
                "instruction": f"ticket {n}: the {'server' if n % 2 else 'screen'} is slow",
                "response": LABELS[n % 4],
            }
            for n in range(start, start + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = {"epochs": 1, "batch_size": 8, "early_stopping": "null", **train}
    lines = "".join(f"  {k}: {v}\n" for k, v in settings.items())
    (folder / "launch.yaml").write_text(
        f"name: tiny\nmodel: {json.dumps(str(model))}\ntask: classification\n"
        f"data: {{train: train.jsonl, eval: eval.jsonl}}\ntuning: {{kind: lora, r: 4}}\n"
        f"train:\n{lines}eval: {{generation: false}}\n"
        # Jobs share the cores; threads that wait for each other take many times as long.
        'env: {LAUNCH_THREADS: "1"}\n'
    )
    return folder / "launch.yaml"


def family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return []


def kill_trainer(home: Path, job: str, whole: bool = True) -> None:
    """kill -9 of the job's processes (`whole`), or of the trainer below the entrypoint alone."""
    found = family(json.loads((home / "jobs" / job / "process.json").read_text())["pid"])
    for process in found if whole else found[:-1]:
        process.send_signal(signal.SIGKILL)


def wait_for(said: Callable[[], bool], seconds: float = 120, every: float = 0.2) -> None:
    """`every`: seconds between two looks; a look through the command line takes a core for seconds."""
    until = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(every)
