"""A training job from request to artifacts, as boto3 sees it."""

from __future__ import annotations

import io
import json
import tarfile
import time

import pytest
from botocore.exceptions import ClientError

from tests.emulators.sagemaker.conftest import Account, states

LONG = {"steps": 2000, "step_s": 0.03}


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}  # type: ignore[union-attr]


def test_a_job_goes_through_its_states_to_artifacts_that_exist(account: Account) -> None:
    job = account.start(hyper={"note": "it's"}, Environment={"A": "b"}, Tags=[{"Key": "owner", "Value": "me"}])
    told = account.aws.wait(job)
    assert states(told) == ["Starting", "Pending", "Downloading", "Training", "Uploading", "Completed"]
    ends = [transition["EndTime"] for transition in told["SecondaryStatusTransitions"]]
    assert ends == sorted(ends)
    assert told["CreationTime"] <= told["TrainingStartTime"] <= told["TrainingEndTime"] == told["LastModifiedTime"]
    assert told["TrainingTimeInSeconds"] == told["BillableTimeInSeconds"] >= 1
    assert told["Environment"] == {"A": "b"}
    assert told["HyperParameters"] == {"note": "it's"}
    artifacts = told["ModelArtifacts"]["S3ModelArtifacts"]
    assert artifacts == f"s3://{account.bucket}/out/{job}/output/model.tar.gz"
    assert unpacked(account.get(artifacts)) == {"sub/weights": b"algo-1 done"}
    assert unpacked(account.get(f"s3://{account.bucket}/out/{job}/output/output.tar.gz")) == {"notes": b"noted"}
    assert account.aws.log(job) == ["algo-1 starts at 0", "algo-1 step 1", "algo-1 step 2", "algo-1 step 3"]
    tags = account.aws.client("sagemaker").list_tags(ResourceArn=told["TrainingJobArn"])["Tags"]
    assert tags == [{"Key": "owner", "Value": "me"}]


def test_an_uncompressed_output_is_a_tree(account: Account) -> None:
    output = {"S3OutputPath": f"s3://{account.bucket}/plain", "CompressionType": "NONE"}
    job = account.start(OutputDataConfig=output)
    told = account.aws.wait(job)
    assert told["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{account.bucket}/plain/{job}/output/model/"
    assert account.keys(f"plain/{job}/output/model/") == [f"plain/{job}/output/model/sub/weights"]


@pytest.mark.parametrize(
    ("hyper", "reason"),
    [
        ({"exit": 3, "failure": "no such label"}, "AlgorithmError: no such label, exit code: 3"),
        ({"exit": 1}, "AlgorithmError: , exit code: 1"),
        ({"exit": 2, "failure": "x" * 2000}, f"AlgorithmError: {'x' * 1008}"),
    ],
)
def test_a_failing_job_says_what_it_left_in_its_failure_file(
    account: Account, hyper: dict[str, object], reason: str
) -> None:
    told = account.aws.wait(account.start(hyper={"steps": 1, **hyper}))
    assert (told["TrainingJobStatus"], states(told)[-2:]) == ("Failed", ["Uploading", "Failed"])
    assert told["FailureReason"] == reason


def test_a_command_that_is_not_in_the_image_fails(account: Account) -> None:
    job = account.start("no-such-program")
    assert account.aws.wait(job)["TrainingJobStatus"] == "Failed"
    assert "no-such-program" in account.aws.log(job)[0]


def test_stop_lets_process_1_save_and_uploads_what_there_is(account: Account) -> None:
    client = account.aws.client("sagemaker")
    name = account.start(hyper=LONG, CheckpointConfig={"S3Uri": f"s3://{account.bucket}/stopped"})
    account.aws.wait_for_line(name, "step 2")
    client.stop_training_job(TrainingJobName=name)
    with pytest.raises(ClientError, match="in status Stopping"):
        client.stop_training_job(TrainingJobName=name)
    told = account.aws.wait(name)
    assert told["TrainingJobStatus"] == told["SecondaryStatus"] == "Stopped"
    assert states(told)[3:] == ["Training", "Stopping", "Uploading", "Stopped"]
    assert account.aws.attempts(name)[0]["codes"] == [143]
    assert "algo-1 got signal 15" in account.aws.log(name)
    weights = unpacked(account.get(told["ModelArtifacts"]["S3ModelArtifacts"]))["weights"]
    assert weights.decode() == f"stopped at {account.get(f's3://{account.bucket}/stopped/algo-1.txt').decode()}"
    with pytest.raises(ClientError, match="in status Stopped"):
        client.stop_training_job(TrainingJobName=name)


def test_who_does_not_hear_sigterm_is_killed_after_the_grace_period(account: Account) -> None:
    account.aws.set(grace_s=1.5)
    name = account.start(hyper={**LONG, "deaf": 1})
    account.aws.wait_for_line(name, "step 1")
    began = time.monotonic()
    account.aws.client("sagemaker").stop_training_job(TrainingJobName=name)
    assert account.aws.wait(name)["SecondaryStatus"] == "Stopped"
    assert time.monotonic() - began > 1.5
    assert account.aws.attempts(name)[0]["codes"] == [137]


def test_a_job_stopped_before_it_trains_is_stopped(account: Account) -> None:
    account.aws.set(pace_s=1.0)
    name = account.start()
    account.aws.client("sagemaker").stop_training_job(TrainingJobName=name)
    told = account.aws.wait(name)
    assert told["SecondaryStatus"] == "Stopped"
    assert "Training" not in states(told)


def test_the_maximal_runtime_stops_a_job(account: Account) -> None:
    told = account.aws.wait(account.start(hyper=LONG, StoppingCondition={"MaxRuntimeInSeconds": 1}))
    assert (told["TrainingJobStatus"], told["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert states(told)[-4:] == ["Training", "Stopping", "Uploading", "MaxRuntimeExceeded"]


def test_checkpoints_go_up_while_the_job_runs(account: Account) -> None:
    uri = f"s3://{account.bucket}/live"
    name = account.start(hyper=LONG, CheckpointConfig={"S3Uri": uri})
    account.aws.wait(name, "Training")
    until = time.monotonic() + 20
    while not account.keys("live/"):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (
        account.aws.client("sagemaker").describe_training_job(TrainingJobName=name)["SecondaryStatus"]
        == "Training"
    )
    account.aws.client("sagemaker").stop_training_job(TrainingJobName=name)
    account.aws.wait(name)


def test_only_a_job_that_is_over_can_be_deleted_and_its_name_is_free_again(account: Account) -> None:
    client = account.aws.client("sagemaker")
    request = account.request(hyper=LONG)
    client.create_training_job(**request)
    account.aws.wait_for_line(request["TrainingJobName"], "step 1")
    with pytest.raises(ClientError) as refused:
        client.delete_training_job(TrainingJobName=request["TrainingJobName"])
    assert refused.value.response["Error"]["Code"] == "ResourceInUse"
    client.stop_training_job(TrainingJobName=request["TrainingJobName"])
    account.aws.wait(request["TrainingJobName"])
    client.delete_training_job(TrainingJobName=request["TrainingJobName"])
    with pytest.raises(ClientError, match="Requested resource not found"):
        client.describe_training_job(TrainingJobName=request["TrainingJobName"])
    client.create_training_job(**{**request, "HyperParameters": {"steps": "1"}})
    assert account.aws.wait(request["TrainingJobName"])["TrainingJobStatus"] == "Completed"


def test_eight_jobs_at_once(account: Account) -> None:
    jobs = [account.start(hyper={"say": f"word{n}", "steps": 3}) for n in range(8)]
    assert {account.aws.wait(job)["TrainingJobStatus"] for job in jobs} == {"Completed"}
    for number, job in enumerate(jobs):
        assert account.aws.log(job)[1:] == [f"algo-1 word{number} {step}" for step in (1, 2, 3)]


def test_jobs_are_listed_in_pages_and_found_by_their_tags(account: Account) -> None:
    client = account.aws.client("sagemaker")
    tags = [{"Key": "lineage", "Value": "one"}, {"Key": "owner", "Value": "me"}]
    jobs = [account.start(hyper={"steps": 1}, Tags=tags) for _ in range(3)]
    for job in jobs:
        account.aws.wait(job)
    first = client.list_training_jobs(MaxResults=2, SortBy="CreationTime", SortOrder="Descending")
    assert [s["TrainingJobName"] for s in first["TrainingJobSummaries"]] == jobs[:0:-1]
    second = client.list_training_jobs(MaxResults=1, NextToken=first["NextToken"], SortOrder="Descending")
    assert second["TrainingJobSummaries"][0]["TrainingJobName"] == jobs[0]
    assert len(client.list_training_jobs()["TrainingJobSummaries"]) <= 10

    def filters(**wanted: str) -> dict[str, object]:
        return {"Filters": [{"Name": f"Tags.{k}", "Operator": "Equals", "Value": v} for k, v in wanted.items()]}

    search = client.get_paginator("search").paginate
    pages = search(Resource="TrainingJob", SearchExpression=filters(lineage="one", owner="me"), MaxResults=2)
    found = [result["TrainingJob"] for page in pages for result in page["Results"]]
    assert sorted(job["TrainingJobName"] for job in found) == sorted(jobs)
    assert found[0]["Tags"] == tags
    other = client.search(Resource="TrainingJob", SearchExpression=filters(lineage="one", owner="you"))
    assert other["Results"] == []


def test_the_waiter_of_boto3_sees_the_end(account: Account) -> None:
    job = account.start(hyper={"steps": 1})
    waiter = account.aws.client("sagemaker").get_waiter("training_job_completed_or_stopped")
    waiter.wait(TrainingJobName=job, WaiterConfig={"Delay": 1, "MaxAttempts": 20})
    assert json.loads(json.dumps(account.aws.attempts(job)))[0]["why"] == "exit"
