"""The emulator as AWS's own programs see it: ModelTrainer outside, the training toolkit inside."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.sagemaker import clients
from tests.emulators.sagemaker.conftest import Account, states

IMAGE = "1.dkr.ecr.us-east-1.amazonaws.com/aws-clients:1"
NOWHERE = "http://127.0.0.1:9"
"""A proxy that is not there: what the SDK sends elsewhere (its telemetry) does not leave the machine."""
SCRIPT = """
import argparse, json, os, pathlib, sys, time
parser = argparse.ArgumentParser()
for name, default in (("lr", 0.0), ("exit", 0), ("steps", 2)):
    parser.add_argument(f"--{name}", type=type(default), default=default)
given = parser.parse_args()
kept = pathlib.Path("/opt/ml/checkpoints/step")
print("TOLD", json.dumps({"given": vars(given), "rows": os.listdir(os.environ["SM_CHANNEL_ROWS"]),
                          "hosts": json.loads(os.environ["SM_HOSTS"].replace("'", '"'))}), flush=True)
first = int(kept.read_text()) + 1 if kept.exists() else 1
for step in range(first, given.steps + 1):
    time.sleep(.1)
    if kept.parent.is_dir():
        kept.write_text(str(step))
    print("step", step, flush=True)
if given.exit:
    sys.exit(given.exit)
pathlib.Path(os.environ["SM_MODEL_DIR"], "weights").write_text("trained")
"""


@pytest.fixture(scope="module")
def sdk_python() -> Path:
    if not clients.ready():
        pytest.skip(f"make test builds the environment of AWS's own clients ({clients.SIZE})")
    return clients.python()


@pytest.fixture
def images(account: Account, sdk_python: Path) -> Account:
    account.aws.set(images={"*/aws-clients:*": str(sdk_python)}, grace_s=2.0)
    account.put("clients-rows/a.jsonl", "{}")
    return account


@pytest.mark.timeout(240)
def test_model_trainer_trains_fails_is_interrupted_and_is_stopped(images: Account, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/script.py").write_text(SCRIPT)
    images.aws.interrupt(after_line="step 5")
    done = subprocess.run(
        [clients.python(), Path(__file__).with_name("train_with_sdk.py"), images.role, images.bucket,
         tmp_path / "source"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HTTPS_PROXY": NOWHERE, "HTTP_PROXY": NOWHERE,
             "NO_PROXY": "127.0.0.1", **images.aws.environment},
        cwd=tmp_path, capture_output=True, text=True, timeout=220, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads(done.stdout.strip().splitlines()[-1])
    jobs: dict[str, dict[str, Any]] = told["jobs"]
    assert {name: job["status"] for name, job in jobs.items()} == {
        "good": "Completed", "bad": "Failed", "spot": "Completed", "stopped": "Stopped",
    }  # fmt: skip
    assert _told(images.aws.log(jobs["good"]["name"])) == {
        "given": {"lr": 0.1, "exit": 0, "steps": 2}, "rows": ["a.jsonl"], "hosts": ["algo-1"],
    }  # fmt: skip
    assert "exit code: " in jobs["bad"]["reason"]
    assert told["raised"] == {"bad": "FailedStatusError"}
    assert "Interrupted" in jobs["spot"]["states"]
    log = images.aws.log(jobs["spot"]["name"])
    assert log.count("step 20") == 1
    assert log.count("step 1") == 1, "it went on from its checkpoint"
    assert jobs["stopped"]["states"][-2:] == ["Uploading", "Stopped"]
    assert {"SimulatePrincipalPolicy", "GetRole"} <= {call.operation for call in images.aws.calls}


def _toolkit_job(account: Account, **hyper: Any) -> str:
    """A job with the image's own entrypoint, as framework estimators made it: hyperparameters are JSON."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        info = tarfile.TarInfo("script.py")
        info.size = len(SCRIPT.encode())
        archive.addfile(info, io.BytesIO(SCRIPT.encode()))
    code = account.put("toolkit/sourcedir.tar.gz", packed.getvalue())
    hyper |= {
        "sagemaker_program": "script.py",
        "sagemaker_submit_directory": code,
        "sagemaker_region": "us-east-1",
    }
    request = account.request(hyper={key: json.dumps(value) for key, value in hyper.items()})
    request["AlgorithmSpecification"] = {"TrainingImage": IMAGE, "TrainingInputMode": "File"}
    request["ResourceConfig"]["InstanceCount"] = 2
    request["InputDataConfig"][0]["ChannelName"] = "rows"
    request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] = f"s3://{account.bucket}/clients-rows"
    account.aws.client("sagemaker").create_training_job(**request)
    return str(request["TrainingJobName"])


@pytest.mark.timeout(120)
def test_the_training_toolkit_runs_a_script_on_two_hosts(images: Account) -> None:
    name = _toolkit_job(images, lr=0.5)
    told = images.aws.wait(name, timeout_s=100)
    log = images.aws.log(name)
    assert told["TrainingJobStatus"] == "Completed", log
    seen = _told(log)
    assert (seen["given"]["lr"], seen["rows"], seen["hosts"]) == (0.5, ["a.jsonl"], ["algo-1", "algo-2"])
    assert len([line for line in log if line.startswith("TOLD")]) == 2
    assert states(told)[-2:] == ["Uploading", "Completed"]


@pytest.mark.timeout(120)
def test_the_training_toolkit_tells_of_a_failure(images: Account) -> None:
    told = images.aws.wait(_toolkit_job(images, exit=9), timeout_s=100)
    assert told["TrainingJobStatus"] == "Failed"
    assert told["FailureReason"].startswith("AlgorithmError: ExecuteUserScriptError:\nExitCode 9")


def _told(log: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next(line for line in log if line.startswith("TOLD")).removeprefix("TOLD "))
    return found
