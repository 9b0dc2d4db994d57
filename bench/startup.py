"""Start-up: CPU time of `launch --help` against a bare `import click`, in one run. Target: at most 1.5 times."""

from __future__ import annotations

import resource
import subprocess
import sys

RUNS = 25
TARGET = 1.5
HEAVY = ("yaml", "pydantic", "rich", "httpx", "tokenizers", "sqlite3", "torch", "boto3", "google", "azure", "sky")


def main() -> int:
    bare = [sys.executable, "-c", "import click"]
    ours = [
        sys.executable,
        "-c",
        "import sys; sys.argv = ['launch', '--help']; import launcher.cli as c; c.main()",
    ]
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(RUNS):  # by turns, so that noise meets both
        times["bare"].append(_cpu_s(bare))
        times["ours"].append(_cpu_s(ours))
    lowest = {name: min(found) for name, found in times.items()}
    ratio = lowest["ours"] / lowest["bare"]
    print(f"import click   {lowest['bare'] * 1000:6.1f} ms CPU (lowest of {RUNS})")
    print(f"launch --help  {lowest['ours'] * 1000:6.1f} ms CPU   {ratio:.2f} times; target {TARGET}")
    heavy = _heavy()
    print(f"heavy modules loaded by --help: {', '.join(heavy) or 'none'}")
    return int(ratio > TARGET or bool(heavy))


def _cpu_s(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _heavy() -> list[str]:
    """What --help loads itself: a .pth file of another package may load more into every Python."""
    code = (
        "import sys; before = set(sys.modules); sys.argv = ['launch', '--help']\nimport launcher.cli as c\n"
        "try: c.main()\nexcept SystemExit: pass\nprint('MODULES', *sys.modules.keys() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {m.split(".")[0] for m in done.stdout.split("MODULES", 1)[1].split()}
    return sorted(loaded & set(HEAVY))


if __name__ == "__main__":
    sys.exit(main())
