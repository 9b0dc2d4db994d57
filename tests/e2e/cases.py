"""What `launch --backend X` does from a laptop on any cloud, with everything going wrong that can.

Each vendor's file subclasses CloudCases, names its words and faults, and adds what that vendor alone does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.e2e.jobs import wait_for, write_job
from tests.e2e.laptop import STEP, CloudLaptop

SHORT = {"max_steps": 2}
LONG = {"epochs": 400, "checkpoint_steps": 2}
QUICK = ("--set", "eval.baseline=false", "--set", "eval.tuned=false")
REAL = (
    "train.max_steps=3", "train.checkpoint_steps=1", "train.batch_size=1", "train.early_stopping=null",
    "data.eval=null", "data.eval_fraction=0.02", "eval.max_rows=2", "eval.generation=false", "resources.spot=true",
    "resources.max_hours=1", "env.PIP_NO_INDEX='1'", "env.LAUNCH_THREADS='1'", "eval.general=false",
)  # fmt: skip
"""Of the template's job: a step a row, and no more judging than shows both models judged."""


def ran(anna: CloudLaptop, model: Path, *args: str, **train: object) -> subprocess.CompletedProcess[str]:
    write_job(anna.folder, model, **{**SHORT, **train})
    return anna.launch("run", "--backend", anna.backend, "--yes", "--json", *args)


def events(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def steps(done: subprocess.CompletedProcess[str]) -> list[int]:
    return [e["step"] for e in events(done) if e["event"] == "step"]


def detached(anna: CloudLaptop, model: Path, *args: str, **train: object) -> str:
    done = ran(anna, model, "--detach", *args, **{**LONG, "max_steps": "null", **train})
    assert done.returncode == 0, done.stderr
    return str(events(done)[0]["id"])


def has_said(anna: CloudLaptop, job: str, what: str, times: int = 1) -> bool:
    return sum(what in line for line in anna.cloud.log(job)) >= times


class CloudCases:
    """`anna` and `another` (a laptop of this name on the same account) are fixtures of the vendor's file."""

    real: ClassVar[tuple[str, ...]] = ()
    """Settings of the real model's job that this vendor needs beside REAL."""
    rehearsed: ClassVar[tuple[str, ...]] = ()
    """Settings of the job that is rehearsed."""
    planned: ClassVar[str]
    """What the plan of a spot job says."""
    create: ClassVar[str]
    """The operation that starts a job."""
    upload: ClassVar[str]
    """The one that sends a file of the bundle."""
    busy: ClassVar[tuple[tuple[str, str, int, int], ...]]
    """(kind, operation, times, skip) of everything that goes wrong in one job's life and is waited out."""
    at_once: ClassVar[int] = 3
    """Jobs that are sent in the same moment."""
    log_in: ClassVar[str]
    """What is typed when a login has expired."""

    def test_the_real_model_is_tuned_through_a_spot_interruption(
        self, anna: CloudLaptop, train_python: Path, tmp_path: Path
    ) -> None:
        assert anna.launch("init", "--template", "support_triage").returncode == 0
        sets = (*REAL, *self.real, f"env.PIP_FIND_LINKS={os.environ['PIP_FIND_LINKS']}")
        args = [word for line in sets for word in ("--set", line)]
        planned = anna.launch("plan", "--backend", anna.backend, *args)
        assert planned.returncode == 0, planned.stderr
        assert self.planned in planned.stdout
        anna.cloud.set(warm=False)
        anna.cloud.interrupt(after_line=STEP, count=2)
        done = anna.launch("run", "--backend", anna.backend, "--yes", "--json", *args, timeout=800)
        assert done.returncode == 0, done.stderr
        job = events(done)[-1]
        assert (job["state"], job["interruptions"]) == ("SUCCEEDED", 1)
        assert job["evaluation"]["baseline"]["rows"] == job["evaluation"]["tuned"]["rows"] == 2
        (resumed,) = (e["step"] for e in events(done) if e["event"] == "resumed")
        assert 1 <= resumed <= 3
        self.bill(job)
        fetched = anna.launch("fetch", job["id"], "--to", str(tmp_path / "out"))
        assert fetched.returncode == 0, fetched.stderr
        sizes = {a["path"]: a["size"] for a in job["artifacts"]}
        assert {p: (tmp_path / "out" / p).stat().st_size for p in sizes} == sizes
        (adapter,) = (tmp_path / "out").rglob("adapter_model.safetensors")
        self.load(adapter, train_python)

    def load(self, adapter: Path, train_python: Path) -> None:
        """The fetched adapter, by whoever would use it."""
        loads = "import sys, safetensors.torch as s; print(len(s.load_file(sys.argv[1])))"
        loaded = subprocess.run([train_python, "-c", loads, adapter], capture_output=True, text=True, check=True)
        assert int(loaded.stdout) > 100

    def bill(self, job: dict) -> None:
        """What the vendor says that the real model's job has cost: nothing, where it does not tell."""
        assert job["actual"]["cost"] is None

    def test_a_job_that_is_cancelled_goes_on_where_it_was(self, anna: CloudLaptop, tiny_model: Path) -> None:
        job = detached(anna, tiny_model, *QUICK)
        wait_for(lambda: has_said(anna, job, STEP, 3))
        done = anna.launch("cancel", job)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: anna.show(job)["state"] == "CANCELLED", every=2)
        again = anna.launch("resume", job, "--detach", "--json", "--yes")
        assert again.returncode == 0, again.stderr
        second = json.loads(again.stdout.splitlines()[0])["id"]
        assert second == f"{job}-r2"
        wait_for(lambda: has_said(anna, second, '"event": "resumed"'))
        assert anna.launch("cancel", second).returncode == 0

    def test_what_fails_in_the_container_says_why(self, anna: CloudLaptop, tiny_model: Path) -> None:
        write_job(anna.folder, tiny_model, **SHORT)
        (anna.folder / "scorer.py").write_text(
            "def score(rows, answers):\n    raise ValueError('the queue is on fire')\n"
        )
        done = anna.launch("run", "--backend", anna.backend, "--yes", "--set", "eval.scorer=scorer.py")
        assert done.returncode == 1
        assert "the queue is on fire" in done.stderr
        assert "launch resume" in done.stderr

    def test_two_machines_train_one_model(self, anna: CloudLaptop, tiny_model: Path) -> None:
        before = set(anna.jobs_there())
        done = ran(anna, tiny_model, "--set", "resources.nodes=2", *QUICK)
        (job,) = set(anna.jobs_there()) - before
        assert done.returncode == 0, done.stderr + "\n".join(anna.cloud.log(job))
        assert events(done)[-1]["state"] == "SUCCEEDED"
        assert steps(done) == [1, 2]

    def test_several_jobs_at_once_are_as_many_jobs(self, anna: CloudLaptop, tiny_model: Path) -> None:
        write_job(anna.folder, tiny_model, **SHORT)
        before = set(anna.jobs_there())
        args = ("run", "--backend", anna.backend, "--yes", "--json", "--detach", *QUICK)
        launchers = [anna.start(*args) for _ in range(self.at_once)]
        said = [launcher.communicate(timeout=300)[0] for launcher in launchers]
        assert [launcher.returncode for launcher in launchers] == [0] * self.at_once
        jobs = {json.loads(lines.splitlines()[0])["id"] for lines in said}
        assert len(jobs) == len(set(anna.jobs_there()) - before) == self.at_once

        def listed() -> dict[str, str]:
            return {j["id"]: j["state"] for j in json.loads(anna.launch("list", "--json").stdout)}

        wait_for(lambda: set(listed().values()) <= {"SUCCEEDED", "FAILED", "CANCELLED"}, seconds=300)
        assert listed() == dict.fromkeys(jobs, "SUCCEEDED")

    def test_a_busy_and_broken_service_is_waited_out(self, anna: CloudLaptop, tiny_model: Path) -> None:
        before = set(anna.jobs_there())
        for kind, operation, times, skip in self.busy:
            anna.cloud.fault(kind, operation, times=times, skip=skip)
        done = ran(anna, tiny_model, *QUICK)
        assert done.returncode == 0, done.stderr
        assert events(done)[-1]["state"] == "SUCCEEDED"
        assert steps(done) == [1, 2]
        assert len(set(anna.jobs_there()) - before) == 1

    def test_a_lost_answer_is_one_job(self, anna: CloudLaptop, tiny_model: Path) -> None:
        before = set(anna.jobs_there())
        anna.cloud.fault("lose", self.create)
        done = ran(anna, tiny_model, *QUICK)
        assert done.returncode == 0, done.stderr
        assert len(set(anna.jobs_there()) - before) == 1

    def test_a_laptop_killed_while_it_uploads_goes_on_from_there(
        self, anna: CloudLaptop, tiny_model: Path
    ) -> None:
        write_job(anna.folder, tiny_model, **SHORT, seed=4711)  # a bundle that no other test has sent
        before = set(anna.jobs_there())
        files = json.loads(anna.launch("plan", "--backend", anna.backend, "--json").stdout)["bundle"]["files"]
        anna.cloud.fault("slow", self.upload, times=100, skip=10, seconds=2.0)
        process = anna.start("run", "--backend", anna.backend, "--yes", *QUICK)
        wait_for(lambda: anna.uploads() >= 12)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        anna.cloud.clear()
        (job,) = json.loads(anna.launch("list", "--json").stdout)
        assert job["state"] == "FAILED"
        assert "nothing runs" in job["reason"]
        assert set(anna.jobs_there()) == before
        again = anna.launch("run", "--backend", anna.backend, "--yes", "--json", *QUICK)
        assert again.returncode == 0, again.stderr
        assert 3 < anna.uploads() < len(files)  # its use, its list and its record are sent in any case

    def test_a_laptop_killed_while_it_follows_misses_nothing(self, anna: CloudLaptop, tiny_model: Path) -> None:
        write_job(anna.folder, tiny_model, epochs=3, checkpoint_steps=2)
        before = set(anna.jobs_there())
        process = anna.start("run", "--backend", anna.backend, "--yes", *QUICK)
        wait_for(lambda: any(has_said(anna, job, STEP, 2) for job in set(anna.jobs_there()) - before))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done = anna.launch("watch", "--json")
        assert done.returncode == 0, done.stderr
        assert steps(done) == list(range(1, 19))

    def test_an_expired_login_is_told_and_followed_on_after_the_next(
        self, anna: CloudLaptop, tiny_model: Path
    ) -> None:
        write_job(anna.folder, tiny_model, **{**LONG, "epochs": 4})
        lines: list[dict] = []
        with anna.start("run", "--backend", anna.backend, "--yes", "--json", *QUICK) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(json.loads(line))
                if lines[-1]["event"] == "step" and lines[-1]["step"] == 2:
                    anna.cloud.expire()
                if lines[-1]["event"] == "trouble":
                    assert self.log_in in lines[-1]["hint"]
                    anna.log_in()
        assert process.returncode == 0
        assert [e["event"] for e in lines].count("trouble") == 1
        assert [e["step"] for e in lines if e["event"] == "step"] == list(range(1, 25))

    def test_another_laptop_finds_the_jobs_and_whose_they_are(
        self, anna: CloudLaptop, another: Callable[[str], AbstractContextManager[CloudLaptop]], tiny_model: Path
    ) -> None:
        done = ran(anna, tiny_model, *QUICK)
        assert done.returncode == 0, done.stderr
        job = events(done)[-1]["id"]
        with another("ben") as ben:
            assert json.loads(ben.launch("list", "--json").stdout) == []
            found = json.loads(ben.launch("list", "--discover", "--json").stdout)
            known = next(j for j in found if j["id"] == job)
            assert (known["owner"], known["state"]) == ("anna", "SUCCEEDED")
            assert ben.launch("fetch", job).returncode == 0
            refused = ben.launch("release", job)
            assert refused.returncode == 2
            assert "--yes" in refused.stderr
            released = ben.launch("release", job, "--yes")
            assert released.returncode == 0, released.stderr
            assert [key for key in ben.objects() if job in key] == []
        assert job not in anna.jobs_there()

    @pytest.mark.usefixtures("warm_jobs")
    def test_a_rehearsal_survives_losing_its_machine_and_asks_nothing_of_the_cloud(
        self, anna: CloudLaptop, tiny_model: Path
    ) -> None:
        write_job(anna.folder, tiny_model, epochs=2, checkpoint_steps=2)
        before = anna.asked()
        args = (*self.rehearsed, *QUICK)
        done = anna.launch("rehearse", "--backend", anna.backend, "--preempt-after", "3", "--json", *args)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["starts"], found["interrupted_at"]) == (2, 3)
        assert found["resumed_at"] in (2, 3, 4)
        assert (Path(found["output"]) / "artifact").is_dir()
        assert anna.asked() == before
