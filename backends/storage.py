"""A bucket as backends use one: bundles under their hash, a folder a job; uploads that go on where they broke off.

finelaunch/bundles/SHA/PATH          the files of a bundle, as the job has them
finelaunch/bundles/SHA.json          its list of files, written last: with it the bundle is whole
finelaunch/uses/SHA/TOKEN            a job that needs the bundle
finelaunch/large/SHA256              the key under which a large file lies, so that another bundle copies it there
finelaunch/jobs/TOKEN/...            record.json, and what the job itself writes
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from backends.base import Bundle, BundleFile, Moved, Plan, Progress, bundle_of, job_record
from backends.files import bring, vouched_files
from launcher.errors import BackendError, JobNotFoundError

ROOT = "finelaunch"
LARGE = 16 * 2**20
"""From this many bytes on a file is sent in parts, and found again in other bundles."""
WORKERS = 4
SENDS = 3
"""How often a large file is sent whose parts are gone when they are to be joined."""


class BundleStore(ABC):
    """One bucket of one vendor. What is abstract raises LaunchError, never an error of the vendor's SDK."""

    scheme: str
    """`s3`, `gs`, ..."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket

    @abstractmethod
    def put(self, key: str, content: bytes) -> None: ...

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """An object's bytes, None where there is none."""

    @abstractmethod
    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, size) of every object below `prefix`."""

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> None:
        """Delete these very objects; one that is gone already is no error."""

    def remove(self, prefix: str) -> None:
        """Delete every object whose key starts with `prefix`."""
        self.delete([key for key, _ in self.keys(prefix)])

    @abstractmethod
    def read_from(self, key: str, start: int) -> Iterator[bytes]:
        """An object's bytes from `start` on, in pieces."""

    @abstractmethod
    def send_small(self, file: BundleFile, key: str) -> None:
        """Upload a file of less than LARGE bytes, compared with its hash on the way."""

    @abstractmethod
    def send_parts(self, file: BundleFile, key: str, moved: Count) -> None:
        """Upload a large file; what an earlier try has sent is kept, and nothing of a file that has changed.

        Raises JobNotFoundError when the parts are gone: another launcher has joined them.
        """

    @abstractmethod
    def copy(self, other: str, key: str) -> None:
        """Copy an object inside the bucket."""

    def uri(self, key: str) -> str:
        return f"{self.scheme}://{self.bucket}/{key}"

    def put_bundle(self, bundle: Bundle, token: str, progress: Progress) -> None:
        """Upload what is not there yet. Raises BackendError when a file is neither there nor here."""
        self.put(f"{ROOT}/uses/{bundle.sha256}/{token}", b"")  # first: so that nobody removes it meanwhile
        home = f"{ROOT}/bundles/{bundle.sha256}"
        there = {key: size for key, size in self.keys(f"{home}/")}
        missing = [f for f in bundle.files if there.get(f"{home}/{f.path}") != f.size]
        total, known = bundle.size, bundle.size - sum(f.size for f in missing)
        moved = Count(known, total, progress)
        if missing:
            progress(f"{len(missing)} of {len(bundle.files)} files to send to {self.uri(home)}/")
        with ThreadPoolExecutor(WORKERS) as pool:
            sent = [pool.submit(self._send, file, f"{home}/{file.path}", moved) for file in missing]
            try:
                for done in as_completed(sent):
                    done.result()
            except BaseException:  # Ctrl-C, too: what has not begun does not begin, what has ends with its part
                moved.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        listed = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in bundle.files]
        if missing or self.get(f"{home}.json") is None:
            self.put(f"{home}.json", json.dumps(listed).encode())

    def drop_bundle(self, sha256: str, token: str) -> None:
        """The job needs its bundle no more; the last one to say so removes it."""
        self.delete([f"{ROOT}/uses/{sha256}/{token}"])  # no prefix: a job's name may begin with another's
        if not any(True for _ in self.keys(f"{ROOT}/uses/{sha256}/")):
            self.remove(f"{ROOT}/bundles/{sha256}.json")  # first: a half-removed bundle is not whole
            self.remove(f"{ROOT}/bundles/{sha256}/")

    def withdraw(self, sha256: str, token: str) -> None:
        """The job was refused: it neither needs its bundle nor has a record. What was sent stays for the next."""
        self.delete([f"{ROOT}/uses/{sha256}/{token}", record_key(token)])

    def put_record(self, plan: Plan) -> None:
        """Leave with the job what rebuilds a lost record."""
        self.put(record_key(plan.token), json.dumps(job_record(plan, datetime.now(UTC))).encode())

    def record(self, token: str) -> Mapping[str, Any]:
        """What `put_record` left. Raises BackendError where that is missing or damaged."""
        key = record_key(token)
        try:
            found: dict[str, Any] = json.loads(self.get(key) or b"")
        except ValueError as exc:
            raise BackendError(
                f"{self.uri(key)} is missing or damaged", f"launch release {token} removes what the job left"
            ) from exc
        return found

    def bring_bundle(self, token: str, to: Path | None) -> Bundle:
        """The bundle of a job; with `to`, its files are brought there."""
        known = bundle_of(self.record(token))
        if to is None:
            return known
        home = f"{ROOT}/bundles/{known.sha256}"
        for file in known.files:
            fetch = partial(self.fetch, f"{home}/{file.path}", size=file.size)
            bring(to, file.path, file.size, file.sha256, fetch)
        files = (BundleFile(path=f.path, size=f.size, sha256=f.sha256, source=to / f.path) for f in known.files)
        return Bundle(sha256=known.sha256, files=tuple(files))

    def bring_output(self, prefix: str, to: Path) -> None:
        """Every file below `prefix`, the output folder of a job, each compared with what the job vouched for."""
        found = {key.removeprefix(prefix): size for key, size in self.keys(prefix)}
        vouched = vouched_files(self.get(f"{prefix}events.jsonl") or b"")
        for path, size in sorted(found.items()):
            if path and not path.endswith("/"):
                bring(to, path, size, vouched.get(path), partial(self.fetch, prefix + path, size=size))

    def fetch(self, key: str, to: Path, size: int) -> None:
        """Download an object to `to`, going on behind the bytes of `.NAME.part` that an earlier try left."""
        part = to.with_name(f".{to.name}.part")
        to.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        if have > size:
            part.unlink()
            have = 0
        if have < size:
            with part.open("ab") as file:
                for chunk in self.read_from(key, have):
                    file.write(chunk)
        elif not part.exists():
            part.touch()
        part.replace(to)

    def _send(self, file: BundleFile, key: str, moved: Count) -> None:
        if file.size < LARGE:
            self.send_small(file, key)
            moved.add(file.size)
            return
        pointer = f"{ROOT}/large/{file.sha256}"
        other = (self.get(pointer) or b"").decode()
        if other and dict(self.keys(other)).get(other) == file.size:  # it lies in another bundle
            self.copy(other, key)
            moved.add(file.size)
        else:
            self._send_large(file, key, moved)
            self.put(pointer, key.encode())

    def _send_large(self, file: BundleFile, key: str, moved: Count) -> None:
        for left in reversed(range(SENDS)):
            try:
                self.send_parts(file, key, moved)
            except JobNotFoundError:
                # Another launcher that sends the same file may have joined its parts, here or elsewhere.
                if dict(self.keys(key)).get(key) != file.size:
                    if not left:
                        raise
                    continue
                moved.add(file.size)
            return

    def source(self, file: BundleFile) -> Path:
        """Where the file is on this machine. Raises BackendError where it is not."""
        if file.source is None:
            raise BackendError(
                f"{file.path} of this bundle is neither in {self.scheme}://{self.bucket} nor on this machine",
                "launch run with the job file",
            )
        return file.source

    def content(self, file: BundleFile) -> bytes:
        """The file's bytes. Raises BackendError when they are not those that were packed."""
        return b"".join(self.parts(file, LARGE))

    def parts(self, file: BundleFile, size: int, drop: Callable[[], None] = lambda: None) -> Iterator[bytes]:
        """The file in parts of `size` bytes. Raises BackendError at its end when it is not what was packed.

        `drop` removes what was sent of it by then.
        """
        digest = sha256()
        with self.source(file).open("rb") as source:
            while part := source.read(size):
                digest.update(part)
                yield part
        if digest.hexdigest() != file.sha256:
            drop()
            raise BackendError(f"{file.path} has changed while it was packed", "the same command again")

    def doing(self, what: str, key: str) -> str:
        """What a call is for, in words."""
        return f"{what} {self.uri(key)}" if "/" in key else f"{what} {key}"


class Count:
    """Bytes moved so far, told as they come; workers share it."""

    def __init__(self, done: int, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = done, total, progress
        self._stopped = False
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Whoever counts on, ends."""
        self._stopped = True

    def add(self, size: int) -> None:
        if self._stopped:
            raise BackendError("the upload was stopped", "the same command again goes on from there")
        with self._lock:
            self._done = min(self._done + size, self._total)  # a part may have to be sent twice
            self._progress(Moved("uploading", self._done, self._total))


def record_key(token: str) -> str:
    return f"{ROOT}/jobs/{token}/record.json"
