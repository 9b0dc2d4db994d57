"""What the emulator's own tests run as a job: counts steps, keeps each, goes on where it was, obeys SIGTERM.

Hyperparameters: steps, step_s, deaf (1: ignores SIGTERM), exit, failure (text), say (a word of each line).
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

ML = Path("/opt/ml")


def main() -> int:
    config = json.loads((ML / "input/config/hyperparameters.json").read_text())
    me = json.loads((ML / "input/config/resourceconfig.json").read_text())["current_host"]
    kept = ML / "checkpoints" / f"{me}.txt"
    stopped: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        print(f"{me} got signal {number}", flush=True)
        stopped.append(number)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if config.get("deaf") else stop)
    done = int(kept.read_text()) if kept.exists() else 0
    print(f"{me} starts at {done}", flush=True)
    for step in range(done + 1, int(config.get("steps", 3)) + 1):
        time.sleep(float(config.get("step_s", 0.05)))
        if kept.parent.is_dir():
            kept.write_text(str(step))
        print(f"{me} {config.get('say', 'step')} {step}", flush=True)
        if stopped:
            (ML / "model/weights").write_text(f"stopped at {step}")
            return 143
    (ML / "model/sub").mkdir()
    (ML / "model/sub/weights").write_text(f"{me} done")
    (ML / "output/data/notes").write_text("noted")
    if config.get("failure"):
        (ML / "output/failure").write_text(config["failure"])
    return int(config.get("exit", 0))


if __name__ == "__main__":
    sys.exit(main())
