"""`launch --backend sagemaker` from a laptop, with everything going wrong that can, on emulated AWS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.aws import Laptop, laptop
from tests.e2e.jobs import wait_for, write_job
from tests.e2e.laptop import STEP
from tests.emulators.sagemaker.emulator import SageMakerEmulator

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

SHORT = {"max_steps": 2}
LONG = {"epochs": 400, "checkpoint_steps": 2}
QUICK = ("--set", "eval.baseline=false", "--set", "eval.tuned=false")


@pytest.fixture(scope="module")
def account(sagemaker_image: Path) -> Iterator[tuple[SageMakerEmulator, str, str]]:
    if problem := SageMakerEmulator.unavailable():
        pytest.skip(problem)
    with SageMakerEmulator(sagemaker_image, grace_s=60.0) as aws:
        yield aws, aws.role(), aws.bucket()


@pytest.fixture
def anna(account: tuple[SageMakerEmulator, str, str], tmp_path: Path) -> Iterator[Laptop]:
    with laptop(*account, tmp_path / "anna") as made:
        yield made


def ran(anna: Laptop, model: Path, *args: str, **train: object) -> subprocess.CompletedProcess[str]:
    write_job(anna.folder, model, **{**SHORT, **train})
    return anna.launch("run", "--backend", "sagemaker", "--yes", "--json", *args)


def events(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def detached(anna: Laptop, model: Path, *args: str, **train: object) -> str:
    done = ran(anna, model, "--detach", *args, **{**LONG, "max_steps": "null", **train})
    assert done.returncode == 0, done.stderr
    return str(events(done)[0]["id"])


def has_said(anna: Laptop, job: str, what: str, times: int = 1) -> bool:
    return sum(what in line for line in anna.aws.log(job)) >= times


def test_the_real_model_is_tuned_through_a_spot_interruption(
    anna: Laptop, train_python: Path, tmp_path: Path
) -> None:
    assert anna.launch("init", "--template", "support_triage").returncode == 0
    wheels = os.environ["PIP_FIND_LINKS"]
    sets = [
        "train.max_steps=4", "train.checkpoint_steps=2", "train.batch_size=2", "eval.max_rows=4",
        "eval.generation=false", "train.early_stopping=null",
        "data.eval=null", "data.eval_fraction=0.02", "resources.spot=true", "resources.max_hours=1",
        f"env.PIP_FIND_LINKS={wheels}", "env.PIP_NO_INDEX='1'",
    ]  # fmt: skip
    args = [word for line in sets for word in ("--set", line)]
    planned = anna.launch("plan", "--backend", "sagemaker", *args)
    assert planned.returncode == 0, planned.stderr
    assert "spot" in planned.stdout
    anna.aws.interrupt(after_line=STEP, count=3)
    done = anna.launch("run", "--backend", "sagemaker", "--yes", "--json", *args, timeout=800)
    assert done.returncode == 0, done.stderr
    job = events(done)[-1]
    assert (job["state"], job["interruptions"]) == ("SUCCEEDED", 1)
    assert job["evaluation"]["baseline"]["rows"] == job["evaluation"]["tuned"]["rows"] == 4
    (resumed,) = [e["step"] for e in events(done) if e["event"] == "resumed"]
    assert resumed in (2, 3, 4)
    assert float(job["actual"]["cost"]) > 0
    fetched = anna.launch("fetch", job["id"], "--to", str(tmp_path / "out"))
    assert fetched.returncode == 0, fetched.stderr
    sizes = {a["path"]: a["size"] for a in job["artifacts"]}
    assert {p: (tmp_path / "out" / p).stat().st_size for p in sizes} == sizes
    loads = "import sys, safetensors.torch as s; print(len(s.load_file(sys.argv[1])))"
    (adapter,) = (tmp_path / "out").rglob("adapter_model.safetensors")
    loaded = subprocess.run([train_python, "-c", loads, adapter], capture_output=True, text=True, check=True)
    assert int(loaded.stdout) > 100


def test_a_job_that_is_cancelled_goes_on_where_it_was(anna: Laptop, tiny_model: Path) -> None:
    job = detached(anna, tiny_model, *QUICK)
    wait_for(lambda: has_said(anna, job, STEP, 3))
    done = anna.launch("cancel", job)
    assert done.returncode == 0, done.stderr
    assert anna.show(job)["state"] == "CANCELLED"
    again = anna.launch("resume", job, "--detach", "--json")
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout.splitlines()[0])["id"]
    assert second == f"{job}-r2"
    wait_for(lambda: has_said(anna, second, '"event": "resumed"'))
    assert anna.launch("cancel", second).returncode == 0


def test_what_fails_in_the_container_says_why(anna: Laptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, **SHORT)
    (anna.folder / "scorer.py").write_text(
        "def score(rows, answers):\n    raise ValueError('the queue is on fire')\n"
    )
    done = anna.launch("run", "--backend", "sagemaker", "--yes", "--set", "eval.scorer=scorer.py")
    assert done.returncode == 1
    assert "the queue is on fire" in done.stderr
    assert "launch resume" in done.stderr


def test_two_instances_train_one_model(anna: Laptop, tiny_model: Path) -> None:
    done = ran(anna, tiny_model, "--set", "resources.nodes=2", *QUICK)
    assert done.returncode == 0, done.stderr + "\n".join(anna.aws.log(anna.jobs_at_aws()[0]))
    assert events(done)[-1]["state"] == "SUCCEEDED"
    assert [e["step"] for e in events(done) if e["event"] == "step"] == [1, 2]


def test_eight_jobs_at_once_are_eight_jobs(anna: Laptop, tiny_model: Path) -> None:
    jobs = [detached(anna, tiny_model, *QUICK, **SHORT) for _ in range(8)]
    assert len(set(jobs)) == 8
    for job in jobs:
        followed = anna.launch("watch", job, "--json", timeout=600)
        assert followed.returncode == 0, followed.stderr
    listed = json.loads(anna.launch("list", "--json").stdout)
    assert {j["id"]: j["state"] for j in listed} == dict.fromkeys(jobs, "SUCCEEDED")


def test_a_busy_and_broken_endpoint_is_waited_out(anna: Laptop, tiny_model: Path) -> None:
    for kind, operation, times in (
        ("throttle", "CreateTrainingJob", 2), ("error", "s3:PutObject", 2), ("drop", "logs:GetLogEvents", 3),
        ("unavailable", "DescribeTrainingJob", 12), ("cut", "logs:GetLogEvents", 2),
    ):  # fmt: skip
        anna.aws.fault(kind, operation, times=times)
    done = ran(anna, tiny_model, *QUICK)
    assert done.returncode == 0, done.stderr
    assert events(done)[-1]["state"] == "SUCCEEDED"
    assert [e["step"] for e in events(done) if e["event"] == "step"] == [1, 2]


def test_a_lost_answer_is_one_job(anna: Laptop, tiny_model: Path) -> None:
    before = set(anna.jobs_at_aws())
    anna.aws.fault("lose", "CreateTrainingJob")
    done = ran(anna, tiny_model, *QUICK)
    assert done.returncode == 0, done.stderr
    assert len(set(anna.jobs_at_aws()) - before) == 1


def puts(anna: Laptop) -> int:
    return sum(call.operation == "PutObject" and not call.role for call in anna.aws.calls)


def test_a_laptop_killed_while_it_uploads_goes_on_from_there(anna: Laptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, **SHORT, seed=4711)  # a bundle that no other test has sent
    before = set(anna.jobs_at_aws())
    files = json.loads(anna.launch("plan", "--backend", "sagemaker", "--json").stdout)["bundle"]["files"]
    anna.aws.fault("slow", "s3:PutObject", times=100, skip=10, seconds=2.0)
    process = anna.start("run", "--backend", "sagemaker", "--yes", *QUICK)
    wait_for(lambda: puts(anna) >= 12)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    anna.aws.clear()
    (job,) = json.loads(anna.launch("list", "--json").stdout)
    assert job["state"] == "FAILED"
    assert "nothing runs" in job["reason"]
    assert set(anna.jobs_at_aws()) == before
    again = anna.launch("run", "--backend", "sagemaker", "--yes", "--json", *QUICK)
    assert again.returncode == 0, again.stderr
    assert 3 < puts(anna) < len(files)  # its use, its list and its record are sent in any case


def test_a_laptop_killed_while_it_follows_misses_nothing(anna: Laptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, epochs=3, checkpoint_steps=2)
    before = set(anna.jobs_at_aws())
    process = anna.start("run", "--backend", "sagemaker", "--yes", *QUICK)
    wait_for(lambda: any(has_said(anna, job, STEP, 2) for job in set(anna.jobs_at_aws()) - before))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = anna.launch("watch", "--json")
    assert done.returncode == 0, done.stderr
    seen = [e["step"] for e in events(done) if e["event"] == "step"]
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) == 18


def test_an_expired_login_is_told_and_followed_on_after_the_next(anna: Laptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, **{**LONG, "epochs": 8})
    lines: list[dict] = []
    with anna.start("run", "--backend", "sagemaker", "--yes", "--json", *QUICK) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "step" and lines[-1]["step"] == 2:
                anna.aws.expire()
            if lines[-1]["event"] == "trouble":
                assert "aws sso login" in lines[-1]["hint"]
                anna.log_in()
    assert process.returncode == 0
    assert [e["event"] for e in lines].count("trouble") == 1
    seen = [e["step"] for e in lines if e["event"] == "step"]
    assert seen == list(range(1, 49))


def test_another_laptop_finds_the_jobs_and_whose_they_are(
    account: tuple[SageMakerEmulator, str, str], anna: Laptop, tiny_model: Path, tmp_path: Path
) -> None:
    done = ran(anna, tiny_model, *QUICK)
    assert done.returncode == 0, done.stderr
    job = events(done)[-1]["id"]
    with laptop(*account, tmp_path / "ben") as ben:
        assert json.loads(ben.launch("list", "--json").stdout) == []
        found = json.loads(ben.launch("list", "--discover", "--json").stdout)
        known = next(j for j in found if j["id"] == job)
        assert (known["owner"], known["state"]) == ("anna", "SUCCEEDED")
        assert ben.launch("fetch", job).returncode == 0
        refused = ben.launch("release", job)
        assert refused.returncode == 2
        assert "--yes" in refused.stderr
        assert ben.launch("release", job, "--yes").returncode == 0
        left = [k for k in ben_keys(ben) if job in k]
        assert left == []
    assert job not in anna.jobs_at_aws()


def ben_keys(ben: Laptop) -> list[str]:
    found = ben.aws.client("s3").list_objects_v2(Bucket=ben.bucket)
    return [item["Key"] for item in found.get("Contents", ())]


def test_what_the_account_lacks_is_told_before_anything_is_sent(anna: Laptop, tiny_model: Path) -> None:
    anna.aws.quota("ml.g6.2xlarge for training job usage", 0)
    anna.aws.deny("iam:PassRole")
    sent = puts(anna)
    done = ran(anna, tiny_model, "--set", "secrets=[HF_TOKEN]")
    assert done.returncode in (2, 4, 5)
    for said in ("iam:PassRole", "launch secrets put HF_TOKEN --backend sagemaker", "Error"):
        assert said in done.stderr
    assert puts(anna) == sent
    assert json.loads(anna.launch("list", "--json").stdout) == []


def test_where_there_is_no_capacity_the_next_machine_of_the_list_is_taken(anna: Laptop, tiny_model: Path) -> None:
    anna.aws.capacity("ml.g6.2xlarge", available=False)
    done = ran(anna, tiny_model, "--set", "resources.fallback=[ml.g6.4xlarge]", *QUICK)
    assert done.returncode == 0, done.stderr
    job = events(done)[-1]
    assert (job["state"], job["machine"]) == ("SUCCEEDED", "ml.g6.4xlarge")
    assert job["actual"]["cost"] is None  # the estimate's rate was the other one's


def test_a_secret_is_put_from_standard_input_and_never_shown(anna: Laptop) -> None:
    done = anna.launch("secrets", "put", "HF_TOKEN", "--backend", "sagemaker", said="planted-value\n")
    assert done.returncode == 0, done.stderr
    assert "planted-value" not in done.stdout + done.stderr
    kept = anna.aws.client("secretsmanager").get_secret_value(SecretId="HF_TOKEN")
    assert kept["SecretString"] == "planted-value"
    assert anna.launch("secrets", "put", "not a name", "--backend", "sagemaker", said="x").returncode == 2
    assert anna.launch("secrets", "put", "HF_TOKEN", "--backend", "skypilot", said="x").returncode == 2


def test_what_is_old_enough_is_released(anna: Laptop, tiny_model: Path) -> None:
    done = ran(anna, tiny_model, *QUICK)
    job = events(done)[-1]["id"]
    assert anna.launch("release", "--older-than", "1d", "--yes").stdout == "nothing to remove\n"
    assert anna.launch("release", "--older-than", "0h", "--yes").returncode == 0
    assert job not in anna.jobs_at_aws()
    assert anna.launch("release", "--older-than", "soon").returncode == 2
    assert anna.show(job)["state"] == "SUCCEEDED"


def test_late_lines_are_waited_for(anna: Laptop, tiny_model: Path) -> None:
    anna.aws.set(log_delay_s=4.0)
    try:
        done = ran(anna, tiny_model, *QUICK)
    finally:
        anna.aws.set(log_delay_s=0.0)
    assert done.returncode == 0, done.stderr
    assert [e["event"] for e in events(done)][-3:] == ["done", "state", "job"]
    assert events(done)[-1]["artifacts"]


def test_setup_finds_what_the_account_has_and_advises_what_it_lacks(anna: Laptop) -> None:
    found = anna.launch("setup", "sagemaker", "--find")
    assert found.returncode == 0, found.stderr
    kept = (anna.folder / "config" / "sites.yaml").read_text()
    assert anna.role in kept
    assert anna.bucket in kept
    advice = anna.launch("setup", "sagemaker", "--advice").stdout
    for said in (f"aws s3 mb s3://{anna.bucket}", "iam:PassRole", "sagemaker:CreateTrainingJob", "create-role"):
        assert said in advice


def test_a_rehearsal_survives_losing_its_machine_and_asks_nothing_of_aws(anna: Laptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, epochs=2, checkpoint_steps=2)
    before = len(anna.aws.calls)
    done = anna.launch("rehearse", "--backend", "sagemaker", "--preempt-after", "3", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["starts"], found["interrupted_at"]) == (2, 3)
    assert found["resumed_at"] in (2, 3, 4)
    assert (Path(found["output"]) / "artifact").is_dir()
    assert len(anna.aws.calls) == before
