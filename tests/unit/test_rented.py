"""What the verbs ask and tell before they spend or remove something, on a vendor that costs money (rented.py)."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from backends.base import JobState, JobStatus, Plan, Problem, Site
from backends.local import process
from backends.sagemaker import SageMakerBackend
from launcher.cli import cli
from launcher.client import Client
from launcher.errors import JobNotFoundError, UnreachableError
from launcher.listing import bring_up_to_date
from launcher.store import JobRecord, Store
from tests.unit.rented import Rented

ROOT = Path(__file__).parents[2]
ROWS = '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'
JOB = "name: demo\nmodel: org/m\ntask: generation\ndata: {train: rows.jsonl}\nbackend: rented\n"


@pytest.fixture
def account(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The vendor's side of the account, which the user is set up for; a job file is in the current folder."""
    info = tmp_path / "plugins" / "rented-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rented\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[launcher.backends]\nrented = tests.unit.rented:Rented\n")
    monkeypatch.syspath_prepend(str(info.parent))
    importlib.invalidate_caches()
    folder = tmp_path / "account"
    folder.mkdir()
    for name, value in {
        "RENTED_ACCOUNT": str(folder), "RENTED_KEY": "anna", "LAUNCH_OWNER": "anna", "COLUMNS": "100",
        "LAUNCH_TRAIN_PYTHON": sys.executable, "LAUNCH_POLL_S": "0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "launch.yaml").write_text(JOB)
    assert launch("setup", "rented", "--account", "a-1").exit_code == 0
    yield folder
    for note in folder.glob("jobs/*/process.json"):
        if found := process.running(note):
            found.kill()


def launch(*args: str) -> Result:
    return CliRunner().invoke(cli, args, catch_exceptions=True)


def why(done: Result) -> str:
    """What a refusal says: message and hint."""
    return f"{done.exception.message} -> {done.exception.hint}"  # type: ignore[union-attr]


def sent(*args: str) -> str:
    """A job that has ended, as without torch they all do."""
    done = launch("run", "--yes", "--json", *args)
    return str(json.loads(done.stdout.splitlines()[0])["id"])


@pytest.fixture
def ended(account: Path) -> str:
    return sent()


def on_a_terminal(*args: str, typed: str) -> tuple[int, str]:
    """The real command line with a terminal for its questions; exit code and what was said."""
    outer, inner = os.openpty()
    python = os.pathsep.join((str(Path.cwd() / "plugins"), str(ROOT)))
    os.write(outer, f"{typed}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", *args], stdin=inner, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": python, "NO_COLOR": "1"}, check=False,
    )  # fmt: skip
    os.close(inner)
    os.close(outer)
    return done.returncode, done.stdout + done.stderr


def test_a_resumed_job_is_shown_and_agreed_to_before_it_costs(ended: str) -> None:
    refused = launch("resume", ended)
    assert "costs money (at most $" in why(refused)
    assert "--yes" in why(refused)
    assert f"goes on from the newest checkpoint of {ended}, unchanged" in " ".join(refused.stderr.split())
    assert re.search(r"so far +\d+s", refused.stderr)
    assert "r1.large" in refused.stderr and "$2.00 an hour" in refused.stderr
    assert [job["id"] for job in json.loads(launch("list", "--json").stdout)] == [ended]
    agreed = launch("resume", ended, "--yes", "--detach", "--json")
    assert json.loads(agreed.stdout.splitlines()[0])["id"] == f"{ended}-r2"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_is_asked_with_the_price_and_as_whom(ended: str) -> None:
    code, said = on_a_terminal("resume", ended, typed="n")
    assert code == 1 and "nothing was done" in said
    assert "signed in as anna in a-1 (RENTED_KEY)" in said
    assert "Cost: at most $" in said and "Start?" in said
    assert len(json.loads(launch("list", "--json").stdout)) == 1


def test_a_resumed_job_keeps_its_budget(account: Path) -> None:
    job = sent("--budget", "3")
    shown = launch("resume", job)
    assert "at most $3" in why(shown)
    spec = Client(Path(os.environ["LAUNCH_HOME"])).plan_resume(job).plan.job
    assert spec.resources.max_hours is not None and spec.resources.max_hours < 1.5


def test_a_run_says_as_whom_it_is_sent_and_a_plan_asks_nobody(
    account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = launch("run", "--yes", "--detach")
    assert "signed in as anna in a-1 (RENTED_KEY)" in done.stderr
    said = json.loads(launch("run", "--yes", "--detach", "--json").stdout.splitlines()[0])
    assert said["signed_in"] == "anna in a-1 (RENTED_KEY)"
    monkeypatch.delenv("RENTED_KEY")
    monkeypatch.setattr(Rented, "signed_in", lambda self, site: pytest.fail("a plan needs no credentials"))
    assert launch("plan").exit_code == 0


def test_backends_asks_only_what_it_is_told_to(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = json.loads(launch("backends", "rented", "--json").stdout)
    assert (told["ready"], told["asked"], told["signed_in"]) == (True, True, "anna in a-1 (RENTED_KEY)")
    assert "signed in as anna in a-1" in launch("backends", "rented").stdout
    doctor = launch("doctor", "--json")
    assert json.loads(doctor.stdout)["signed_in"] == {"rented": "anna in a-1 (RENTED_KEY)"}
    assert doctor.exit_code == 0

    def asked(self: Rented, site: Site, plan: Any = None) -> list[Problem]:
        raise AssertionError("launch backends stays on this machine")

    monkeypatch.setattr(Rented, "check", asked)
    monkeypatch.setattr(Rented, "signed_in", asked)
    known = {one["name"]: one for one in json.loads(launch("backends", "--json").stdout)}
    assert (known["rented"]["ready"], known["rented"]["asked"], known["rented"]["signed_in"]) == (
        True,
        False,
        None,
    )
    assert "launch backends rented asks" in launch("backends").stdout
    assert "no backend 'rentd'" in why(launch("backends", "rentd"))


def test_a_vendor_that_knows_nobody_is_told_once(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RENTED_KEY")
    assert launch("doctor").exit_code == 1  # though what is not set up keeps nobody from work
    (told,) = json.loads(launch("backends", "rented", "--json").stdout)
    assert (told["ready"], told["signed_in"]) == (False, None)
    assert [problem["what"] for problem in told["problems"]] == ["nobody is signed in"]
    assert "nobody is signed in" in why(launch("run", "--yes"))


def test_setup_says_whose_account_it_looks_into(account: Path) -> None:
    found = launch("setup", "rented", "--find")
    assert found.exit_code == 0, found.output
    assert "signed in as anna in a-1 (RENTED_KEY)" in found.stderr


def test_jobs_of_another_region_are_found_where_it_is_named(
    account: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = sent(), sent("--set", "resources.region=far-2")
    monkeypatch.setenv("LAUNCH_HOME", str(home.parent / "another"))  # another laptop

    def found(*args: str) -> list[str]:
        done = launch("list", "--discover", "--backend", "rented", *args, "--json")
        return sorted(job["id"] for job in json.loads(done.stdout))

    assert found() == [near]
    assert found("--region", "far-2") == sorted([near, far])


def test_orphans_of_another_region_are_told_with_what_stops_them(
    account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = sent("--set", "resources.region=far-2")
    monkeypatch.setattr(Rented, "status", lambda self, ref: JobStatus(state=JobState.RUNNING))
    monkeypatch.setenv("LAUNCH_HOME", str(account / "laptop"))
    assert json.loads(launch("orphans", "--backend", "rented", "--json").stdout) == []
    (one,) = json.loads(launch("orphans", "--backend", "rented", "--region", "far-2", "--json").stdout)
    assert one["id"] == job
    assert one["stop"] == (f"launch list --discover --backend rented --region far-2, then launch cancel {job}")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("list", "--discover", "--region", "x-1"), "--backend NAME"),
        (("orphans", "--region", "x-1"), "--backend NAME"),
        (("list", "--discover", "--backend", "local", "--region", "x-1"), "local has no regions"),
        (("orphans", "--backend", "local", "--region", "x-1"), "local has no regions"),
        (("list", "--region", "x-1"), "--discover"),
    ],
)
def test_a_region_that_says_nothing_is_refused(account: Path, args: tuple[str, ...], said: str) -> None:
    done = launch(*args)
    assert getattr(done.exception, "exit_code", None) == 2
    assert said in why(done)


@pytest.fixture
def bens(account: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job that ben has sent on the same account, which this laptop has discovered."""
    with monkeypatch.context() as there:
        there.setenv("LAUNCH_HOME", str(home.parent / "ben"))
        there.setenv("LAUNCH_OWNER", "ben")
        job = sent()
    launch("list", "--discover", "--backend", "rented")
    return job


def older(job: str) -> None:
    """As if the job had ended two days ago."""
    store = Store(Path(os.environ["LAUNCH_HOME"]) / "record.db")
    store.update(job, ended=datetime.now(UTC) - timedelta(days=2))


def test_an_age_releases_only_what_the_user_has_sent(account: Path, bens: str) -> None:
    mine = sent()
    for job in (bens, mine):
        older(job)
    done = launch("release", "--older-than", "1d", "--yes")
    assert done.stdout == f"{mine}: released\n"
    assert f"left out, of others: {bens} (ben)" in done.stderr
    assert not (account / "jobs" / mine).exists()
    assert (account / "jobs" / bens).exists()
    every = launch("release", "--older-than", "1d", "--all-owners", "--yes", "--json")
    assert json.loads(every.stdout) == [{"id": bens, "owner": "ben"}]
    assert not (account / "jobs" / bens).exists()


def test_the_checkpoints_of_a_job_that_can_be_resumed_are_not_removed_for_the_age_of_its_first(ended: str) -> None:
    assert launch("resume", ended, "--yes").exit_code != 0  # without torch it fails, too
    older(ended)
    assert launch("release", "--older-than", "1d", "--yes").stdout == "nothing to remove\n"
    assert f"the checkpoints from which {ended}-r2 can be resumed" in why(launch("release", ended))
    older(f"{ended}-r2")
    assert launch("release", "--older-than", "1d", "--yes").stdout.count("released") == 2


def test_checkpoints_that_anothers_job_goes_on_from_are_not_removed_for_their_age(
    ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ben:
        ben.setenv("LAUNCH_OWNER", "ben")
        assert launch("resume", ended, "--yes").exit_code != 0
    for job in (ended, f"{ended}-r2"):
        older(job)
    done = launch("release", "--older-than", "1d", "--yes")
    assert done.stdout == "nothing to remove\n"
    assert f"{ended}-r2 (ben)" in done.stderr
    assert launch("release", "--older-than", "1d", "--yes", "--all-owners").stdout.count("released") == 2


def test_what_belongs_to_no_job_is_removed_only_when_that_is_agreed_to(account: Path) -> None:
    (account / "left-1").touch()
    release = ("release", "--older-than", "1d", "--backend", "rented")
    assert "removes uploads and bundles of no job, whoever sent them, at rented" in why(launch(*release))
    assert (account / "left-1").exists()
    assert launch(*release, "--yes").stdout == "rented: 1 uploads and bundles of no job removed\n"
    assert not (account / "left-1").exists()


def test_a_list_of_backends_asks_no_vendor_whose_set_up_is_half_done(
    account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(SageMakerBackend, "check", lambda self, site, plan=None: asked.append("aws") or [])
    launch("setup", "sagemaker", "--region", "us-east-1")
    done = launch("backends")
    assert "not set up: role, bucket" in " ".join(done.stdout.split())
    assert asked == []


def test_who_signed_in_can_be_unknown_without_harm(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Rented, site: Site) -> str:
        raise RuntimeError("a fault of a plugin's")

    monkeypatch.setattr(Rented, "signed_in", broken)
    assert (account / "jobs" / sent()).exists()


def test_an_interruption_before_anything_was_sent_says_so(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Rented, site: Site, plan: Plan | None = None) -> list[Problem]:
        if plan is not None:
            raise KeyboardInterrupt
        return []

    monkeypatch.setattr(Rented, "check", interrupted)
    done = launch("run", "--yes")
    assert "was not started" in done.stderr
    assert not isinstance(done.exception, JobNotFoundError)


def test_who_is_away_is_not_taken_for_somebody_without_jobs(ended: str, home: Path, account: Path) -> None:
    (account / "down").touch()
    done = launch("list", "--discover")
    assert "rented can't be asked for jobs: no answer from rented" in done.stderr
    assert launch("list", "--discover", "--backend", "rented").exit_code != 0


def test_what_others_have_sent_is_named_before_it_is_touched(account: Path, bens: str) -> None:
    assert f"{bens} (ben's)" in why(launch("release", bens))
    assert f"{bens} is ben's job" in why(launch("cancel", bens))
    assert (account / "jobs" / bens).exists()
    assert "over already" in launch("cancel", bens, "--yes").stdout
    mine = sent()
    assert "over already" in launch("cancel", mine).stdout
    said = json.loads(launch("cancel", mine, "--json").stdout)
    assert said == {"id": mine, "state": "FAILED", "asked": False}


def test_what_was_fetched_is_told_to_scripts(ended: str) -> None:
    said = json.loads(launch("fetch", ended, "--to", "copy", "--json").stdout)
    page = (ROOT / "docs/json.md").read_text()
    shown = [said, *(json.loads(launch(verb, ended, "--json").stdout) for verb in ("show", "status"))]
    assert [name for one in shown for name in one if not re.search(rf"\b{name}\b", page)] == []
    sizes = [path.stat().st_size for path in Path("copy").rglob("*") if path.is_file()]
    assert sizes and said == {"id": ended, "folder": "copy", "files": len(sizes), "bytes": sum(sizes)}


def test_a_vendor_that_is_away_is_asked_once_and_its_jobs_are_shown_with_their_age(account: Path) -> None:
    jobs = [sent() for _ in range(3)]
    store = Store(Path(os.environ["LAUNCH_HOME"]) / "record.db")
    for job in jobs:  # as they were an hour ago
        with store._write() as db:
            before = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
            db.execute("UPDATE jobs SET state = 'RUNNING', drained = 0, seen = ? WHERE id = ?", (before, job))
    (account / "down").touch()
    (account / "asked").write_text("")
    done = launch("list")
    assert (account / "asked").read_text().count("\n") == 1
    assert done.stdout.count("RUNNING 1h ago") == 3
    assert "rented can't be asked now" in done.stderr and "no answer from rented" in done.stderr
    for verb in ("show", "status"):
        alone = launch(verb, jobs[0])
        assert "RUNNING" in alone.stdout and "as it was seen 1h ago: no answer from rented" in alone.stderr
    (account / "down").unlink()
    assert "RUNNING" not in launch("list").stdout
    (job, *_) = json.loads(launch("list", "--json").stdout)
    assert datetime.fromisoformat(job["seen"]) > datetime.now(UTC) - timedelta(minutes=1)


def waiting(backend: str, *ids: str) -> list[JobRecord]:
    now = datetime.now(UTC)
    return [
        JobRecord(id=id, name=id, backend=backend, ref=id, state="RUNNING", created=now, lineage=id,
                  bundle_sha256="", spec={})
        for id in ids
    ]  # fmt: skip


def test_a_vendor_that_hangs_holds_up_no_other() -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def looks() -> Iterator[Callable[[JobRecord], object]]:
        def look(record: JobRecord) -> None:
            if record.backend == "hanging":
                time.sleep(30)
            if record.backend == "away":
                raise UnreachableError("no route")
            seen.append(record.id)

        yield look

    began = time.monotonic()
    jobs = [*waiting("hanging", "a", "b"), *waiting("away", "c", "d"), *waiting("fine", "e", "f")]
    silent = bring_up_to_date(jobs, looks, patience_s=0.5)
    assert time.monotonic() - began < 10
    assert silent == {"hanging": "no answer within 0.5 s", "away": "no route"}
    assert seen == ["e", "f"]


def test_a_bug_in_a_look_is_not_swallowed() -> None:
    def broken(record: JobRecord) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bring_up_to_date(waiting("fine", "a"), lambda: contextlib.nullcontext(broken), patience_s=5)
