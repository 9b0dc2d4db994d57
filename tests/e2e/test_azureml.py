"""`launch --backend azureml` from a laptop, with everything going wrong that can, on emulated Azure."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.e2e.azure import AzureLaptop, laptop
from tests.e2e.cases import LONG, QUICK, SHORT, CloudCases, events, ran
from tests.e2e.jobs import wait_for, write_job
from tests.e2e.laptop import STEP, CloudLaptop
from tests.emulators.azureml.emulator import AzureMLEmulator

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

T4 = ("--set", "resources.gpu=T4")
SPOT = ("--set", "resources.spot=true")


@pytest.fixture(scope="module")
def azure(image: Callable[[str], Path]) -> Iterator[AzureMLEmulator]:
    AzureMLEmulator.needed()
    with AzureMLEmulator(image("azureml"), grace_s=60.0) as made:
        yield made


@pytest.fixture
def another(azure: AzureMLEmulator, tmp_path: Path) -> Callable[[str], AbstractContextManager[AzureLaptop]]:
    return lambda name: laptop(azure, tmp_path / name)


@pytest.fixture
def anna(
    azure: AzureMLEmulator, another: Callable[[str], AbstractContextManager[AzureLaptop]]
) -> Iterator[AzureLaptop]:
    with another("anna") as made:
        yield made
    assert azure.strangers() == []


class TestAzureML(CloudCases):
    real = ("resources.gpu=T4",)
    planned = "its checkpoints"
    create = "PutJob"
    upload = "blob:PutBlob"
    busy = (
        ("throttle", "PutJob", 2, 0), ("error", "blob:PutBlob", 2, 0), ("drop", "history:GetRun", 2, 0),
        ("unavailable", "GetJob", 7, 1), ("cut", "blob:GetBlob", 1, 0),
    )  # fmt: skip
    at_once = 2  # eight: test_eight_jobs_at_once_that_are_sent_twice_each_are_eight_jobs
    log_in = "az login"

    def test_a_busy_and_broken_service_is_waited_out(self, anna: CloudLaptop, tiny_model: Path) -> None:
        anna.cloud.set(log_delay_s=3.0)  # and the log's end comes after the job's
        super().test_a_busy_and_broken_service_is_waited_out(anna, tiny_model)
        assert anna.show()["artifacts"]


def lose_spot(anna: AzureLaptop, *jobs: str | None) -> None:
    """Azure will take the machines of these (None: of the next) at their third step, and not give them back."""
    for job in jobs:
        anna.azure.interrupt(job, kind="fail", after_line=STEP, count=3)


def test_a_spot_job_that_azure_fails_is_submitted_anew_as_often_as_it_says_and_no_more(
    anna: AzureLaptop, tiny_model: Path
) -> None:
    before = set(anna.azure.jobs())
    lose_spot(anna, None, None)
    once = ("--set", "resources.resubmits=1")
    done = ran(anna, tiny_model, *QUICK, *T4, *SPOT, *once, **LONG, max_steps="null")
    assert done.returncode == 1
    first = events(done)[0]["id"]
    second = f"{first}-r2"
    assert set(anna.azure.jobs()) - before == {first, second}
    (again,) = (e for e in events(done) if e["event"] == "resubmitted")
    assert (again["id"], again["resumes"], again["resubmits"]) == (second, first, 1)
    assert next(e["step"] for e in events(done) if e["event"] == "resumed") >= 2
    assert "spot capacity was taken" in done.stderr
    assert "resources.resubmits allows no more" in done.stderr
    assert f"launch resume {second}" in done.stderr.replace("\n", " ")
    jobs = json.loads(anna.launch("list", "--json").stdout)
    assert sorted((j["resubmits"], j["state"]) for j in jobs) == [(0, "FAILED"), (1, "FAILED")]
    watched = anna.launch("watch", first)  # it tells all of it again, and starts nothing
    assert watched.returncode == 1
    assert f"{first} lost its spot capacity; {second} goes on" in watched.stderr.replace("\n", " ")
    assert set(anna.azure.jobs()) - before == {first, second}


def test_a_follower_killed_as_it_submits_anew_leaves_one_job_to_the_next(
    anna: AzureLaptop, tiny_model: Path
) -> None:
    before = set(anna.azure.jobs())
    write_job(anna.folder, tiny_model, max_steps=8, checkpoint_steps=1)
    lose_spot(anna, None)
    anna.azure.fault("slow", "PutJob", skip=1, seconds=600)
    process = anna.start("run", "--backend", "azureml", "--yes", *QUICK, *T4, *SPOT)
    wait_for(lambda: len(set(anna.azure.jobs()) - before) == 1)
    (first,) = set(anna.azure.jobs()) - before
    wait_for(
        lambda: any(j["id"] == f"{first}-r2" for j in json.loads(anna.launch("list", "--json").stdout)), every=1
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    anna.azure.clear()
    followers = [anna.start("watch", first, "--json") for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in followers]
    assert [process.returncode for process in followers] == [0, 0]
    last = [json.loads(lines.splitlines()[-1]) for lines in said]
    assert last[0]["id"] == last[1]["id"]
    assert last[0]["state"] == last[1]["state"] == "SUCCEEDED"
    assert len(set(anna.azure.jobs()) - before) == 2


def test_a_detached_spot_job_says_that_it_needs_a_follower(anna: AzureLaptop, tiny_model: Path) -> None:
    write_job(anna.folder, tiny_model, **LONG)
    done = anna.launch("run", "--backend", "azureml", "--yes", "--detach", *QUICK, *T4, *SPOT)
    assert done.returncode == 0, done.stderr
    job = anna.show()["id"]
    assert "only a follower submits it anew" in done.stderr
    assert f"launch watch {job}" in done.stderr
    assert f"launch resume {job}" in done.stderr
    lose_spot(anna, str(job))
    wait_for(lambda: anna.show()["state"] == "FAILED", every=1)
    watched = anna.launch("watch", str(job))  # over when it comes: it spends nothing by itself
    assert watched.returncode == 1
    assert f"launch resume {job}" in watched.stderr
    again = anna.launch("resume", str(job), "--detach", "--yes")
    assert again.returncode == 0, again.stderr
    assert "only a follower submits it anew" in again.stderr
    assert anna.launch("cancel", f"{job}-r2").returncode == 0


def test_a_secret_is_read_from_the_key_vault_inside_the_job(anna: AzureLaptop, tiny_model: Path) -> None:
    done = anna.launch("secrets", "put", "HUB_TOKEN", "--backend", "azureml", said="planted-value-1\n")
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


def test_setup_finds_what_the_subscription_has_and_advises_what_it_lacks(anna: AzureLaptop) -> None:
    kept = (anna.folder / "config" / "sites.yaml").read_text()  # by launch setup azureml --find
    azure = anna.azure
    for found in (azure.subscription, azure.group, azure.workspace, azure.vault, azure.identity, "eastus"):
        assert found in kept
    advice = anna.launch("setup", "azureml", "--advice").stdout
    for said in (
        f"az ml workspace create --name {azure.workspace}",
        "'Storage Blob Data Contributor'",
        "az login",
    ):
        assert said in advice
