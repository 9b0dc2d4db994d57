"""Interruptions, lack of capacity, several hosts, and what a job finds in its container."""

from __future__ import annotations

import json
from pathlib import Path

from tests.emulators.sagemaker.conftest import Account, channel, states

INTERRUPTED = ["Interrupted", "Starting", "Downloading", "Training"]


def program(account: Account, name: str, text: str) -> list[str]:
    """A program as a job's command."""
    account.put(f"code/{name}.py", text)
    return ["python3", f"/opt/ml/input/data/code/{name}.py"]


def test_an_interrupted_spot_job_goes_on_from_its_checkpoints(account: Account) -> None:
    account.aws.interrupt(after_line="step 3")
    name = account.start(hyper={"steps": 8, "step_s": 0.2}, **account.spot("interrupted"))
    told = account.aws.wait(name)
    assert states(told) == [
        "Starting", "Pending", "Downloading", "Training", *INTERRUPTED, "Uploading", "Completed",
    ]  # fmt: skip
    assert told["BillableTimeInSeconds"] < told["TrainingTimeInSeconds"]
    first, second = account.aws.attempts(name)
    assert (first["why"], first["codes"], second["why"], second["codes"]) == ("spot", [143], "exit", [0])
    assert len({*first["streams"], *second["streams"]}) == 2
    log = account.aws.log(name)
    assert "algo-1 got signal 15" in log
    steps = [line for line in log if "step" in line]
    assert steps == [f"algo-1 step {n}" for n in range(1, 9)]


def test_without_a_notice_what_was_not_synced_is_lost(account: Account) -> None:
    account.aws.set(sync_s=60)
    account.aws.interrupt(after_line="step 3", notice=False)
    name = account.start(hyper={"steps": 5}, **account.spot("unannounced"))
    account.aws.wait(name)
    assert account.aws.log(name).count("algo-1 starts at 0") == 2
    assert "algo-1 got signal 15" not in account.aws.log(name)


def test_an_interruption_can_be_planned_by_name_and_more_than_once(account: Account) -> None:
    request = account.request(hyper={"steps": 9, "step_s": 0.2}, **account.spot("twice"))
    for _ in range(2):
        account.aws.interrupt(request["TrainingJobName"], after_s=0.5)
    account.aws.client("sagemaker").create_training_job(**request)
    told = account.aws.wait(request["TrainingJobName"])
    assert states(told).count("Interrupted") == 2
    assert told["TrainingJobStatus"] == "Completed"


def test_where_there_is_no_capacity_an_on_demand_job_fails(account: Account) -> None:
    account.aws.capacity("ml.p5.48xlarge", available=False)
    told = account.aws.wait(account.start(ResourceConfig={"InstanceType": "ml.p5.48xlarge", "InstanceCount": 1}))
    assert states(told) == ["Starting", "Pending", "Failed"]
    assert told["SecondaryStatusTransitions"][1]["StatusMessage"] == "Training job waiting for capacity"
    assert told["FailureReason"].startswith("CapacityError: Unable to provision requested ML compute capacity.")
    assert "TrainingStartTime" not in told
    assert "BillableTimeInSeconds" not in told


def test_a_spot_job_waits_for_capacity_as_long_as_it_may(account: Account) -> None:
    account.aws.capacity("ml.g5.xlarge", available=False)
    short = account.start(hyper={"steps": 1}, **account.spot("short", wait_s=1))
    told = account.aws.wait(short)
    assert (told["TrainingJobStatus"], states(told)) == (
        "Stopped",
        ["Starting", "Pending", "Stopping", "MaxWaitTimeExceeded"],
    )
    patient = account.start(hyper={"steps": 1}, **account.spot("patient"))
    account.aws.wait(patient, "Pending")
    account.aws.capacity("ml.g5.xlarge", available=True)
    assert account.aws.wait(patient)["TrainingJobStatus"] == "Completed"


def test_an_interrupted_job_that_finds_no_capacity_in_time_keeps_what_it_has(account: Account) -> None:
    account.aws.interrupt(after_line="step 2")
    name = account.start(hyper={"steps": 2000}, **account.spot("too-late", wait_s=4))
    account.aws.wait(name, "Training")
    account.aws.capacity("ml.g5.xlarge", available=False)
    told = account.aws.wait(name)
    assert told["SecondaryStatus"] == "MaxWaitTimeExceeded"
    assert states(told)[3:6] == ["Training", "Interrupted", "Starting"]
    assert account.keys("checkpoints/too-late/")
    assert told["ModelArtifacts"]["S3ModelArtifacts"]


def test_a_broken_host_is_replaced_as_often_as_the_retry_strategy_says(account: Account) -> None:
    account.aws.interrupt(kind="host", after_line="step 2", notice=False)
    told = account.aws.wait(account.start(RetryStrategy={"MaximumRetryAttempts": 1}))
    assert states(told)[3:6] == ["Training", "Starting", "Downloading"]
    assert told["TrainingJobStatus"] == "Completed"
    account.aws.interrupt(kind="host", after_line="step 2", notice=False)
    told = account.aws.wait(account.start())
    assert told["TrainingJobStatus"] == "Failed"
    assert told["FailureReason"].startswith("InternalServerError: We encountered an internal error.")


def test_the_container_has_what_sagemaker_gives(account: Account) -> None:
    look = program(account, "look", LOOK)
    channels = [
        channel("code", f"s3://{account.bucket}/code"),
        channel("eval-set", account.put("rows/e.jsonl", "{}")),
    ]
    name = account.start(*look, hyper={"lr": 0.1}, InputDataConfig=channels, Environment={"COLOUR": "blue"})
    told = account.aws.wait(name)
    seen = json.loads(account.aws.log(name)[0])
    assert (seen["pid"], seen["host"], seen["address"]) == (1, "algo-1", "127.0.0.1")
    assert seen["hyperparameters"] == {"lr": "0.1"}
    assert seen["resourceconfig"]["hosts"] == ["algo-1"]
    assert seen["resourceconfig"]["current_instance_type"] == "ml.g5.xlarge"
    assert set(seen["inputdataconfig"]) == {"code", "eval-set"}
    assert seen["files"] == ["/opt/ml/input/data/eval-set/e.jsonl"]
    env = seen["env"]
    assert (env["TRAINING_JOB_NAME"], env["TRAINING_JOB_ARN"]) == (name, told["TrainingJobArn"])
    assert (env["COLOUR"], env["AWS_REGION"]) == ("blue", "us-east-1")
    assert not Path("/opt/ml/input/data/eval-set").exists(), "the container's /opt/ml is its own"


def test_a_job_reads_a_secret_as_its_own_role_and_nothing_of_another(account: Account) -> None:
    account.aws.client("secretsmanager").create_secret(Name="token", SecretString="planted")
    ask = program(account, "ask", ASK)
    name = account.start(*ask)
    account.aws.wait(name)
    assert account.aws.log(name)[0] == "planted"
    call = [c for c in account.aws.calls if c.operation == "GetSecretValue"][-1]
    assert call.role and call.key != account.aws.key
    account.aws.deny("secretsmanager:GetSecretValue", principal=account.role)
    denied = account.start(*ask)
    account.aws.wait(denied)
    assert account.aws.log(denied)[0] == "AccessDeniedException"
    assert account.aws.client("secretsmanager").get_secret_value(SecretId="token")["SecretString"] == "planted"


def test_an_isolated_job_has_neither_network_nor_credentials(account: Account) -> None:
    ask = program(account, "ask", ASK)
    name = account.start(*ask, EnableNetworkIsolation=True)
    account.aws.wait(name)
    assert account.aws.log(name)[0] == "NoCredentialsError"
    reach = program(account, "reach", f"import socket\nprint(socket.socket().connect_ex({account.aws.address!r}))")
    alone = account.start(*reach, EnableNetworkIsolation=True)
    account.aws.wait(alone)
    assert account.aws.log(alone) == ["111"]  # refused: nobody is there


def test_channels_come_by_prefix_by_object_by_manifest_and_in_shards(account: Account) -> None:
    for number in range(4):
        account.put(f"parts/{number}.txt", str(number))
    manifest = [{"prefix": f"s3://{account.bucket}/pa"}, "rts/1.txt", "rts/3.txt"]
    bucket = f"s3://{account.bucket}"
    channels = [
        channel("code", f"{bucket}/code/"),
        channel("folder", f"{bucket}/parts"),
        channel("object", f"{bucket}/parts/2.txt"),
        channel("manifest", account.put("some.manifest", json.dumps(manifest)), S3DataType="ManifestFile"),
        channel("shards", f"{bucket}/parts/", S3DataDistributionType="ShardedByS3Key"),
    ]
    two = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2}
    name = account.start(*program(account, "files", FILES), InputDataConfig=channels, ResourceConfig=two)
    assert account.aws.wait(name)["TrainingJobStatus"] == "Completed"
    one, other = (json.loads(line) for line in sorted(account.aws.log(name)))
    assert one["folder"] == other["folder"] == ["0.txt", "1.txt", "2.txt", "3.txt"]
    assert (one["object"], one["manifest"]) == (["2.txt"], ["rts/1.txt", "rts/3.txt"])
    assert (one["shards"], other["shards"]) == (["0.txt", "2.txt"], ["1.txt", "3.txt"])


def test_two_hosts_find_each_other_and_both_speak(account: Account) -> None:
    two = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2}
    talk = program(account, "talk", TALK)
    jobs = [account.start(*talk, ResourceConfig=two) for _ in range(2)]  # one port, two networks
    for job in jobs:
        assert account.aws.wait(job)["TrainingJobStatus"] == "Completed"
        assert sorted(account.aws.log(job)) == ["algo-1 heard algo-2", "algo-2 said so"]
        names = [stream.split("/")[1][:7] for stream in account.aws.attempts(job)[0]["streams"]]
        assert names == ["algo-1-", "algo-2-"]


def test_one_host_that_fails_ends_the_job(account: Account) -> None:
    two = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2}
    name = account.start(*program(account, "fail", FAIL), ResourceConfig=two)
    told = account.aws.wait(name)
    assert told["FailureReason"] == "AlgorithmError: algo-2 gave up, exit code: 7"
    assert account.aws.attempts(name)[0]["codes"] == [None, 7]


def test_a_notice_may_reach_one_host_alone(account: Account) -> None:
    two = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2}
    account.aws.interrupt(after_line="algo-2 step 2", only="algo-2")
    name = account.start(hyper={"steps": 12, "step_s": 0.2}, ResourceConfig=two, **account.spot("alone"))
    assert states(account.aws.wait(name)).count("Interrupted") == 1
    assert account.aws.attempts(name)[0]["codes"][1] == 143
    assert "algo-2 got signal 15" in account.aws.log(name)
    assert "algo-1 got signal 15" not in account.aws.log(name)


LOOK = """
import json, os, socket
from pathlib import Path
config = {p.stem: json.loads(p.read_text()) for p in Path("/opt/ml/input/config").glob("*.json")}
files = [str(p) for p in sorted(Path("/opt/ml/input/data/eval-set").rglob("*"))]
print(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "address": socket.gethostbyname("algo-1"),
                  "env": dict(os.environ), "files": files, **config}))
"""
ASK = """
import botocore.exceptions, botocore.session
try:
    client = botocore.session.get_session().create_client("secretsmanager", region_name="us-east-1")
    print(client.get_secret_value(SecretId="token")["SecretString"])
except botocore.exceptions.ClientError as exc:
    print(exc.response["Error"]["Code"])
except Exception as exc:
    print(type(exc).__name__)
"""
FILES = """
import json
from pathlib import Path
data = Path("/opt/ml/input/data")
print(json.dumps({c.name: [str(p.relative_to(c)) for p in sorted(c.rglob("*")) if p.is_file()]
                  for c in sorted(data.iterdir()) if c.name != "code"}))
"""
TALK = """
import socket, time
me = socket.gethostname()
if me == "algo-1":
    with socket.create_server(("", 29500)) as server:
        connection, _ = server.accept()
        print(me, "heard", connection.recv(20).decode())
else:
    for _ in range(200):
        try:
            with socket.create_connection(("algo-1", 29500)) as connection:
                connection.send(me.encode())
            break
        except OSError:
            time.sleep(.05)
    print(me, "said so")
"""
FAIL = """
import socket, sys, time
if socket.gethostname() == "algo-2":
    open("/opt/ml/output/failure", "w").write("algo-2 gave up")
    sys.exit(7)
time.sleep(60)
"""
