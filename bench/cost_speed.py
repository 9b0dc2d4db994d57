"""The preview's own cost: CPU seconds of `launch cost --all`, and of pricing 50,000 offers for one job.

Targets: 0.6 s for 10,000 rows whose tokens were counted before, 1 s for the offers. The command is run twice: with
its modules compiled, as pip leaves them, and with the project's own compiled anew each time, as where
PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from decimal import Decimal
from pathlib import Path

from cost.calibration import Calibration
from cost.estimate import Estimator
from cost.gpus import GPUS
from cost.offers import Offer
from cost.preview import Candidate, compare
from cost.prices import Prices, Quote, Row
from cost.shapes import known_shape
from cost.tokens import TokenCount
from cost.work import work_of
from launcher.spec import JobSpec

ROWS, OFFERS, RUNS = 10_000, 50_000, 7
LAUNCH = "import sys; from launcher.cli import main; sys.exit(main())"
"""What the script `launch` does that pip makes."""
MOST_PREVIEW_S, MOST_OFFERS_S = 0.6, 1.0


def main() -> int:
    found = [
        _line("launch cost --all, compiled", preview_s(True), MOST_PREVIEW_S),
        _line("launch cost --all, not compiled", preview_s(False), MOST_PREVIEW_S),
        _line(f"{OFFERS:,} offers for one job, cold", offers_s(), MOST_OFFERS_S),
    ]
    print(f"lowest of {RUNS}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    return int(not all(found))


def _line(what: str, took_s: float, target_s: float) -> bool:
    met = took_s <= target_s
    print(f"{what:34s} {took_s:6.3f} s CPU; target {target_s:g} {'met' if met else 'MISSED'}")
    return met


def preview_s(compiled: bool) -> float:
    """CPU seconds of the whole command, its children included, once the tokens are in the cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = ({"prompt": f"ticket {n}: " + "my router is slow " * 20, "completion": "High"} for n in range(ROWS))
        (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        spec = {"name": "speed", "model": "meta-llama/Llama-3.1-8B", "task": "generation",
                "data": {"train": "rows.jsonl"}}  # fmt: skip
        (folder / "launch.yaml").write_text(json.dumps(spec))
        folders = {f"LAUNCH_{part}": str(folder / part) for part in ("HOME", "CACHE_DIR", "CONFIG_DIR")}
        env = {**os.environ, **folders, "HF_HUB_OFFLINE": "1"}
        # An empty text is no setting.
        env |= {"PYTHONDONTWRITEBYTECODE": "" if compiled else "1"}
        if compiled:
            env["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        command = [sys.executable, "-c", LAUNCH, "cost", str(folder / "launch.yaml"), "--all"]
        return min([_cpu_s(command, env) for _ in range(RUNS + 1)][1:])


def _cpu_s(command: list[str], env: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def offers_s() -> float:
    """CPU seconds to compare as many machines for one job, each with a price and a name of its own."""
    gpus = [gpu for gpu in GPUS if gpu not in ("B300", "GB300")]
    names = [(f"machine-{n}", gpus[n % len(gpus)], 2 ** (n % 4)) for n in range(OFFERS)]
    quote = Quote(hourly=Decimal("1.25"), as_of=date(2026, 1, 1), url="https://example.com", origin="bundled")
    rows = tuple(
        Row(provider="gcp", instance_type=kind, region="us-1", gpu=gpu, gpus=count, on_demand=quote)
        for kind, gpu, count in names
    )
    offers = [
        Candidate(offer=Offer(backend="vertex", instance_type=kind, gpu=gpu, gpus=count))
        for kind, gpu, count in names
    ]
    job = JobSpec.model_validate(
        {"name": "speed", "model": "meta-llama/Llama-3.1-8B", "task": "generation", "data": {"train": "r.jsonl"}}
    )
    lengths = tuple(range(20, 1020))
    counted = TokenCount(lengths=lengths, answers=lengths[:500], rows=ROWS, total=5_200_000)
    work, found = work_of(job, known_shape(job.model.id), counted), []
    for _ in range(RUNS):
        estimator = Estimator(work=work, prices=Prices(rows=rows), calibrations=_none)
        begun = time.process_time()
        preview = compare(estimator, offers)
        found.append(time.process_time() - begun)
        assert all(line.estimate.total for line in preview.lines)
    return min(found)


def _none(gpu: str, kind: str, stack: str) -> Calibration | None:
    return None


if __name__ == "__main__":
    sys.exit(main())
