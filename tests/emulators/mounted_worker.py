"""What backends/skypilot/worker.py answers, with a process of this machine for the machine of a cloud.

No test can have a cloud's machine from SkyPilot. Here a task's set-up and run are bash on one node: the bucket's
bundle copied to it, the bucket mounted by rclone, as SkyPilot mounts one on ARM machines (mounting_utils.py in
0.14.1), so that what FUSE does to files is real. Not here: provisioning, several nodes, spot, SkyPilot's queue.
Validation is SkyPilot's own worker's.

Arguments: a folder for the nodes, SkyPilot's python, the python that trains. The environment says which S3 it is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

WORKER = Path(__file__).parents[2] / "backends" / "skypilot" / "worker.py"
S3 = (
    "--config /dev/null --s3-provider Other --s3-env-auth=true --s3-force-path-style=true "
    '--s3-endpoint "$AWS_ENDPOINT_URL"'
)
NODE = """\
rclone copy {s3} ":s3:{bundle}" {place}/input || exit 1
rclone mount {s3} ":s3:{bucket}" {place}/store --dir-cache-time 5s --attr-timeout 1s 2>{place}/mount.log &
for i in $(seq 100); do mountpoint -q {place}/store && break; sleep 0.1; done
cd {place}/home
bash {place}/run
code=$?
fusermount3 -u {place}/store
exit $code
"""
NAMESPACES = ["unshare", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child"]


class Machines:
    """One a job, by its name; what they were given and have said stays in the folder."""

    def __init__(self, folder: Path, train_python: Path) -> None:
        self.folder, self.python = folder, train_python

    def start(self, argument: dict[str, Any]) -> dict[str, Any]:
        return {}

    def launch(self, argument: dict[str, Any]) -> dict[str, Any]:
        place = self.folder / argument["name"]
        if place.is_dir():
            return {"started": False}
        for name in ("input", "store", "home", "bin", "tmp"):
            (place / name).mkdir(parents=True)
        task = json.loads(json.dumps(argument["task"]).replace("/launch/", f"{place}/"))
        (place / "run").write_text(task["run"])
        (place / "bin" / "python3").write_text(f'#!/bin/sh\nexec {self.python} "$@"\n')
        (place / "bin" / "python3").chmod(0o755)
        mounts = task["file_mounts"]
        script = NODE.format(
            s3=S3, place=place, bundle=mounts[f"{place}/input"].removeprefix("s3://"),
            bucket=mounts[f"{place}/store"]["source"].removeprefix("s3://"),
        )  # fmt: skip
        env = {
            **os.environ, **task["envs"], **argument["secrets"], "HOME": f"{place}/home",
            "LAUNCH_GPUS": "0",  # this machine has none of those that the request pays for
            "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_IPS": "127.0.0.1",
            "TMPDIR": f"{place}/tmp",
            "PATH": f"{place}/bin:{os.environ['PATH']}",
        }  # fmt: skip
        with (place / "said").open("w") as said:
            node = subprocess.Popen(
                [*NAMESPACES, "bash", "-c", script], env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip
        (place / "pid").write_text(str(node.pid))
        return {"started": True}

    def look(self, argument: dict[str, Any]) -> dict[str, Any]:
        place, found = self.folder / argument["name"], {"detail": "", "reason": None, "recoveries": 0}
        if not place.is_dir():
            return {**found, "phase": "none"}
        alive = self._alive(place)
        return {**found, "phase": "up" if alive else "over", "reason": None if alive else "its machines are gone"}

    def down(self, argument: dict[str, Any]) -> dict[str, Any]:
        place = self.folder / argument["name"]
        if place.is_dir() and self._alive(place):
            os.kill(int((place / "pid").read_text()), signal.SIGKILL)
            while self._alive(place):
                time.sleep(0.05)
        return {}

    def alive(self, argument: dict[str, Any]) -> dict[str, Any]:
        names = [place.name for place in self.folder.iterdir() if self._alive(place)]
        return {
            "found": [
                {"name": name, "state": "UP", "managed": False, "machine": "1 x here", "hourly": 1.5, "since": 0}
                for name in names
            ]
        }

    def check(self, argument: dict[str, Any]) -> dict[str, Any]:
        return {"enabled": {"AWS": ["compute", "storage"]}, "said": ""}

    @staticmethod
    def _alive(place: Path) -> bool:
        try:
            process = psutil.Process(int((place / "pid").read_text()))
            return process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, FileNotFoundError):
            return False


def lacking() -> str | None:
    """What this machine lacks for mounting a bucket; None when it can."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        return "mounting a bucket needs root and /dev/fuse"
    without = [name for name in ("rclone", "fusermount3", "unshare") if shutil.which(name) is None]
    return f"mounting a bucket needs {', '.join(without)} (rclone, fuse3)" if without else None


def main(folder: str, sky_python: str, train_python: str) -> None:
    machines = Machines(Path(folder), Path(train_python))
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["op"] == "validate":
            done = subprocess.run([sky_python, WORKER], input=line, capture_output=True, text=True, check=True)
            print(done.stdout, end="", flush=True)
            continue
        print(json.dumps({"result": getattr(machines, asked["op"])(asked["argument"])}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
