"""What life.py makes of SkyPilot's answers. Its modules are given, with the fields that 0.14.1 has."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from backends.skypilot import life


class Server:
    """An API server with one request that sends a managed job, and no controller yet."""

    def __init__(self, status: str = "RUNNING", name: str = "job-1") -> None:
        body = json.dumps({"task": "...", "name": name})
        self.requests = [
            SimpleNamespace(
                request_id="r0", name="sky.status", request_body="null", status="RUNNING", status_msg=None
            ),
            SimpleNamespace(
                request_id="r1", name="sky.jobs.launch", request_body=body, status=status, status_msg=None
            ),
            SimpleNamespace(  # another user's
                request_id="r2", name="sky.jobs.launch", request_body="null", status="RUNNING", status_msg=None
            ),
        ]
        self.records: list[Any] = []
        self.asked: list[Any] = []

    def api_status(self, **_: Any) -> list[Any]:
        return self.requests

    def api_cancel(self, ids: list[str]) -> str:
        self.asked.append(("cancel", *ids))
        return "cancelling"

    def get(self, request: Any) -> Any:
        if request == "queue":
            if not self.records:
                raise ClusterNotUpError
            return [self.records]
        self.asked.append(request)
        if request == "r1":
            status = SimpleNamespace(value="PENDING")
            self.records = [
                SimpleNamespace(job_id=1, job_name="job-1", status=status, recovery_count=0, failure_reason=None)
            ]
            self.requests = []
        return None


class ClusterNotUpError(Exception):
    pass


def module(name: str, **has: Any) -> ModuleType:
    found = ModuleType(name)
    vars(found).update(has)
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    given = Server()
    errors = module("sky.exceptions", ClusterNotUpError=ClusterNotUpError)
    jobs = module("sky.jobs", queue_v2=lambda **_: "queue")
    client = module("sky.client", sdk=given)
    for one in (module("sky", exceptions=errors, jobs=jobs, client=client), errors, jobs, client):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return given


def look(name: str = "job-1") -> Any:
    return life.look({"name": name, "managed": True, "closely": False})["phase"]


@pytest.mark.parametrize("status", ["PENDING", "WAITING", "RUNNING"])
def test_a_managed_job_is_launching_while_its_controller_is_built(server: Server, status: str) -> None:
    server.requests[1].status = status
    assert look() == "launching"
    assert look("job-2") == "none"
    server.requests[1].status = "FAILED"
    assert look() == "none"


def test_a_managed_job_that_is_taken_back_is_not_sent_any_further(server: Server) -> None:
    life.down({"name": "job-1", "managed": True})
    assert server.asked == [("cancel", "r1"), "cancelling"]


def test_a_managed_job_that_is_sent_already_is_waited_for_and_not_sent_twice(server: Server) -> None:
    assert life.launch({"name": "job-1", "managed": True, "task": {}, "secrets": {}}) == {"started": False}
    assert server.asked == ["r1"]
    assert look() == "waiting"


@pytest.mark.parametrize(
    ("keys", "profile", "local", "travel"),
    [
        ("[default]\naws_access_key_id = AKIAFAKE\n", None, True, True),
        ("[default]\naws_access_key_id = AKIAFAKE\n", "team", True, False),
        ("[team]\naws_access_key_id = AKIAFAKE\n", None, True, False),
        (None, None, True, False),  # single sign-on, a role: SkyPilot copies nothing
        (None, None, False, True),  # the keys of a server elsewhere
    ],
)
def test_only_static_keys_of_the_default_profile_travel(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    keys: str | None,
    profile: str | None,
    local: bool,
    travel: bool,
) -> None:
    (tmp_path / "credentials").write_text(keys or "")
    mounts = {"~/.aws/credentials": str(tmp_path / "credentials")} if keys else {}
    monkeypatch.delenv("AWS_DEFAULT_PROFILE", raising=False)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    cloud = SimpleNamespace(get_credential_file_mounts=lambda: mounts)
    for one in (
        module("sky", clouds=module("sky.clouds", AWS=lambda: cloud)),
        module("sky.adaptors", aws=SimpleNamespace(get_workspace_profile=lambda: None)),
        module("sky.server", common=SimpleNamespace(is_api_server_local=lambda: local)),
    ):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    assert life.aws_keys({}) == {"travel": travel}
