"""The emulator, proved by Azure's own clients as they are: azure-identity, azure-storage-blob, MLClient."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.azureml import account
from tests.emulators.azureml.emulator import DONE, AzureMLEmulator
from tests.emulators.azureml.names import ACCOUNT

pytestmark = pytest.mark.filterwarnings("ignore")  # azure-ai-ml's and marshmallow's own, hundreds

TRAIN = """
import os, pathlib, sys
out = pathlib.Path(sys.argv[1]); out.mkdir(parents=True, exist_ok=True)
rank, size = os.environ['RANK'], os.environ['WORLD_SIZE']
(out / f'{rank}.txt').write_text(open(sys.argv[2]).read() + size + os.environ['AZUREML_NODE_COUNT'])
print('rank', rank, 'of', size)
"""


@pytest.fixture(scope="module")
def azure() -> Iterator[AzureMLEmulator]:
    AzureMLEmulator.needed()
    with AzureMLEmulator(sys.executable, grace_s=2) as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture(scope="module")
def ml(azure: AzureMLEmulator) -> Any:
    logging.getLogger("azure.ai.ml").setLevel(logging.ERROR)
    pytest.importorskip("azure.ai.ml")
    from azure.ai.ml import MLClient
    from azure.identity import EnvironmentCredential

    return MLClient(EnvironmentCredential(), azure.subscription, azure.group, azure.workspace, show_progress=False)


def container(credential: Any) -> Any:
    from azure.storage.blob import ContainerClient

    url = f"https://{ACCOUNT}.blob.core.windows.net"
    return ContainerClient(url, "azureml-blobstore", credential=credential, retry_total=0)


def test_the_storage_account_takes_its_signatures_and_the_sign_in_and_nobody_elses(
    azure: AzureMLEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = pytest.importorskip("azure.identity")
    from azure.core.exceptions import HttpResponseError

    credential = identity.EnvironmentCredential()
    container(credential).upload_blob("t/a b&c.txt", b"hello", validate_content=True)
    signature = account.sign("rwl", 60)
    assert container(signature).download_blob("t/a b&c.txt", offset=2).readall() == b"llo"
    forged = signature.replace("sp=rwl", "sp=rwdl")
    reads_only, ended = account.sign("r", 60), account.sign("rwl", -60)
    for wrong in (None, forged, reads_only, ended):
        with pytest.raises(HttpResponseError):
            list(container(wrong).list_blobs())
    for_arm = credential.get_token("https://management.azure.com/.default")
    monkeypatch.setattr(credential, "get_token_info", lambda *_, **__: for_arm)
    monkeypatch.setattr(credential, "get_token", lambda *_, **__: for_arm)
    with pytest.raises(HttpResponseError):  # a token for somebody else
        list(container(credential).list_blobs())
    with pytest.raises(HttpResponseError):
        container(signature).delete_blob("t/a b&c.txt")
    azure.expire()
    with pytest.raises(HttpResponseError):
        list(container(identity.EnvironmentCredential()).list_blobs())
    azure.clear()


def test_mlclients_job_runs_on_two_machines_with_code_inputs_and_outputs(
    ml: Any, azure: AzureMLEmulator, tmp_path: Path
) -> None:
    from azure.ai.ml import Input, Output, PyTorchDistribution, command
    from azure.ai.ml.entities import Environment

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text(TRAIN)
    (tmp_path / "data.txt").write_text("data")
    out = "azureml://datastores/workspaceblobstore/paths/mine/"
    job = command(
        name="sdk-1", code=str(tmp_path / "code"), experiment_name="e", instance_count=2,
        command="python3 train.py ${{outputs.out}} ${{inputs.data}}",
        inputs={"data": Input(type="uri_file", path=str(tmp_path / "data.txt"))},
        outputs={"out": Output(type="uri_folder", mode="rw_mount", path=out)},
        environment=Environment(name="env", version="1", image="mcr.microsoft.com/azureml/base:1"),
        distribution=PyTorchDistribution(process_count_per_instance=2),
        instance_type="Standard_NC8as_T4_v3",
    )  # fmt: skip
    ml.jobs.create_or_update(job)
    until = time.monotonic() + 60
    while (status := ml.jobs.get("sdk-1").status) not in DONE and time.monotonic() < until:
        time.sleep(0.1)
    assert status == "Completed", azure.log("sdk-1")
    keys = list(azure.blobs("mine/"))
    assert keys == [f"mine/{rank}.txt" for rank in range(4)]
    blobs = container(account.sign("r", 60))
    assert [blobs.download_blob(key).readall() for key in keys] == [b"data42"] * 4
    assert sorted(azure.log("sdk-1")) == [f"rank {rank} of 4" for rank in range(4)]
    assert azure.strangers() == []


def test_mlclient_lists_jobs_over_pages_and_knows_the_same_name_once(ml: Any, azure: AzureMLEmulator) -> None:
    from azure.ai.ml import command
    from azure.core.exceptions import ResourceExistsError

    def job(name: str, shell: str = "true") -> Any:
        return command(
            name=name, command=shell, environment="azureml:env:1", experiment_name="e",
            instance_type="Standard_NC8as_T4_v3",
        )  # fmt: skip

    names = {f"listed-{number}" for number in range(5)}
    for name in names:
        ml.jobs.create_or_update(job(name))
    assert names <= {found.name for found in ml.jobs.list()}
    with pytest.raises(ResourceExistsError):
        ml.jobs.create_or_update(job("listed-0"))


def test_mlclient_cancels_a_job_that_gets_sigterm_first(ml: Any, azure: AzureMLEmulator) -> None:
    from azure.ai.ml import command

    shell = "trap 'echo told; exit 0' TERM; echo up; while true; do sleep 0.05; done"
    ml.jobs.create_or_update(
        command(
            name="to-cancel", command=shell, environment="azureml:env:1", experiment_name="e",
            instance_type="Standard_NC8as_T4_v3",
        )
    )  # fmt: skip
    azure.wait_for_line("to-cancel", "up")
    ml.jobs.begin_cancel("to-cancel").wait()
    until = time.monotonic() + 30
    while (status := ml.jobs.get("to-cancel").status) not in DONE and time.monotonic() < until:
        time.sleep(0.1)
    assert status == "Canceled"
    assert azure.log("to-cancel") == ["up", "told"]
