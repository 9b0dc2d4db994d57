"""What every node of a SkyPilot job runs, as bash: the job's environment, the training, and marks in the store.

The store tells what SkyPilot forgets when it takes a cluster down, and what it takes seconds to answer:

jobs/TOKEN/logs/node-RANK.log     all that the node said, set-up and training, every start of it
jobs/TOKEN/marks/node-RANK        a line each: `start SECONDS`, `end CODE SECONDS`, `setup CODE SECONDS` (failed)
jobs/TOKEN/cancel                 there since somebody asked the job to stop: each node looks for it
"""

from __future__ import annotations

KILL_AFTER_S = 300
PYTHON = '"$HOME/launch-env-$(hostname)/bin/python"'
"""One environment a node: on Slurm every node has the same home folder."""
IMAGE_PYTHON = '"$(command -v python3 || command -v python)"'

BEGIN = """\
job={job} rank=${{{rank}:-0}}
mkdir -p "$job/logs" "$job/marks"
exec > >(trap '' INT TERM; exec tee -a "$job/logs/node-$rank.log") 2>&1
tee=$!
mark() {{ exec >&- 2>&-; wait "$tee"; echo "$*" "$(date +%s)" >>"$job/marks/node-$rank"; }}
"""
"""The mark comes when the log is written: `tee` ends with the last who holds its pipe."""

SETUP = (
    BEGIN
    + """\
trap 'code=$?; [ "$code" = 0 ] || mark setup "$code"' EXIT
set -e
folder="$HOME/launch-env-$(hostname)"
uv="$HOME/.local/bin/uv"
[ -x "$folder/bin/python" ] || "$uv" venv --seed --python 3.11 "$folder"
"$uv" pip install --python "$folder/bin/python" -r {inputs}/code/train_entry/requirements.txt
"""
)
"""uv is where SkyPilot puts it on every machine (SKY_UV_INSTALL_DIR in sky/skylet/constants.py)."""

RUN = (
    BEGIN
    + """\
echo "start $(date +%s)" >>"$job/marks/node-$rank"
export PYTHONPATH={inputs}/code PYTHONDONTWRITEBYTECODE=1
timeout --foreground --preserve-status --signal=TERM --kill-after={kill_after} {stop} \\
  {python} -m train_entry &
child=$!
trap 'kill -TERM "$child"' TERM INT
(while sleep 1 && kill -0 "$child"; do
  [ ! -e "$job/cancel" ] || {{ kill -TERM "$child"; break; }}
done) >/dev/null 2>&1 &
while kill -0 "$child" 2>/dev/null; do wait "$child" && code=0 || code=$?; done
trap '' TERM INT
mark end "$code"
exit "$code"
"""
)
"""`timeout` passes SIGTERM on; --foreground keeps the job in the group that SkyPilot signals."""


def setup(job: str, inputs: str) -> str:
    """`job`: the job's folder in the store, as the node has it; `inputs`: its bundle."""
    return SETUP.format(job=job, inputs=inputs, rank="SKYPILOT_SETUP_NODE_RANK")


def run(job: str, inputs: str, stop_s: int, image: bool) -> str:
    """`stop_s`: the hard stop; `image`: the node's own python runs the job, nothing was set up."""
    python = IMAGE_PYTHON if image else PYTHON
    return RUN.format(
        job=job, inputs=inputs, rank="SKYPILOT_NODE_RANK", kill_after=KILL_AFTER_S, stop=stop_s, python=python
    )
