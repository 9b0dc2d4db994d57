"""Where a container has things: mounted data, a model kept with the job, secrets by reference, a vendor's file."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny

from tests.loopback import Loopback
from train_entry.config import Model
from train_entry.failure import JobError
from train_entry.hub import is_whole, kept_folder, on_the_hub
from train_entry.models import model_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "s3cr" + "et-value"
SCORER = """
import os

def score(rows, answers):
    print("token", os.environ["MY_TOKEN"])
    return {"n": len(rows)}
"""


def hub_cache(folder: Path, model: Path) -> Path:
    """The hub library's cache as a download of acme/tiny leaves it, with files that nobody here loads."""
    repository = folder / "hub/models--acme--tiny"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(model, snapshot)
    (snapshot / "onnx").mkdir()
    (snapshot / "onnx/model.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    return folder


@pytest.fixture(scope="module")
def store() -> Iterator[Loopback]:
    """Google's metadata server and its Secret Manager."""
    made = Loopback()
    identity = "/computeMetadata/v1/instance/service-accounts/default/token"
    made.answers[identity] = (200, {"access_token": "tok" + "en"})
    value = base64.b64encode(SECRET.encode()).decode()
    made.answers["/v1/projects/p/secrets/tok/versions/latest:access"] = (200, {"payload": {"data": value}})
    yield made
    made.close()


@dataclass
class Done:
    """A job that ran to its end where everything lies elsewhere."""

    job: tiny.Job
    code: int
    log: str
    given: dict[str, str]
    kept: Path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, store: Loopback) -> Done:
    root = tmp_path_factory.mktemp("places")
    description = tiny.job_dict(
        "hf://acme/tiny",
        data={"train": "gs://team/rows/train.jsonl", "eval": "gs://team/rows/eval.jsonl"},
        eval={"scorer": "mine.py"},
        secrets=["MY_TOKEN"],
    )
    job = tiny.Job(root / "job", description, tiny.rows(24), tiny.rows(8, seed=1))
    (job.inputs / "mine.py").write_text(SCORER)
    shutil.move(job.inputs / "data", root / "mounted")
    given = {
        **tiny.COLD,  # the hub's library reads its settings as it is imported
        "HF_HOME": str(hub_cache(root / "hub", model_folder)),
        "LAUNCH_MODEL_CACHE": str(root / "bucket/model"),
        "LAUNCH_MOUNTS": json.dumps({"gs://team/rows": str(root / "mounted")}),
        "LAUNCH_WORK_DIR": str(root / "work"),
        "LAUNCH_SECRETS": json.dumps({"MY_TOKEN": "gcp-sm://p/tok"}),
        "GCE_METADATA_HOST": store.host,
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": store.url,
    }
    code, log = job.run(**given)
    return Done(job, code, log, given, kept_folder(root / "bucket/model", Model(id="acme/tiny")))


def test_data_is_read_where_it_is_mounted(done):
    assert done.code == 0, done.log
    assert done.job.named("data")[0]["train_rows"] == 24
    assert not (done.job.root / "cache/data").exists(), "nothing is copied"


def test_a_secret_is_asked_of_its_store_and_its_value_goes_nowhere(done):
    assert "token ***" in done.log, "the scorer saw a value"
    written = [p for p in done.job.root.parent.rglob("*") if p.is_file()]
    assert not [p for p in written if SECRET.encode() in p.read_bytes()] and SECRET not in done.log


def test_working_files_lie_elsewhere_and_the_output_is_whole(done):
    assert {p.name for p in done.job.outputs.iterdir()} == {"artifact", "events.jsonl", "state.json"}
    assert not Path(done.given["LAUNCH_WORK_DIR"]).exists()
    events = done.job.events()
    assert [e["seq"] for e in events] == list(range(len(events))) and events[-1]["event"] == "done"


def test_a_hub_model_is_kept_with_the_job_and_named_by_its_id(done):
    assert is_whole(done.kept)
    marker = json.loads((done.kept / "complete.json").read_text())
    assert (marker["model"], marker["commit"]) == ("acme/tiny", COMMIT)
    assert "model.safetensors" in marker["files"] and not [n for n in marker["files"] if n.startswith("onnx")]
    config = json.loads((done.job.outputs / "artifact/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/tiny"


def started_again(done: Done, folder: Path, **changes: str) -> tuple[tiny.Job, int, str]:
    """The same job on a machine that has nothing of the hub's; `changes` to what it is given."""
    job = tiny.Job(folder, json.loads((done.job.inputs / "job.json").read_text()), [], [])
    (job.inputs / "mine.py").write_text(SCORER)
    return job, *job.run(**{**done.given, "HF_HOME": str(folder / "no-hub"), **changes})


def test_started_elsewhere_it_takes_the_kept_model(done, tmp_path):
    job, code, log = started_again(done, tmp_path / "again")
    assert code == 0, log
    assert job.weights() == done.job.weights()


def test_a_kept_model_that_was_cut_short_is_none(done, tmp_path):
    copied = shutil.copytree(done.kept.parent, tmp_path / "cut")
    weights = copied / done.kept.name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not is_whole(weights.parent)
    job, code, log = started_again(done, tmp_path / "again", LAUNCH_MODEL_CACHE=str(copied))
    assert code == 1, log
    assert job.failure()["kind"] == "model" and "acme/tiny" in job.failure()["message"]


def test_an_offline_job_names_what_is_not_mounted_in_the_vendors_file_too(done, tmp_path):
    told = tmp_path / "output/failure"
    job, code, log = started_again(
        done, tmp_path / "again", LAUNCH_OFFLINE="1", LAUNCH_MOUNTS="{}", LAUNCH_FAILURE_FILE=str(told)
    )
    assert code == 1, log
    failure = job.failure()
    assert failure["kind"] == "data" and "gs://team/rows/train.jsonl is not mounted" in failure["message"]
    assert told.read_text() == f"{failure['message']}\n{failure['hint']}"
    assert job.named("failure")[0]["hint"] == failure["hint"]


def test_a_secret_that_its_store_refuses_fails_the_job_before_it_trains(done, tmp_path):
    refused = {"LAUNCH_SECRETS": json.dumps({"MY_TOKEN": "gcp-sm://p/other"})}
    job, code, log = started_again(done, tmp_path / "again", **refused)
    assert code == 1, log
    assert job.failure()["kind"] == "secrets" and "MY_TOKEN" in job.failure()["message"]
    assert [e["event"] for e in job.events()] == ["phase", "failure"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("hf://acme/tiny", ("acme/tiny", None)),
        ("hf://acme/tiny@v2", ("acme/tiny", "v2")),
        ("acme/tiny", ("acme/tiny", None)),
        ("hf://acme/tiny/folder", ("hf://acme/tiny/folder", None)),
        ("s3://acme/tiny", ("s3://acme/tiny", None)),
    ],
)
def test_a_hub_address_is_a_hub_id(name: str, wanted: Any):
    found = on_the_hub(Model(id=name))
    assert (found.id, found.revision) == wanted


def test_a_model_is_read_where_it_is_mounted_and_an_empty_mount_is_named(tmp_path, model_folder, monkeypatch):
    mounts = {"s3://team/base": str(model_folder), "s3://team/other": str(tmp_path)}
    monkeypatch.setenv("LAUNCH_MOUNTS", json.dumps(mounts))
    source, extra = model_source(Model(id="s3://team/base/"), tmp_path)
    assert Path(source) == model_folder and "revision" not in extra
    with pytest.raises(JobError, match=r"s3://team/other has no config\.json") as refused:
        model_source(Model(id="s3://team/other"), tmp_path)
    assert refused.value.kind == "model"
    monkeypatch.setenv("LAUNCH_OFFLINE", "1")
    with pytest.raises(JobError, match="s3://elsewhere/base is not mounted"):
        model_source(Model(id="s3://elsewhere/base"), tmp_path)
