"""What every node of a SkyPilot job runs, as bash: the environment, the training, and its words in the store.

The store tells what SkyPilot forgets when it takes a cluster down, and what it takes seconds to answer. It may be
a bucket that is mounted: such a folder takes whole new files, and neither appended lines nor renamed files. So a
node only ever adds files there:

jobs/TOKEN/told/node-RANK.log.BEGAN.PART       what it said since the part before, set-up and training, every start
jobs/TOKEN/told/node-RANK.start.WHEN           when training began
jobs/TOKEN/told/node-RANK.end.CODE.WHEN        how it ended
jobs/TOKEN/told/node-RANK.setup.CODE.WHEN      how set-up failed
jobs/TOKEN/told/cancel                         there since somebody asked the job to stop: each node looks for it

BEGAN and WHEN are milliseconds since 1970, PART counts from 000000.
"""

from __future__ import annotations

KILL_AFTER_S = 300
PATH_S, BUCKET_S = 2, 10
"""A part of the log goes out this often at least, onto a shared path and into a bucket."""
PYTHON = '"$HOME/launch-env-$(hostname)/bin/python"'
"""One environment a node: on Slurm every node has the same home folder."""
IMAGE_PYTHON = '"$(command -v python3 || command -v python)"'

BEGIN = """\
told={job}/told/node-${{{rank}:-0}}
now() {{ date +%s%3N; }}
mkdir -p {job}/told
said=$(mktemp)
exec {{bell}}<> <(:)
ship() {{
  local name=$told.log.$(now) sent=0 part=0 size pause=1 tries=0
  trap '' INT TERM
  while [ -n "$pause" ]; do
    read -rt "$pause" -u "$bell" && pause= || pause=$((SECONDS / 200 + 2 < {often} ? SECONDS / 200 + 2 : {often}))
    kill -0 $$ || pause=
    size=$(stat -c %s "$said")
    [ "$size" -gt "$sent" ] || continue
    until tail -c "+$((sent + 1))" "$said" | head -c "$((size - sent))" >"$name.$(printf %06d "$part")"; do
      [ -z "$pause" ] && [ "$((tries += 1))" -lt 10 ] || continue 2
      sleep 1
    done
    sent=$size part=$((part + 1))
  done
}}
ship >/dev/null 2>&1 &
shipping=$!
exec > >(trap '' INT TERM; exec tee "$said") 2>&1
saying=$!
finish() {{
  exec >&- 2>&-
  wait "$saying" || :
  echo >&"$bell"
  wait "$shipping" || :
  rm -f "$said"
}}
mark() {{
  local IFS=. name pause
  name=$told.$*.$(now)
  for pause in 2 4 8 16 0; do
    echo "$*" | cat >"$name" && return
    sleep "$pause"
  done
}}
"""
"""A mark comes when all words are there: `tee` ends with the last who holds its pipe, a ring of the bell ends the
shipping, and so does the end of the script where that was killed. A part goes out every 2 seconds at first, every
`often` in the end: a machine that is taken takes the words since then with it, and a bucket bills each. What could
not be written is written anew, under its name; `cat` tells of a mount that refuses a file at its close."""

SETUP = (
    BEGIN
    + """\
trap 'code=$?; finish; [ "$code" = 0 ] || mark setup "$code"' EXIT
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
mark start
export PYTHONPATH={inputs}/code PYTHONDONTWRITEBYTECODE=1
timeout --foreground --preserve-status --signal=TERM --kill-after={kill_after} {stop} \\
  {python} -m train_entry {{bell}}>&- &
child=$!
trap 'kill -TERM "$child"' TERM INT
(while sleep 2 && kill -0 "$child"; do
  [ ! -e {job}/told/cancel ] || {{ kill -TERM "$child"; break; }}
done) >/dev/null 2>&1 &
while kill -0 "$child" 2>/dev/null; do wait "$child" && code=0 || code=$?; done
trap '' TERM INT
finish
mark end "$code"
exit "$code"
"""
)
"""`timeout` passes SIGTERM on; --foreground keeps the job in the group that SkyPilot signals."""


def setup(job: str, inputs: str, often_s: int) -> str:
    """`job`: the job's folder in the store, as the node has it; `inputs`: its bundle; `often_s`: of log parts."""
    return SETUP.format(job=job, inputs=inputs, often=often_s, rank="SKYPILOT_SETUP_NODE_RANK")


def run(job: str, inputs: str, often_s: int, stop_s: int, image: bool) -> str:
    """`stop_s`: the hard stop; `image`: the node's own python runs the job, nothing was set up."""
    python = IMAGE_PYTHON if image else PYTHON
    return RUN.format(
        job=job, inputs=inputs, often=often_s, rank="SKYPILOT_NODE_RANK", kill_after=KILL_AFTER_S, stop=stop_s,
        python=python,
    )  # fmt: skip
