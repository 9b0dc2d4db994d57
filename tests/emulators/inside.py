"""The first program in a job's container: makes its mounts and the host's name, then becomes the job's command.

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
    mount("--bind", spec["hosts"], "/etc/hosts")
    for source, place in spec["mounts"].items():
        _cover(Path(spec["stage"]), source, Path(place))
    if spec["fuse"]:
        _tell_of_fuse(Path(spec["stage"]).with_name("mounts"), spec["fuse"])
    _cover_tmp(Path(spec["tmp"]), spec["needed"])
    os.chdir(spec["cwd"])
    os.closerange(3, 256)  # the namespace was handed down by its number
    command, env = spec["command"], spec["env"]
    try:
        os.execvpe(command[0], command, env)
    except OSError as exc:
        sys.exit(f"exec: {command[0]!r}: {exc.strerror}")


def _cover(stage: Path, source: str, place: Path) -> None:
    """The folder `source` at `place`, also where the user may not make folders in what holds it."""
    outer = place.parent
    mount("-t", "tmpfs", "none", str(stage))
    for entry in os.scandir(outer):
        target = stage / entry.name
        if entry.name == place.name:
            continue
        if entry.is_symlink():
            target.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir():
            target.mkdir()
            mount("--rbind", entry.path, str(target))
        elif outer == Path("/") and entry.is_file():
            target.touch()
            mount("--bind", entry.path, str(target))
    (stage / place.name).mkdir()
    mount("--bind", source, str(stage / place.name))
    if outer == Path("/"):  # nothing can be mounted over the root that a process has
        os.chroot(stage)
    else:
        mount("--rbind", str(stage), str(outer))


def _tell_of_fuse(file: Path, places: list[str]) -> None:
    """What process 1 reads of its mounts: these places are an object store's, though they are folders here."""
    told = Path("/proc/1/mounts").read_text(encoding="utf-8")
    mounts = "".join(f"emulated {place} fuse.gcsfuse rw 0 0\n" for place in places)
    file.write_text(told + mounts, encoding="utf-8")
    mount("--bind", str(file), "/proc/1/mounts")


def _cover_tmp(own: Path, needed: list[str]) -> None:
    """A /tmp of the host's own; what the host is made of stays visible where it lies below the real one."""
    for path in needed:
        parts = Path(path).parts
        if parts[:2] != ("/", "tmp") or len(parts) < 3:
            continue
        again = own / parts[2]
        if not again.exists():
            again.mkdir()
            mount("--rbind", f"/tmp/{parts[2]}", str(again))
    mount("--rbind", str(own), "/tmp")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
