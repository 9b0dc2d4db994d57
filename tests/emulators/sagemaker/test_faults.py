"""What goes wrong between a caller and AWS, on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, IncompleteReadError, ResponseStreamingError

from tests.emulators.sagemaker.conftest import Account
from tests.emulators.sagemaker.emulator import SageMakerEmulator

ONCE = {"total_max_attempts": 1}


def statuses(account: Account, operation: str) -> list[int | None]:
    return [call.status for call in account.aws.calls if call.operation == operation]


def test_a_throttled_call_is_answered_as_each_service_says_it(account: Account) -> None:
    for service, operation, code in (
        ("sagemaker", "list_training_jobs", "ThrottlingException"),
        ("s3", "list_buckets", "SlowDown"),
        ("iam", "list_roles", "Throttling"),
        ("logs", "describe_log_groups", "ThrottlingException"),
    ):
        account.aws.fault("throttle")
        with pytest.raises(ClientError) as refused:
            getattr(account.aws.client(service, retries=ONCE), operation)()
        assert refused.value.response["Error"]["Code"] == code


def test_boto3_retries_a_throttled_and_a_failing_service(account: Account) -> None:
    for kind in ("throttle", "error", "unavailable"):
        account.aws.fault(kind, "ListTrainingJobs")
    client = account.aws.client("sagemaker", retries={"total_max_attempts": 4, "mode": "standard"})
    client.list_training_jobs()
    assert statuses(account, "ListTrainingJobs") == [400, 500, 503, 200]


def test_a_fault_is_only_for_what_it_names_and_comes_after_what_it_skips(account: Account) -> None:
    account.aws.fault("error", "s3:PutObject", skip=1)
    client = account.aws.client("s3", retries=ONCE)
    client.list_objects_v2(Bucket=account.bucket)
    client.put_object(Bucket=account.bucket, Key="one", Body=b"")
    with pytest.raises(ClientError, match="InternalError"):
        client.put_object(Bucket=account.bucket, Key="two", Body=b"")
    assert account.keys("two") == []
    with pytest.raises(ValueError, match="none of"):
        account.aws.fault("nonsense")


def test_a_dropped_call_is_not_done(account: Account) -> None:
    request = account.request(hyper={"steps": 1})
    client = account.aws.client("sagemaker", retries=ONCE)
    account.aws.fault("drop", "CreateTrainingJob")
    with pytest.raises(ConnectionClosedError):
        client.create_training_job(**request)
    with pytest.raises(ClientError, match="Requested resource not found"):
        client.describe_training_job(TrainingJobName=request["TrainingJobName"])
    assert statuses(account, "CreateTrainingJob") == [None]


def test_where_the_answer_is_lost_the_job_is_there(account: Account) -> None:
    request = account.request(hyper={"steps": 1})
    client = account.aws.client("sagemaker", retries=ONCE)
    account.aws.fault("lose", "CreateTrainingJob")
    with pytest.raises(ConnectionClosedError):
        client.create_training_job(**request)
    with pytest.raises(ClientError) as refused:
        client.create_training_job(**request)
    assert refused.value.response["Error"]["Code"] == "ResourceInUse"
    assert account.aws.wait(request["TrainingJobName"])["TrainingJobStatus"] == "Completed"


def test_boto3_itself_meets_its_own_job_when_it_retries(account: Account) -> None:
    account.aws.fault("lose", "CreateTrainingJob")
    with pytest.raises(ClientError) as refused:
        account.start(hyper={"steps": 1})
    assert refused.value.response["Error"]["Code"] == "ResourceInUse"


def test_half_of_an_object_is_not_taken_for_all_of_it(account: Account) -> None:
    account.put("big", b"x" * 100_000)
    account.aws.fault("cut", "s3:GetObject")
    body = account.aws.client("s3").get_object(Bucket=account.bucket, Key="big")["Body"]
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        body.read()
    assert len(account.get(f"s3://{account.bucket}/big")) == 100_000


def test_a_slow_answer_comes(account: Account) -> None:
    account.aws.fault("slow", "ListBuckets", seconds=0.5)
    began = time.monotonic()
    account.aws.client("s3").list_buckets()
    assert time.monotonic() - began >= 0.5


def test_expired_credentials_stay_expired_and_new_ones_work(account: Account) -> None:
    old = [account.aws.client(service, retries=ONCE) for service in ("sagemaker", "s3", "sts")]
    account.aws.expire()
    codes = []
    for client, call in zip(old, ("list_training_jobs", "list_buckets", "get_caller_identity"), strict=True):
        with pytest.raises(ClientError) as refused:
            getattr(client, call)()
        codes.append(refused.value.response["Error"]["Code"])
    assert codes == ["ExpiredTokenException", "ExpiredToken", "ExpiredToken"]
    account.aws.login()
    assert account.aws.client("sts").get_caller_identity()["Arn"].endswith(":user/developer")
    with pytest.raises(ClientError):
        old[0].list_training_jobs()


def test_faults_are_not_for_the_jobs_themselves(account: Account) -> None:
    account.put("code/list.py", LIST)
    account.aws.fault("error", "ListObjectsV2")
    job = account.start("python3", "/opt/ml/input/data/code/list.py", Environment={"BUCKET": account.bucket})
    account.aws.wait(job)
    assert account.aws.log(job) == ["listed"]
    with pytest.raises(ClientError, match="InternalError"):
        account.aws.client("s3", retries=ONCE).list_objects_v2(Bucket=account.bucket)


def test_log_lines_can_come_after_the_end(account: Account) -> None:
    account.aws.set(log_delay_s=2.0)
    job = account.start(hyper={"steps": 2, "step_s": 0})
    account.aws.wait(job)
    assert "algo-1 step 2" not in account.aws.log(job)
    time.sleep(2.5)
    assert account.aws.log(job)[1:] == ["algo-1 step 1", "algo-1 step 2"]


def test_a_program_finds_the_account_by_its_environment_alone(account: Account) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import boto3; print(boto3.client('sts').get_caller_identity()['Account'])"],
        env={"PATH": os.environ["PATH"], **account.aws.environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "123456789012"


def test_it_ends_with_all_its_jobs(
    start_emulator: Callable[..., SageMakerEmulator], tmp_path: Path, counting_job: bytes
) -> None:
    with start_emulator(folder=tmp_path / "emulator", grace_s=60) as aws:
        account = Account(aws=aws, role=aws.role(), bucket=aws.bucket())
        account.put("code/counting_job.py", counting_job)
        account.start(hyper={"steps": 10_000, "deaf": 1})
        aws.wait_for_line("job-0", "step 1")
        pid = aws.pid
        assert _children(pid)
    assert not Path(f"/proc/{pid}").exists()
    assert not _mentioning(tmp_path)
    assert "Traceback" not in (tmp_path / "emulator/server.log").read_text()


def test_its_jobs_end_when_it_is_killed(
    start_emulator: Callable[..., SageMakerEmulator], tmp_path: Path, counting_job: bytes
) -> None:
    with start_emulator(folder=tmp_path / "emulator") as aws:
        account = Account(aws=aws, role=aws.role(), bucket=aws.bucket())
        account.put("code/counting_job.py", counting_job)
        account.start(hyper={"steps": 10_000, "deaf": 1})
        aws.wait_for_line("job-0", "step 1")
        os.kill(aws.pid, 9)
        until = time.monotonic() + 10
        while _mentioning(tmp_path):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_the_record_of_calls_is_json(account: Account) -> None:
    account.aws.client("s3").list_buckets()
    call = account.aws.calls[-1]
    assert (call.service, call.operation, call.key, call.role) == ("s3", "ListBuckets", account.aws.key, False)
    assert json.dumps(call.time)


LIST = """
import os, botocore.session
client = botocore.session.get_session().create_client("s3")
client.list_objects_v2(Bucket=os.environ["BUCKET"])
print("listed")
"""


def _children(pid: int) -> list[str]:
    return [
        task for path in Path(f"/proc/{pid}/task").iterdir() for task in (path / "children").read_text().split()
    ]


def _mentioning(folder: Path) -> list[str]:
    """Processes whose command line or environment names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in told and int(process.name) != os.getpid():
            found.append(process.name)
    return found
