"""A bucket of Google's as the store of SkyPilot jobs, on gcp-storage-emulator; a node's real bash fills it.

The node's folder is mirrored into the bucket: gcsfuse takes no other Cloud Storage than Google's. SkyPilot's
answers are a script's.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import JobRef, JobState, Plan, Site
from backends.skypilot import SkyPilotBackend, node
from backends.skypilot.buckets import GoogleBucket
from cost.estimate import estimate
from launcher.errors import JobNotFoundError
from tests.emulators.bundles import bundle
from tests.emulators.servers import serving
from tests.unit.rendering import IMAGE, job

pytest.importorskip("gcp_storage_emulator", reason="make test installs gcp-storage-emulator")
NAME = "team-bucket"
SKYPILOT = """\
#!/bin/sh
while read -r line; do
  echo '{"result": {"started": true, "phase": "up", "detail": "UP", "reason": null, "recoveries": 0, "said": "",' \
    '"enabled": {"GCP": ["compute", "storage"]}}}'
done
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    words = ("start", "--host", "127.0.0.1", "--port", "{port}", "--in-memory")
    with serving("gcp_storage_emulator", *words) as address:
        yield address


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GoogleBucket:
    """An empty one."""
    (tmp_path / "python").write_text(SKYPILOT)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("LAUNCH_SKYPILOT_PYTHON", str(tmp_path / "python"))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    made = GoogleBucket(NAME)
    if not made._bucket().exists():
        made._google.storage().create_bucket(NAME)
    made.remove("")
    return made


class Machine:
    """A machine of a cloud: it runs what the request says, and all that it leaves is in the bucket then."""

    def __init__(self, folder: Path, bucket: GoogleBucket, token: str) -> None:
        self.mount, self.bucket, self.token = folder / "mount", bucket, token
        self.bin = folder / "bin"
        self.bin.mkdir()

    def run(self, python: str) -> None:
        (self.bin / "python3").write_text(f"#!/bin/bash\n{python}\n")
        (self.bin / "python3").chmod(0o755)
        home = self.mount / "finelaunch" / "jobs" / self.token
        env = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "OUT": f"{home}/output"}
        script = node.run(str(home), "/bundle", node.BUCKET_S, 60, image=True)
        subprocess.run(["bash", "-c", script], env=env, capture_output=True, timeout=30, check=False)
        for file in self.mount.rglob("*"):
            if file.is_file():
                self.bucket.put(file.relative_to(self.mount).as_posix(), file.read_bytes())


def planned(backend: SkyPilotBackend, folder: Path, token: str = "triage-2") -> Plan:
    spec = job(resources={"image": IMAGE})
    offer = next(iter(backend.offers(spec.resources)))
    site = Site(backend="skypilot", facts={"store": f"gs://{NAME}", "infra": "gcp/us-central1"})
    files = bundle(folder, "large", os.urandom(50_000))
    return Plan(
        job=spec, offer=offer, bundle=files, site=site, token=token, lineage=token, estimate=estimate(offer, 24.0),
        request=backend.render(spec, offer, files, site, token, token),
    )  # fmt: skip


def test_a_job_is_followed_through_the_bucket_to_its_end_and_removed(bucket: GoogleBucket, tmp_path: Path) -> None:
    backend = SkyPilotBackend(tmp_path / "home")
    plan = planned(backend, tmp_path)
    assert backend.find(plan.site, plan.token) is None
    backend.stage(plan, lambda line: None)
    ref = backend.submit(plan)
    assert ref == JobRef("skypilot", f"gs:{NAME}", plan.token) == backend.find(plan.site, plan.token)
    assert backend.status(ref).state == JobState.STARTING
    machine = Machine(tmp_path, bucket, plan.token)
    machine.run("echo eins; exit 143")
    first = list(backend.logs(ref))
    machine.run('mkdir -p "$OUT"; echo whole >"$OUT/result"; echo zwei; echo -n drei')
    status = backend.status(ref)
    assert (status.state, status.interruptions) == (JobState.SUCCEEDED, 1)
    assert [line.text for line in backend.logs(ref)] == ["eins", "zwei", "drei"]
    assert [line.text for line in backend.logs(ref, first[-1].cursor)] == ["zwei", "drei"]
    another = SkyPilotBackend(tmp_path / "another")
    assert list(another.discover(plan.site)) == [ref]
    assert another.status(ref).state == JobState.SUCCEEDED
    another.download(ref, tmp_path / "to")
    assert (tmp_path / "to" / "result").read_text() == "whole\n"
    (file,) = another.bundle(ref, tmp_path / "given").files
    assert file.source is not None and file.source.read_bytes() == (tmp_path / "large").read_bytes()
    another.release(ref)
    assert list(bucket.keys("")) == []
    with pytest.raises(JobNotFoundError):
        another.status(ref)


def test_a_cancelled_job_is_told_so_through_the_bucket(bucket: GoogleBucket, tmp_path: Path) -> None:
    backend = SkyPilotBackend(tmp_path / "home")
    plan = planned(backend, tmp_path)
    backend.stage(plan, lambda line: None)
    ref = backend.submit(plan)
    bucket.put(f"finelaunch/jobs/{ref.id}/told/node-0.start.{10**12}", b"start\n")
    backend.cancel(ref)
    assert bucket.get(f"finelaunch/jobs/{ref.id}/told/cancel") == b""
    bucket.put(f"finelaunch/jobs/{ref.id}/told/node-0.end.143.{10**12 + 1}", b"end.143\n")
    assert backend.status(ref).state == JobState.CANCELLED


def test_a_bucket_that_is_not_there_is_told_before_anything_is_sent(bucket: GoogleBucket, tmp_path: Path) -> None:
    site = Site(backend="skypilot", facts={"store": "gs://no-such-bucket", "infra": "gcp"})
    (problem, *_) = SkyPilotBackend(tmp_path / "home").check(site)
    assert "no-such-bucket" in problem.what
    assert problem.fix
