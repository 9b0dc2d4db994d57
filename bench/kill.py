"""kill -9 and SIGTERM at random moments of whole starts, entrypoint and all: `python -m bench.kill [--kills 50]`.

After every kill: each checkpoint that was told of is whole, each event that was printed is in the file, and
SIGTERM ended with 143. In the end the job is, bit for bit, its twin that nobody disturbed. The seed is printed;
--seed repeats a run. Takes about 10 s a kill, in the training environment that make test builds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 150


def main() -> int:
    """The rounds themselves run where torch is."""
    from backends.local.environment import TrainingEnvironment
    from launcher.home import cache

    python = TrainingEnvironment(cache()).make(print)
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests/train")))
    command = [str(python), str(Path(__file__)), *sys.argv[1:]]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def rounds() -> None:
    """Kill so often, then let the job end and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    asked = parser.parse_args()
    print(f"seed {asked.seed}, {asked.kills} kills, {time.strftime('%Y-%m-%d')}", flush=True)
    root = Path(mkdtemp(prefix="finelaunch-kill-"))
    job, twin = (_job(root, name) for name in ("job", "twin"))
    began = time.monotonic()
    assert twin.run()[0] == 0
    whole_s, draw, reached = time.monotonic() - began, random.Random(asked.seed), 0
    for number in range(1, asked.kills + 1):
        by = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        after_s = draw.uniform(0, 1.1 * whole_s)
        code, log = _ended(job, by, after_s)
        reached = _check(job, log, reached)
        print(
            f"{number:3} {by.name} after {after_s:5.1f} s: exit {code:4}, checkpoint of step {reached}", flush=True
        )
        assert code in ((0, -signal.SIGKILL) if by == signal.SIGKILL else (0, 143, -signal.SIGTERM))
        if code == 0:  # it was done before: once more from the beginning
            _compare(job, twin)
            shutil.rmtree(job.root)
            job, reached = _job(root, "job"), 0
    code, log = job.run()
    assert code == 0, log
    _compare(job, twin)
    print(f"nothing lost; the end is the same, bit for bit ({time.monotonic() - began:.0f} s in all)")
    shutil.rmtree(root)


def _job(root: Path, name: str) -> Any:
    import tiny

    model = root / "model"
    if not model.exists():
        tiny.make_model(model)
    train = {"max_steps": STEPS, "epochs": 1e4, "checkpoint_steps": 5, "evals_per_epoch": 1}
    description = tiny.job_dict(model, train=train, eval={"baseline": True})
    return tiny.Job(root / name, description, tiny.rows(24), tiny.rows(8, seed=1))


def _ended(job: Any, by: signal.Signals, after_s: float) -> tuple[int, str]:
    """(exit status, log) of a start that is killed: SIGKILL takes the machine, SIGTERM goes to the entrypoint."""
    process = job.start()
    try:
        log, _ = process.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        if by == signal.SIGKILL:
            os.killpg(process.pid, by)
        else:
            process.send_signal(by)
        log, _ = process.communicate(timeout=120)
    return process.returncode, log


def _check(job: Any, log: str, reached: int) -> int:
    """The step of the newest checkpoint. Fails when something that was finished is lost."""
    from train_entry.checkpoint import newest_complete

    path = job.outputs / "events.jsonl"
    written = set(path.read_text(encoding="utf-8").split("\n")) if path.exists() else set()
    printed = [line.partition("::launch:: ")[2] for line in log.split("\n")[:-1] if "::launch:: {" in line]
    lost = [line for line in printed if line not in written]
    assert not lost, f"events that were printed and are not in the file: {lost}"
    told = [e["step"] for e in map(json.loads, printed) if e["event"] == "checkpoint"]
    manifests = sorted(job.checkpoints.glob("step-*/manifest.json"))
    parts = json.loads(manifests[-1].read_text(encoding="utf-8"))["job"] if manifests else {}
    found = newest_complete(job.checkpoints, parts)
    step = found.step if found else 0
    assert step >= max([reached, *told]), f"step {max([reached, *told])} was checkpointed, {step} is there"
    return step


def _compare(job: Any, twin: Any) -> None:
    assert job.weights() == twin.weights(), "the end is another"


if __name__ == "__main__":
    sys.exit(
        main() if __spec__ is not None else rounds()
    )  # by `-m` in the launcher's environment, by its path there
