#!/usr/bin/env bash
# up.sh FOLDER PACKAGES NODES PORT PYTHON: a Slurm cluster with a login node at 127.0.0.1:PORT, until down.sh FOLDER.
# Root only. FOLDER/key is the login's key (user skyjob); FOLDER/root/srv is the nodes' /srv; PACKAGES as
# packages.py makes them; PYTHON trains.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
mkdir -p "$folder"
mkfifo "$folder/hold"
setsid unshare --mount --pid --uts --fork --mount-proc --kill-child \
  bash "$here/inside.sh" "$@" <>"$folder/hold" >"$folder/said" 2>"$folder/errors" &
echo $! >"$folder/pid"
for _ in $(seq 120); do
  grep -q '^ready' "$folder/said" && exit 0
  kill -0 "$(cat "$folder/pid")" 2>/dev/null || break
  sleep 0.25
done
cat "$folder/errors" >&2
exit 1
