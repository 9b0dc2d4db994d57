"""A path that all nodes share, as a store: on this machine, or over ssh on Slurm's login node."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from backends.base import BundleFile
from backends.skypilot.stores import JobStore, Kept
from backends.storage import Count
from launcher.errors import BackendError, UnreachableError

CALL_S = 120
PIECE = 1 << 20
AT_ONCE = 200
"""Files that one command reads; Linux takes 128 KiB of it."""
SSH_FAILED = 255
"""ssh's own exit status when it, not the command, has failed."""


class SharedPath(JobStore):
    """The folder `root`. `login`: the host of ~/.slurm/config through which it is reached; None: it is here."""

    scheme = "file"

    def __init__(self, root: str, login: str | None, keep: Path) -> None:
        """`keep`: a folder for ssh's sockets and known hosts."""
        super().__init__(root)
        self._login = login
        self._keep = keep

    def uri(self, key: str) -> str:
        where = f"{self._login}:" if self._login else ""
        return f"{where}{self.bucket}/{key}"

    def put(self, key: str, content: bytes) -> None:
        path = self._path(key)
        part = f"{path.parent}/.{path.name}.$$"
        text = f"mkdir -p {_q(path.parent)} && cat >{_part(part)} && mv {_part(part)} {_q(path)}"
        self.sh(text, self.doing("writing", key), content)

    def get(self, key: str) -> bytes | None:
        path = _q(self._path(key))
        said = self.sh(f"if [ -e {path} ]; then echo; cat {path}; fi", self.doing("reading", key))
        return said[1:] if said else None

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        folder = prefix if prefix.endswith("/") else prefix.rpartition("/")[0]
        text = f"cd {_q(self._path(folder))} 2>/dev/null && find . -type f -exec stat -c '%s %n' {{}} +"
        for line in self.sh(f"{{ {text}; }} || :", self.doing("listing", prefix)).decode().splitlines():
            size, _, name = line.partition(" ")
            key = f"{folder.rstrip('/')}/{name.removeprefix('./')}"
            if key.startswith(prefix) and size.isdecimal():
                yield key, int(size)

    def look(self, prefix: str) -> Iterator[Kept]:
        # Not `stat *`: the log of some days has more parts than one command takes.
        each = "find . -maxdepth 1 ! -name '.*' -exec stat -c '%s %Y %n' {} + 2>/dev/null"
        text = f"cd {_q(self._path(prefix))} 2>/dev/null && date +%s && {each} || :"
        now, *lines = self.sh(text, self.doing("looking at", prefix)).decode().splitlines() or ["0"]
        for line in lines:
            size, written, name = line.split(" ", 2)
            key = f"{prefix}{name.removeprefix('./')}"
            yield Kept(key=key, size=int(size), age_s=max(0, int(now) - int(written)))

    def remove(self, prefix: str) -> None:
        """`prefix` is a file, or a folder with its `/`."""
        self.sh(f"rm -rf {_q(self._path(prefix))}", self.doing("removing", prefix))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.sh(f"rm -f {_q(self._path(key))}", self.doing("removing", key))

    def read_from(self, key: str, start: int) -> Iterator[bytes]:
        return self.read_all([(key, start)])

    def read_all(self, wanted: Sequence[tuple[str, int]]) -> Iterator[bytes]:
        for at in range(0, len(wanted), AT_ONCE):
            some = wanted[at : at + AT_ONCE]
            text = " && ".join(f"tail -c +{start + 1} {_q(self._path(key))}" for key, start in some)
            yield from self._said_by(text, self.doing("downloading", some[0][0]))

    def _said_by(self, text: str, doing: str) -> Iterator[bytes]:
        with subprocess.Popen(
            self._command(text), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stderr is not None
            while piece := process.stdout.read(PIECE):
                yield piece
            said = process.stderr.read()
        self._refuse(process.returncode, said, doing)

    def send_small(self, file: BundleFile, key: str) -> None:
        self.put(key, self.content(file))

    def send_parts(self, file: BundleFile, key: str, moved: Count) -> None:
        """Appended to .NAME.part, which an earlier try may have left; its hash makes it the file."""
        path = self._path(key)
        part, doing = _q(path.with_name(f".{path.name}.part")), self.doing("writing", key)
        text = f"mkdir -p {_q(path.parent)}; [ ! -e {part} ] || stat -c %s {part}"
        have = int(self.sh(text, doing).strip() or 0)
        with self.source(file).open("rb") as source:
            if have > file.size:
                self.sh(f"rm -f {part}", doing)
                have = 0
            source.seek(have)
            moved.add(have)
            while piece := source.read(16 * PIECE):
                self.sh(f"cat >>{part}", doing, piece)
                moved.add(len(piece))
        told = self.sh(f"sha256sum <{part}", doing).decode().split()
        if told[:1] != [file.sha256]:
            self.sh(f"rm -f {part}", doing)
            raise BackendError(f"{file.path} did not arrive whole", "the same command again")
        self.sh(f"mv {part} {_q(path)}", doing)

    def copy(self, other: str, key: str) -> None:
        path = self._path(key)
        part = _q(path.with_name(f".{path.name}.part"))
        text = f"mkdir -p {_q(path.parent)} && cp {_q(self._path(other))} {part} && mv {part} {_q(path)}"
        self.sh(text, self.doing("copying", other))

    def sh(self, text: str, doing: str, given: bytes = b"") -> bytes:
        """What the shell there says. Raises UnreachableError or BackendError."""
        try:
            done = subprocess.run(
                self._command(text), input=given, capture_output=True, timeout=CALL_S, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise UnreachableError(
                f"{doing}: {self._login} did not answer within {CALL_S} s", "repeat it later"
            ) from exc
        except OSError as exc:
            raise BackendError(f"{doing}: {exc}", "install OpenSSH's client") from exc
        self._refuse(done.returncode, done.stderr, doing)
        return done.stdout

    def doing(self, what: str, key: str) -> str:
        return f"{what} {self.uri(key)}"

    def _refuse(self, code: int, stderr: bytes, doing: str) -> None:
        said = " ".join(stderr.decode(errors="replace").split())
        if code == SSH_FAILED and self._login:
            raise UnreachableError(
                f"{doing}: {said or 'ssh ended'}", f"ssh -F ~/.slurm/config {self._login} must work"
            )
        if code:
            raise BackendError(
                f"{doing}: {said or f'exit status {code}'}", "is there space, and may you write there?"
            )

    def _command(self, text: str) -> list[str]:
        if self._login is None:
            return ["sh", "-c", text]
        self._keep.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = {
            "BatchMode": "yes", "ConnectTimeout": "20", "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": f"{self._keep}/known_hosts", "LogLevel": "ERROR",
            "ControlMaster": "auto", "ControlPersist": "60", "ControlPath": f"{self._keep}/%C",
        }  # fmt: skip
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        config = Path("~/.slurm/config").expanduser()
        return ["ssh", "-F", str(config), *flags, self._login, f"sh -c {shlex.quote(text)}"]

    def _path(self, key: str) -> PurePosixPath:
        return PurePosixPath(self.bucket) / key


def _q(path: object) -> str:
    return shlex.quote(str(path))


def _part(path: str) -> str:
    """Quoted but for `$$`, the shell's own number."""
    return f"{_q(path.removesuffix('$$'))}$$"
