"""The emulator, proved by Azure's own clients as they are: azure-identity, azure-storage-blob, MLClient."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulators.azureml.emulator import DONE, AzureMLEmulator
from tests.emulators.azureml.world import ACCOUNT

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
    if problem := AzureMLEmulator.unavailable():
        pytest.skip(problem)
    with AzureMLEmulator(sys.executable, grace_s=2) as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        yield made


@pytest.fixture
def container(azure: AzureMLEmulator) -> Any:
    identity = pytest.importorskip("azure.identity")
    blob = pytest.importorskip("azure.storage.blob")
    url = f"https://{ACCOUNT}.blob.core.windows.net"
    made = blob.ContainerClient(url, "azureml-blobstore", credential=identity.EnvironmentCredential())
    yield made
    azure.clear()


@pytest.fixture(scope="module")
def ml(azure: AzureMLEmulator) -> Any:
    logging.getLogger("azure.ai.ml").setLevel(logging.ERROR)
    pytest.importorskip("azure.ai.ml")
    from azure.ai.ml import MLClient
    from azure.identity import EnvironmentCredential

    return MLClient(EnvironmentCredential(), azure.subscription, azure.group, azure.workspace, show_progress=False)


def test_blobs_are_written_read_listed_and_removed(container: Any) -> None:
    container.upload_blob("t/a b&c.txt", b"hello", validate_content=True)
    assert container.download_blob("t/a b&c.txt", offset=2).readall() == b"llo"
    assert [(b.name, b.size) for b in container.list_blobs(name_starts_with="t/")] == [("t/a b&c.txt", 5)]
    container.delete_blob("t/a b&c.txt")
    assert list(container.list_blobs(name_starts_with="t/")) == []


def test_a_large_blob_is_put_together_from_blocks_in_the_order_of_the_list(container: Any) -> None:
    from azure.storage.blob import BlobBlock

    blob = container.get_blob_client("t/large")
    blob.stage_block("b", b"two")
    blob.stage_block("a", b"one")
    assert {block.id: block.size for block in blob.get_block_list("uncommitted")[1]} == {"a": 3, "b": 3}
    blob.commit_block_list([BlobBlock("a"), BlobBlock("b")])
    assert blob.download_blob().readall() == b"onetwo"


def test_a_listing_goes_on_over_pages(container: Any, azure: AzureMLEmulator) -> None:
    folder = azure.blob("many")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1005):
        (folder / f"{number:04d}").write_bytes(b"")
    assert len(list(container.list_blobs(name_starts_with="many/"))) == 1005


def test_a_signature_is_needed_and_an_ended_sign_in_is_refused(container: Any, azure: AzureMLEmulator) -> None:
    from azure.core.exceptions import HttpResponseError
    from azure.storage.blob import ContainerClient

    url = f"https://{ACCOUNT}.blob.core.windows.net"
    for wrong in (None, "sv=2023-11-03&sig=made-up"):
        with pytest.raises(HttpResponseError):
            list(ContainerClient(url, "azureml-blobstore", credential=wrong, retry_total=0).list_blobs())
    assert isinstance(list(container.list_blobs(name_starts_with="none/")), list)
    azure.expire()
    with pytest.raises(HttpResponseError):
        list(container.list_blobs(name_starts_with="none/"))


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
    found = {name: path.read_text() for name, path in azure.blobs("mine/").items()}
    assert found == {f"{rank}.txt": "data42" for rank in range(4)}
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
