"""`launch --backend sagemaker` from a laptop, with everything going wrong that can, on emulated AWS."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.e2e.aws import Laptop, laptop
from tests.e2e.cases import QUICK, CloudCases, events, ran
from tests.emulators.sagemaker.emulator import SageMakerEmulator

pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def account(image: Callable[[str], Path]) -> Iterator[tuple[SageMakerEmulator, str, str]]:
    if problem := SageMakerEmulator.unavailable():
        pytest.skip(problem)
    with SageMakerEmulator(image("sagemaker"), grace_s=60.0) as aws:
        yield aws, aws.role(), aws.bucket()


@pytest.fixture
def another(
    account: tuple[SageMakerEmulator, str, str], tmp_path: Path
) -> Callable[[str], AbstractContextManager[Laptop]]:
    return lambda name: laptop(*account, tmp_path / name)


@pytest.fixture
def anna(another: Callable[[str], AbstractContextManager[Laptop]]) -> Iterator[Laptop]:
    with another("anna") as made:
        yield made


REPOSITORY = Path(__file__).parents[2]
LOADS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from train_entry.embedded import embedded_folder
base = AutoModelForCausalLM.from_pretrained(embedded_folder("embedded:smollm2-135m"), dtype=torch.float32)
model, ids = PeftModel.from_pretrained(base, sys.argv[1]).eval(), torch.arange(1, 33)[None]
with torch.no_grad():
    tuned = model(ids).logits
    with model.disable_adapter():
        plain = model(ids).logits
print(float((tuned - plain).abs().max()))
"""
"""The fetched adapter on its base: how far it moves the logits; NaN is no number between any two."""


class TestSageMaker(CloudCases):
    planned = "spot"
    rehearsed = ("--set", "resources.nodes=2")
    at_once = 8
    create = "CreateTrainingJob"
    upload = "s3:PutObject"
    busy = (
        ("throttle", "CreateTrainingJob", 2, 0), ("error", "s3:PutObject", 2, 0),
        ("drop", "logs:GetLogEvents", 3, 0), ("unavailable", "DescribeTrainingJob", 12, 0),
        ("cut", "logs:GetLogEvents", 2, 0),
    )  # fmt: skip
    log_in = "aws sso login"

    def load(self, adapter: Path, train_python: Path) -> None:
        """On its base, whose answers it changes; the other vendors' are the same file."""
        command = [train_python, "-c", LOADS, adapter.parent]
        loaded = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert loaded.returncode == 0, loaded.stderr
        assert 0 < float(loaded.stdout) < 50

    def bill(self, job: dict) -> None:
        assert float(job["actual"]["cost"]) > 0


def test_what_the_account_lacks_is_told_before_anything_is_sent(anna: Laptop, tiny_model: Path) -> None:
    anna.aws.quota("ml.g6.2xlarge for training job usage", 0)
    anna.aws.deny("iam:PassRole")
    sent = anna.uploads()
    done = ran(anna, tiny_model, "--set", "secrets=[HF_TOKEN]")
    assert done.returncode in (2, 4, 5)
    for said in ("iam:PassRole", "launch secrets put HF_TOKEN --backend sagemaker", "Error"):
        assert said in done.stderr
    assert anna.uploads() == sent
    assert json.loads(anna.launch("list", "--json").stdout) == []


def test_a_job_gets_the_next_machine_is_heard_to_its_last_line_and_is_released_when_it_is_old(
    anna: Laptop, tiny_model: Path
) -> None:
    anna.aws.capacity("ml.g6.2xlarge", available=False)
    anna.aws.set(log_delay_s=4.0)
    done = ran(anna, tiny_model, "--set", "resources.fallback=[ml.g6.4xlarge]", *QUICK)
    assert done.returncode == 0, done.stderr
    assert [e["event"] for e in events(done)][-3:] == ["done", "state", "job"]
    job = events(done)[-1]
    assert job["artifacts"]
    assert (job["state"], job["machine"]) == ("SUCCEEDED", "ml.g6.4xlarge")
    assert job["estimate"]["rates"].keys() == {"ml.g6.2xlarge", "ml.g6.4xlarge"}
    assert job["actual"]["cost"] is not None  # at the rate of the machine that it got; of seconds, it may be 0.00
    assert job["capacity"]["tries"] == {"ml.g6.2xlarge": "no capacity", "ml.g6.4xlarge": "given"}
    assert all(wait["until"] for wait in job["capacity"]["waits"])
    assert "ml.g6.2xlarge (no capacity), then ml.g6.4xlarge (given)" in anna.launch("show", job["id"]).stdout
    assert anna.launch("release", "--older-than", "1d", "--yes").stdout == "nothing to remove\n"
    assert anna.launch("release", "--older-than", "0h", "--yes").returncode == 0
    assert job["id"] not in anna.jobs_there()
    assert anna.launch("release", "--older-than", "soon").returncode == 2
    assert anna.show(job["id"])["state"] == "SUCCEEDED"


def test_a_secret_is_put_from_standard_input_and_never_shown(anna: Laptop) -> None:
    done = anna.launch("secrets", "put", "HF_TOKEN", "--backend", "sagemaker", said="planted-value\n")
    assert done.returncode == 0, done.stderr
    assert "planted-value" not in done.stdout + done.stderr
    kept = anna.aws.client("secretsmanager").get_secret_value(SecretId="HF_TOKEN")
    assert kept["SecretString"] == "planted-value"
    assert anna.launch("secrets", "put", "not a name", "--backend", "sagemaker", said="x").returncode == 2
    assert anna.launch("secrets", "put", "HF_TOKEN", "--backend", "skypilot", said="x").returncode == 2


def test_setup_finds_what_the_account_has_and_advises_what_it_lacks(anna: Laptop) -> None:
    found = anna.launch("setup", "sagemaker", "--find")
    assert found.returncode == 0, found.stderr
    kept = (anna.folder / "config" / "sites.yaml").read_text()
    assert anna.role in kept
    assert anna.bucket in kept
    advice = anna.launch("setup", "sagemaker", "--advice").stdout
    for said in (f"aws s3 mb s3://{anna.bucket}", "iam:PassRole", "sagemaker:CreateTrainingJob", "create-role"):
        assert said in advice
