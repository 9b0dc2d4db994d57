"""The first program in a job's container: makes /opt/ml and the host's name, then becomes the job's command.

Started in new mount, PID and UTS namespaces, so that nothing of this is seen outside; standard library only.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


def main(spec_file: str) -> None:
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    socket.sethostname(spec["hostname"])
    _cover_opt(Path(spec["stage"]), spec["ml"])
    mount("--bind", spec["hosts"], "/etc/hosts")
    os.chdir("/opt/ml")
    os.closerange(3, 256)  # the namespace was handed down by its number
    command, env = spec["command"], spec["env"]
    try:
        os.execvpe(command[0], command, env)
    except OSError as exc:
        sys.exit(f"exec: {command[0]!r}: {exc.strerror}")


def _cover_opt(stage: Path, ml: str) -> None:
    """/opt with /opt/ml in it, also where the user may not make folders there."""
    mount("-t", "tmpfs", "none", str(stage))
    for entry in os.scandir("/opt"):
        if entry.is_symlink():
            (stage / entry.name).symlink_to(Path(entry.path).readlink())
        elif entry.is_dir() and entry.name != "ml":
            (stage / entry.name).mkdir()
            mount("--rbind", entry.path, str(stage / entry.name))
    (stage / "ml").mkdir()
    mount("--bind", ml, str(stage / "ml"))
    mount("--rbind", str(stage), "/opt")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
