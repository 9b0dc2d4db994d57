#!/usr/bin/env bash
# down.sh FOLDER: end the cluster that up.sh FOLDER made, and all that runs in it; its files stay.
set -uo pipefail
pid=$(cat "$1/pid") || exit 0
kill "$pid" 2>/dev/null  # unshare: what it started in the namespace goes with it
for _ in $(seq 80); do
  kill -0 "$pid" 2>/dev/null || exit 0
  sleep 0.1
done
kill -9 "$pid"
