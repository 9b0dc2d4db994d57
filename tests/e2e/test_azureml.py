"""`launch --backend azureml` from a laptop, with everything going wrong that can, on emulated Azure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.azure import AzureLaptop, laptop
from tests.e2e.jobs import wait_for, write_job
from tests.e2e.laptop import STEP
from tests.emulators.azureml.emulator import AzureMLEmulator

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

SHORT = {"max_steps": 2}
LONG = {"epochs": 400, "checkpoint_steps": 2}
QUICK = ("--set", "eval.baseline=false", "--set", "eval.tuned=false")
T4 = ("--set", "resources.gpu=T4")


@pytest.fixture(scope="module")
def azure(train_python: Path) -> Iterator[AzureMLEmulator]:
    if problem := AzureMLEmulator.unavailable():
        pytest.skip(problem)
    with AzureMLEmulator(train_python, grace_s=60.0) as made:
        yield made


@pytest.fixture
def anna(azure: AzureMLEmulator, tmp_path: Path) -> Iterator[AzureLaptop]:
    with laptop(azure, tmp_path / "anna") as made:
        yield made
    assert azure.strangers() == []


def ran(anna: AzureLaptop, model: Path, *args: str, **train: object) -> subprocess.CompletedProcess[str]:
    write_job(anna.folder, model, **{**SHORT, **train})
    return anna.launch("run", "--backend", "azureml", "--yes", "--json", *args)


def events(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def steps(done: subprocess.CompletedProcess[str]) -> list[int]:
    return [e["step"] for e in events(done) if e["event"] == "step"]


def detached(anna: AzureLaptop, model: Path, *args: str, **train: object) -> str:
    done = ran(anna, model, "--detach", *args, **{**LONG, "max_steps": "null", **train})
    assert done.returncode == 0, done.stderr
    return str(events(done)[0]["id"])


def has_said(anna: AzureLaptop, job: str, what: str, times: int = 1) -> bool:
    return sum(what in line for line in anna.azure.log(job)) >= times


def test_the_real_model_is_tuned_through_a_spot_interruption(
    anna: AzureLaptop, train_python: Path, tmp_path: Path
) -> None:
    assert anna.launch("init", "--template", "support_triage").returncode == 0
    sets = [
        "train.max_steps=4", "train.checkpoint_steps=1", "train.batch_size=1", "eval.max_rows=2",
        "eval.generation=false", "train.early_stopping=null", "data.eval=null", "data.eval_fraction=0.02",
        "resources.spot=true", "resources.max_hours=1", "resources.gpu=T4",
        f"env.PIP_FIND_LINKS={os.environ['PIP_FIND_LINKS']}", "env.PIP_NO_INDEX='1'",
    ]  # fmt: skip
    args = [word for line in sets for word in ("--set", line)]
    planned = anna.launch("plan", "--backend", "azureml", *args)
    assert planned.returncode == 0, planned.stderr
    assert "its checkpoints" in planned.stdout
    anna.azure.interrupt(after_line=STEP)
    done = anna.launch("run", "--backend", "azureml", "--yes", "--json", *args, timeout=800)
    assert done.returncode == 0, done.stderr
    job = events(done)[-1]
    assert (job["state"], job["interruptions"]) == ("SUCCEEDED", 1)
    assert job["evaluation"]["baseline"]["rows"] == job["evaluation"]["tuned"]["rows"] == 2
    (resumed,) = (e["step"] for e in events(done) if e["event"] == "resumed")
    assert 1 <= resumed < 4
    fetched = anna.launch("fetch", job["id"], "--to", str(tmp_path / "out"))
    assert fetched.returncode == 0, fetched.stderr
    sizes = {a["path"]: a["size"] for a in job["artifacts"]}
    assert {p: (tmp_path / "out" / p).stat().st_size for p in sizes} == sizes
    loads = "import sys, safetensors.torch as s; print(len(s.load_file(sys.argv[1])))"
    (adapter,) = (tmp_path / "out").rglob("adapter_model.safetensors")
    loaded = subprocess.run([train_python, "-c", loads, adapter], capture_output=True, text=True, check=True)
    assert int(loaded.stdout) > 100


def test_a_spot_job_that_azure_fails_goes_on_in_a_resume(anna: AzureLaptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, max_steps=6, checkpoint_steps=2)
    anna.azure.interrupt(kind="fail", after_line=STEP, count=3)
    spot = ("--set", "resources.spot=true")
    done = anna.launch("run", "--backend", "azureml", "--yes", *QUICK, *T4, *spot)
    assert done.returncode == 1
    assert "spot capacity was taken" in done.stderr
    assert "launch resume" in done.stderr
    (job,) = json.loads(anna.launch("list", "--json").stdout)
    again = anna.launch("resume", job["id"], "--json")
    assert again.returncode == 0, again.stderr
    assert next(e["step"] for e in events(again) if e["event"] == "resumed") >= 2
    assert events(again)[-1]["state"] == "SUCCEEDED"


def test_a_job_that_is_cancelled_goes_on_where_it_was(anna: AzureLaptop, tiny_model: Path) -> None:
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


def test_what_fails_in_the_container_says_why(anna: AzureLaptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, **SHORT)
    (anna.folder / "scorer.py").write_text(
        "def score(rows, answers):\n    raise ValueError('the queue is on fire')\n"
    )
    done = anna.launch("run", "--backend", "azureml", "--yes", "--set", "eval.scorer=scorer.py")
    assert done.returncode == 1
    assert "the queue is on fire" in done.stderr
    assert "launch resume" in done.stderr


def test_two_machines_train_one_model(anna: AzureLaptop, tiny_model: Path) -> None:
    done = ran(anna, tiny_model, "--set", "resources.nodes=2", *QUICK)
    assert done.returncode == 0, done.stderr + "\n".join(anna.azure.log(anna.azure.jobs()[-1]))
    assert events(done)[-1]["state"] == "SUCCEEDED"
    assert steps(done) == [1, 2]


def test_a_busy_and_broken_service_is_waited_out(anna: AzureLaptop, tiny_model: Path) -> None:
    for kind, operation, times, skip in (
        ("throttle", "PutJob", 2, 0), ("error", "blob:PutBlob", 2, 0), ("drop", "history:GetRun", 2, 0),
        ("unavailable", "GetJob", 7, 1), ("cut", "blob:GetBlob", 1, 0),
    ):  # fmt: skip
        anna.azure.fault(kind, operation, times=times, skip=skip)
    done = ran(anna, tiny_model, *QUICK)
    assert done.returncode == 0, done.stderr
    assert events(done)[-1]["state"] == "SUCCEEDED"
    assert steps(done) == [1, 2]


def test_a_lost_answer_is_one_job(anna: AzureLaptop, tiny_model: Path) -> None:
    before = set(anna.azure.jobs())
    anna.azure.fault("lose", "PutJob")
    done = ran(anna, tiny_model, *QUICK)
    assert done.returncode == 0, done.stderr
    assert len(set(anna.azure.jobs()) - before) == 1


def test_a_laptop_killed_while_it_uploads_goes_on_from_there(anna: AzureLaptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, max_steps=3)  # a bundle that no other test has sent
    before = set(anna.azure.jobs())
    anna.azure.fault("slow", "blob:PutBlob", times=100, skip=10, seconds=2.0)
    process = anna.start("run", "--backend", "azureml", "--yes", *QUICK)
    wait_for(lambda: len(anna.azure.calls("PutBlob")) >= 12)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    anna.azure.clear()
    (job,) = json.loads(anna.launch("list", "--json").stdout)
    assert job["state"] == "FAILED"
    assert "nothing runs" in job["reason"]
    assert set(anna.azure.jobs()) == before
    again = anna.launch("run", "--backend", "azureml", "--yes", "--json", *QUICK)
    assert again.returncode == 0, again.stderr
    sent = [call for call in anna.azure.calls("PutBlob") if "/bundles/" in call["path"]]
    planned = json.loads(anna.launch("plan", "--backend", "azureml", "--json").stdout)
    assert 0 < len(sent) < len(planned["bundle"]["files"])


def test_a_laptop_killed_while_it_follows_misses_nothing(anna: AzureLaptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, epochs=3, checkpoint_steps=2)
    process = anna.start("run", "--backend", "azureml", "--yes", *QUICK)
    before = set(anna.azure.jobs())
    wait_for(lambda: any(has_said(anna, job, STEP, 2) for job in set(anna.azure.jobs()) - before))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = anna.launch("watch", "--json")
    assert done.returncode == 0, done.stderr
    assert steps(done) == list(range(1, 19))


def test_an_expired_login_is_told_and_followed_on_after_the_next(anna: AzureLaptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, **{**LONG, "epochs": 4})
    lines: list[dict] = []
    with anna.start("run", "--backend", "azureml", "--yes", "--json", *QUICK) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "step" and lines[-1]["step"] == 2:
                anna.azure.expire()
            if lines[-1]["event"] == "trouble":
                assert "az login" in lines[-1]["hint"]
                anna.azure.login()
    assert process.returncode == 0
    assert [e["event"] for e in lines].count("trouble") == 1
    assert [e["step"] for e in lines if e["event"] == "step"] == list(range(1, 25))


def test_another_laptop_finds_the_jobs_and_whose_they_are(
    azure: AzureMLEmulator, anna: AzureLaptop, tiny_model: Path, tmp_path: Path
) -> None:
    done = ran(anna, tiny_model, *QUICK)
    assert done.returncode == 0, done.stderr
    job = events(done)[-1]["id"]
    with laptop(azure, tmp_path / "ben") as ben:
        assert json.loads(ben.launch("list", "--json").stdout) == []
        found = json.loads(ben.launch("list", "--discover", "--json").stdout)
        known = next(j for j in found if j["id"] == job)
        assert (known["owner"], known["state"]) == ("anna", "SUCCEEDED")
        assert ben.launch("fetch", job).returncode == 0
        assert ben.launch("release", job, "--yes").returncode == 0
        assert [key for key in azure.blobs("finelaunch/") if job in key] == []
    assert job not in azure.jobs()


def test_a_secret_is_read_from_the_key_vault_inside_the_job(anna: AzureLaptop, tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "secrets", "put", "HUB_TOKEN", "--backend", "azureml"],
        cwd=anna.folder, env={**os.environ, **anna.env}, input="planted-value-1\n", capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    write_job(anna.folder, tiny_model, **SHORT)
    (anna.folder / "scorer.py").write_text(
        "import os\n"
        "def score(rows, answers):\n"
        "    print('it has', len(os.environ['HUB_TOKEN']), os.environ['HUB_TOKEN'])\n"
        "    return {}\n"
    )
    args = ("--set", "eval.scorer=scorer.py", "--set", "secrets=[HUB_TOKEN]")
    ended = anna.launch("run", "--backend", "azureml", "--yes", "--json", *args)
    assert ended.returncode == 0, ended.stderr
    log = "\n".join(anna.azure.log(events(ended)[-1]["id"]))
    assert "it has 15 ***" in log
    assert "planted-value-1" not in log + ended.stdout + ended.stderr


def test_what_the_subscription_lacks_is_told_before_anything_is_sent(anna: AzureLaptop, tiny_model: Path) -> None:
    anna.azure.set(quotas={"standardNCASv3_T4Family": 4})
    done = ran(anna, tiny_model, *T4, "--set", "secrets=[HF_TOKEN]")
    assert done.returncode in (2, 4, 5)
    for said in ("vCPUs left in eastus", "launch secrets put HF_TOKEN --backend azureml", "Error"):
        assert said in done.stderr
    anna.azure.clear()
    anna.azure.deny("blob:ListBlobs")
    done = ran(anna, tiny_model)
    assert "may not read datastore workspaceblobstore" in done.stderr
    assert "az role assignment create" in done.stderr
    assert anna.azure.calls("PutBlob") == []
    assert json.loads(anna.launch("list", "--json").stdout) == []


def test_a_rehearsal_survives_losing_its_machine_and_asks_nothing_of_azure(
    anna: AzureLaptop, tiny_model: Path
) -> None:
    write_job(anna.folder, tiny_model, epochs=2, checkpoint_steps=2)
    before = len(anna.azure.calls())
    done = anna.launch("rehearse", "--backend", "azureml", "--preempt-after", "3", "--json", *QUICK)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["starts"], found["interrupted_at"]) == (2, 3)
    assert found["resumed_at"] in (2, 3, 4)
    assert (Path(found["output"]) / "artifact").is_dir()
    assert len(anna.azure.calls()) == before
