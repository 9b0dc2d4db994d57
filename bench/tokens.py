"""How long it takes to count a job's tokens: 100,000 rows one by one, as many long ones by a sample, and 10,000
rows from what was kept."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from cost.tokens import TokenCount, count
from launcher.home import cache
from launcher.spec import JobSpec
from train_entry.embedded import MODELS

ROWS, KEPT_ROWS = 100_000, 10_000
TARGET_S, KEPT_TARGET_S = 20.0, 0.05
"""The first is of processor time on all cores together: an idle machine with several takes less."""
SHORT, LONG = 38, 200
"""Most words of a prompt: 23 million characters in all, every row of which is counted, and 106 million."""
MODEL = "smollm2-135m"


def main() -> int:
    model = cache() / "models" / f"{MODEL}-{MODELS[MODEL].version}"
    if not model.is_dir():
        print("skipped: the embedded model is not unpacked here; make demo or make test does it")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "model").symlink_to(model)
        met = True
        for words, sampled in ((SHORT, False), (LONG, True)):
            _write(place / "many.jsonl", ROWS, words)
            took, processor_s, found = _count(place, "many.jsonl")
            assert bool(found.error) == sampled, "the rows are not what the line says"
            met = met and processor_s <= TARGET_S
            how = f"sampled, +-{100 * found.error:.1f} %" if sampled else "every row counted"
            print(
                f"{ROWS:,} rows, {found.total:,} tokens, {how}: {processor_s:.1f} s of processor, {took:.1f} s; "
                f"target {TARGET_S:.0f} s {'met' if processor_s <= TARGET_S else 'MISSED'}"
            )
        _write(place / "some.jsonl", KEPT_ROWS, 40)
        _count(place, "some.jsonl")
        again = min(_count(place, "some.jsonl")[0] for _ in range(5))
        kept = f"target {1000 * KEPT_TARGET_S:.0f} ms {'met' if again <= KEPT_TARGET_S else 'MISSED'}"
        print(f"{KEPT_ROWS:,} rows counted before: {1000 * again:.1f} ms; {kept}")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "")
    return int(not met or again > KEPT_TARGET_S)


def _write(path: Path, rows: int, longest: int) -> None:
    """Rows with prompts of up to `longest` words and answers of a quarter of that, each different."""
    draw = random.Random(0)
    words = Path(__file__).with_name("tokens.py").read_text(encoding="utf-8").split() + list(
        sys.stdlib_module_names
    )
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            prompt = " ".join(draw.choices(words, k=draw.randint(8, longest)))
            answer = " ".join(draw.choices(words, k=draw.randint(2, longest // 4)))
            file.write(json.dumps({"prompt": f"{number}: {prompt}", "completion": answer}) + "\n")


def _count(place: Path, name: str) -> tuple[float, float, TokenCount]:
    """(seconds, seconds of processor, the count)."""
    job = JobSpec.model_validate(
        {"name": "bench", "model": "model", "task": "generation", "data": {"train": name}}
    )  # fmt: skip
    began, busy = time.perf_counter(), time.process_time()
    found = count(job, folder=place, cache=place / "cache")
    return time.perf_counter() - began, time.process_time() - busy, found


if __name__ == "__main__":
    sys.exit(main())
