"""Google's own clients drive the emulator: typed over REST and gRPC, the high-level SDK, Cloud Storage's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import aiplatform_v1 as v1
from google.cloud.aiplatform_v1.services.job_service.transports import JobServiceGrpcTransport
from google.cloud.aiplatform_v1.services.model_service.transports import ModelServiceGrpcTransport

from tests.emulators.vertex.conftest import Project
from tests.emulators.vertex.world import NUMBER

TELL = """
import json, os
print(json.dumps({k: v for k, v in os.environ.items() if k.startswith(("AIP_", "CLOUD_ML_", "WHO"))}))
print(json.dumps(json.loads(os.environ["CLUSTER_SPEC"])["task"]))
open(os.environ["AIP_MODEL_DIR"].replace("gs://", "/gcs/", 1).rstrip("/") + ".txt", "w").write("made")
"""


def rest(project: Project, kind: Any) -> Any:
    return kind(
        credentials=AnonymousCredentials(), transport="rest",
        client_options={"api_endpoint": project.google.endpoint},
    )  # fmt: skip


def over_grpc(project: Project, kind: Any) -> Any:
    transport = JobServiceGrpcTransport if kind is v1.JobServiceClient else ModelServiceGrpcTransport
    return kind(transport=transport(channel=grpc.insecure_channel(project.google.grpc_address)))


CLIENTS = pytest.mark.parametrize("client", [rest, over_grpc])
Make = Callable[[Project, Any], Any]


@CLIENTS
def test_a_job_runs_with_what_google_says_in_its_environment(project: Project, client: Make) -> None:
    jobs, google = client(project, v1.JobServiceClient), project.google
    (google.storage().bucket(project.bucket).blob("told/there")).upload_from_string("x")
    made = jobs.create_custom_job(parent=google.parent, custom_job=project.body(TELL, name="told"))
    assert made.state == v1.JobState.JOB_STATE_PENDING
    done = google.wait(made.name)
    assert done.state == v1.JobState.JOB_STATE_SUCCEEDED
    assert done.create_time <= done.start_time <= done.end_time
    said = [json.loads(line) for line in google.log(made.name) if line.startswith("{")]
    number = made.name.rpartition("/")[2]
    assert said[0] == {
        "AIP_MODEL_DIR": f"gs://{project.bucket}/told/model/", "WHO": f"job-{number}",
        "AIP_CHECKPOINT_DIR": f"gs://{project.bucket}/told/checkpoints/",
        "AIP_TENSORBOARD_LOG_DIR": f"gs://{project.bucket}/told/logs/",
        "CLOUD_ML_PROJECT_ID": NUMBER, "CLOUD_ML_REGION": google.region, "CLOUD_ML_JOB_ID": number,
    }  # fmt: skip
    assert said[1] == {"type": "workerpool0", "index": 0}
    assert google.storage().bucket(project.bucket).blob("told/model.txt").download_as_text() == "made"


@CLIENTS
def test_replicas_know_each_other(project: Project, client: Make) -> None:
    code = "import os, json; c = json.loads(os.environ['CLUSTER_SPEC']); print('I am', c['task'], c['cluster'])"
    jobs = client(project, v1.JobServiceClient)
    made = jobs.create_custom_job(parent=project.google.parent, custom_job=project.body(code, replicas=3))
    project.google.wait(made.name)
    time.sleep(0.1)
    said = [line for line in project.google.log(made.name) if line.startswith("I am")]
    assert any("'workerpool0'" in line.split("}")[0] for line in said)
    assert all(line.count("cmle-training-workerpool1") == 2 for line in said)


@CLIENTS
def test_a_job_is_cancelled_and_told_so(project: Project, client: Make) -> None:
    jobs = client(project, v1.JobServiceClient)
    code = "import signal, sys, time\nsignal.signal(15, lambda *a: (print('told', flush=True), sys.exit(143)))\n"
    name = project.start(code + "print('here', flush=True)\ntime.sleep(60)")
    project.google.wait_for_line(name, "here")
    jobs.cancel_custom_job(name=name)
    done = project.google.wait(name)
    assert (done.state, done.error.code) == (v1.JobState.JOB_STATE_CANCELLED, 1)
    assert "told" in project.google.log(name)
    with pytest.raises((exceptions.BadRequest, exceptions.FailedPrecondition)):
        jobs.cancel_custom_job(name=name)


@CLIENTS
def test_jobs_are_found_by_label_page_by_page(project: Project, client: Make) -> None:
    jobs = client(project, v1.JobServiceClient)
    own = client.__name__
    names = [project.start("pass", name=f"{own}-{i % 2}") for i in range(5)]
    asked = {"parent": project.google.parent, "filter": f'labels.ours="{own}-0"', "page_size": 2}
    assert [job.name for job in jobs.list_custom_jobs(request=asked)] == [names[4], names[2], names[0]]
    asked["filter"] = "labels.ours:*"
    assert {*names} <= {job.name for job in jobs.list_custom_jobs(request=asked)}


@CLIENTS
def test_what_is_wrong_is_refused_as_google_does(project: Project, client: Make) -> None:
    jobs, parent = client(project, v1.JobServiceClient), project.google.parent
    with pytest.raises(exceptions.NotFound):
        jobs.get_custom_job(name=f"{parent}/customJobs/1")
    wrong = project.body("pass")
    wrong["job_spec"]["worker_pool_specs"][0]["replica_count"] = 2
    with pytest.raises(exceptions.BadRequest):
        jobs.create_custom_job(parent=parent, custom_job=wrong)
    project.google.set(quotas={"custom_model_training_nvidia_l4_gpus": 0})
    with pytest.raises((exceptions.TooManyRequests, exceptions.ResourceExhausted), match="custom_model_training"):
        jobs.create_custom_job(parent=parent, custom_job=project.body("pass"))


def test_a_field_that_the_message_has_not_is_refused(project: Project) -> None:
    url = f"{project.google.endpoint}/v1/{project.google.parent}/customJobs"
    answer = AuthorizedSession(AnonymousCredentials()).post(url, json={"displayName": "a", "jobSpecc": {}})
    assert answer.status_code == 400
    assert 'no field named "jobSpecc"' in answer.json()["error"]["message"]


def test_a_removed_job_is_gone(project: Project) -> None:
    name = project.start("pass")
    project.google.wait(name)
    project.google.jobs().delete_custom_job(name=name).result(timeout=20)
    with pytest.raises(exceptions.NotFound):
        project.google.jobs().get_custom_job(name=name)


@CLIENTS
def test_models_have_versions_and_aliases(project: Project, client: Make) -> None:
    models, own = client(project, v1.ModelServiceClient), f"lora-{client.__name__.replace('_', '-')}"
    model = v1.Model(display_name="lora", artifact_uri=f"gs://{project.bucket}/a/", version_aliases=["first"])
    asked = v1.UploadModelRequest(parent=project.google.parent, model_id=own, model=model)
    first = models.upload_model(request=asked).result(timeout=20)
    model = v1.Model(display_name="lora", version_aliases=["champion", "default"])
    asked = v1.UploadModelRequest(parent=project.google.parent, parent_model=first.model, model=model)
    assert models.upload_model(request=asked).result(timeout=20).model_version_id == "2"
    found = {ref: models.get_model(name=first.model + ref).version_id for ref in ("", "@1", "@first", "@champion")}
    assert found == {"": "2", "@1": "1", "@first": "1", "@champion": "2"}
    assert [m.version_id for m in models.list_model_versions(name=first.model)] == ["1", "2"]


HIGH_LEVEL = """
import sys
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
endpoint, project, bucket, account, image = sys.argv[1:]
aiplatform.init(project=project, location="us-central1", staging_bucket=f"gs://{bucket}",
                credentials=AnonymousCredentials(), api_endpoint=endpoint, api_transport="rest")
machine = {"machine_type": "g2-standard-12", "accelerator_type": "NVIDIA_L4", "accelerator_count": 1}
pool = {"machine_spec": machine, "replica_count": 1,
        "container_spec": {"image_uri": image, "command": ["python3", "-c", "print('high')"]}}
job = aiplatform.CustomJob(display_name="high-level", worker_pool_specs=[pool], labels={"by": "sdk"})
job.submit(service_account=account, timeout=600)
job.wait_for_resource_creation()
print(job.resource_name)
print(len(aiplatform.CustomJob.list(filter='labels.by="sdk"')))
"""


def test_googles_high_level_sdk_submits_and_lists(project: Project, tmp_path: Path) -> None:
    google = project.google
    arguments = [google.endpoint, google.project, project.bucket, project.account, "r/i:1"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HIGH_LEVEL, *arguments], capture_output=True, text=True,
        timeout=120, env={**os.environ, "STORAGE_EMULATOR_HOST": google.endpoint}, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, count = done.stdout.split()[-2:]
    assert count == "1"
    assert google.wait(name).state == v1.JobState.JOB_STATE_SUCCEEDED
    assert "high" in google.log(name)


def test_cloud_storages_client_finds_what_it_has_sent(project: Project, tmp_path: Path) -> None:
    bucket = project.google.storage().bucket(project.bucket)
    large = os.urandom(11 * 2**20)
    (tmp_path / "large").write_bytes(large)
    bucket.blob("s/small").upload_from_string(b"a\r\n--b\n\r\n")
    bucket.blob("s/large").upload_from_filename(tmp_path / "large")
    bucket.blob("s/parts", chunk_size=2**20).upload_from_filename(tmp_path / "large")
    assert bucket.blob("s/small").download_as_bytes() == b"a\r\n--b\n\r\n"
    assert bucket.blob("s/large").download_as_bytes() == bucket.blob("s/parts").download_as_bytes() == large
    assert bucket.blob("s/large").download_as_bytes(start=5, end=9) == large[5:10]
    bucket.blob("s/joined").compose([bucket.blob("s/small"), bucket.blob("s/large")])
    bucket.blob("s/copy").rewrite(bucket.blob("s/small"))
    listed = {blob.name: blob.size for blob in project.google.storage().list_blobs(project.bucket, prefix="s/")}
    assert listed == {"s/small": 9, "s/copy": 9, "s/large": len(large), "s/parts": len(large),
                      "s/joined": len(large) + 9}  # fmt: skip
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("s/small").upload_from_string(b"x", if_generation_match=0)
    bucket.blob("s/small").delete()
    with pytest.raises(exceptions.NotFound):
        bucket.blob("s/small").download_as_bytes()
