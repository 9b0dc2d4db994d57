"""Where the Vertex backend sends requests, how it reads Google's states and logs, and what its errors become."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from google.api_core import exceptions as g
from google.auth import exceptions as a
from google.cloud.aiplatform_v1 import CustomJob, JobState

from backends.base import JobRef, Site
from backends.base import JobState as State
from backends.vertex import VertexBackend, google, logs
from backends.vertex.account import home_of
from backends.vertex.google import PLACES, Google, endpoint, in_words, is_passing
from backends.vertex.jobs import scope_of
from backends.vertex.states import STATES, status_of
from launcher.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    JobNotFoundError,
    LaunchError,
    QuotaError,
    UnreachableError,
)
from tests.loopback import Loopback

QUOTA = "The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_training_cpus"


@pytest.mark.parametrize("service", sorted(PLACES))
def test_nothing_leaves_this_machine_without_tls(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, _ = PLACES[service]
    monkeypatch.delenv(variable, raising=False)
    assert endpoint(service, region="us-central1", host="x").startswith("https://")
    monkeypatch.setenv(variable, "http://127.0.0.1:9/")
    assert endpoint(service) == "http://127.0.0.1:9"
    monkeypatch.setenv(variable, "https://proxy.example.com")
    assert endpoint(service) == "https://proxy.example.com"
    for far in ("http://192.0.2.1", "192.0.2.1:80", "http://127.0.0.1.example.com"):
        monkeypatch.setenv(variable, far)
        with pytest.raises(ConfigError, match=variable) as refusal:
            endpoint(service)
        assert refusal.value.hint


def test_an_address_on_this_machine_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Loopback()
    try:
        server.answers["/v2/entries:list"] = (200, {"entries": []})
        monkeypatch.setenv("LAUNCH_LOGGING_ENDPOINT", server.url)
        assert Google("p", "us-central1").ask("logging", "v2/entries:list", "reading", {"filter": ""}) == {
            "entries": []
        }
        ((_, _, headers, _),) = server.seen
        assert "authorization" not in headers
    finally:
        server.close()


@pytest.mark.parametrize(
    ("exc", "kind", "again"),
    [
        (g.Unauthorized("no"), CredentialsError, False),
        (a.RefreshError("expired"), CredentialsError, False),
        (a.DefaultCredentialsError("none"), CredentialsError, False),
        (g.Forbidden("denied"), BackendError, False),
        (g.NotFound("none"), JobNotFoundError, False),
        (g.TooManyRequests(QUOTA), QuotaError, False),
        (g.TooManyRequests("Requests per minute"), UnreachableError, True),
        (g.ServiceUnavailable("busy"), UnreachableError, True),
        (g.InternalServerError("broken"), UnreachableError, True),
        (g.BadRequest("unknown field"), BackendError, False),
        (g.RetryError("gave up", g.ServiceUnavailable("busy")), UnreachableError, False),
        (requests.ConnectionError("reset"), UnreachableError, True),
        (requests.exceptions.ChunkedEncodingError("cut"), UnreachableError, True),
        (a.TransportError("no route"), UnreachableError, True),
        (ConnectionResetError("reset"), UnreachableError, True),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_googles_errors_in_words(exc: Exception, kind: type[LaunchError], again: bool) -> None:
    found = in_words(exc, "looking at a job", "my-project")
    assert type(found) is kind
    assert "looking at a job" in found.message and found.hint
    assert is_passing(exc) is again


def test_an_error_of_this_programs_own_is_no_error_of_googles() -> None:
    assert in_words(KeyError("x"), "looking", "p") is None


UNCOUNTED = (
    "Your application is authenticating by using local Application Default Credentials. The iam.googleapis.com "
    "API requires a quota project, which is not set by default."
)


@pytest.mark.parametrize(
    ("said", "service", "fix"),
    [
        (
            "Vertex AI API has not been used in project 1 before",
            None,
            "gcloud services enable aiplatform.googleapis",
        ),
        ("it is disabled", "secretmanager.googleapis.com", "gcloud services enable secretmanager.googleapis.com"),
        (UNCOUNTED, "iam.googleapis.com", "gcloud auth application-default set-quota-project my-project"),
        (
            "Caller does not have required permission to use project p",
            None,
            "roles/serviceusage.serviceUsageConsumer",
        ),
        ("Permission 'x' denied", None, "launch setup vertex --advice"),
    ],
)
def test_a_refusal_is_told_with_what_to_type(said: str, service: str | None, fix: str, vertex: Loopback) -> None:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "domain": "googleapis.com",
            "reason": "SERVICE_DISABLED", "metadata": {"service": service}}  # fmt: skip
    error = {"code": 403, "message": said, "status": "PERMISSION_DENIED", "details": [info] if service else []}
    vertex.answers["/v2/entries:list"] = (403, {"error": error})
    with pytest.raises(BackendError) as refusal:
        Google("my-project", "us-central1").ask("logging", "v2/entries:list", "reading", {})
    assert fix in (refusal.value.hint or "")


@pytest.mark.parametrize(("own", "counted"), [({}, "my-project"), ({"quota_project_id": "another"}, "another")])
def test_the_calls_of_a_login_count_on_the_project_unless_it_names_another(
    own: dict[str, str], counted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    login = {"type": "authorized_user", "client_id": "a", "client_secret": "b", "refresh_token": "c", **own}
    (tmp_path / "login.json").write_text(json.dumps(login))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "login.json"))
    for variable, _ in PLACES.values():
        monkeypatch.delenv(variable, raising=False)
    ours = Google("my-project", "us-central1")
    assert ours.credentials("vertex").quota_project_id == counted
    assert ours.credentials("iam") is ours.credentials("vertex")
    assert ours.credentials("storage").quota_project_id == own.get("quota_project_id")


def test_every_state_of_googles_has_one_of_ours() -> None:
    assert {state.name for state in JobState} == set(STATES)


START = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "started", "starts", "ours", "interruptions"),
    [
        ("PENDING", False, 0, State.STARTING, 0),
        ("QUEUED", False, 0, State.QUEUED, 0),
        ("RUNNING", True, 1, State.RUNNING, 0),
        ("PENDING", True, 1, State.STARTING, 1),
        ("QUEUED", True, 0, State.QUEUED, 1),
        ("RUNNING", True, 2, State.RUNNING, 1),
        ("SUCCEEDED", True, 3, State.SUCCEEDED, 2),
        ("CANCELLED", False, 0, State.CANCELLED, 0),
    ],
)
def test_a_job_that_waits_after_it_has_run_was_interrupted(
    state: str, started: bool, starts: int, ours: State, interruptions: int
) -> None:
    times: dict[str, Any] = {"start_time": START} if started else {}
    job = CustomJob(state=f"JOB_STATE_{state}", end_time=START, **times)
    found = status_of(job, "https://x", starts, None)
    assert (found.state, found.interruptions) == (ours, interruptions)
    assert (found.ended is not None) is ours.terminal


def test_a_reference_holds_project_and_region() -> None:
    assert scope_of("projects/example.com:p/locations/us-central1") == "us-central1.example.com:p"


def test_every_request_has_an_address_of_googles(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, _ in PLACES.values():
        monkeypatch.delenv(variable, raising=False)
    ours = Google("p", "us-east4")
    operation = "v1/projects/1/locations/us-east4/operations/2"
    assert ours.url("vertex", operation) == f"https://us-east4-aiplatform.googleapis.com/{operation}"
    assert ours.url("logging", "v2/entries:list") == "https://logging.googleapis.com/v2/entries:list"
    image = ours.url("artifactregistry", "v2/p/r/i/manifests/1", "us-docker.pkg.dev")
    assert image == "https://us-docker.pkg.dev/v2/p/r/i/manifests/1"


@pytest.mark.parametrize(
    ("account", "home"),
    [
        ("trainer@my-project.iam.gserviceaccount.com", "my-project"),
        ("trainer@my-project.example.com.iam.gserviceaccount.com", "example.com:my-project"),
        ("123456789012-compute@developer.gserviceaccount.com", "123456789012"),
        ("trainer@elsewhere.gserviceaccount.com", "-"),
    ],
)
def test_a_service_account_is_looked_for_in_its_own_project(account: str, home: str) -> None:
    assert home_of(account) == home


def test_what_is_checked_before_a_job_is_among_the_advised_rights(tmp_path: Path) -> None:
    told = VertexBackend(tmp_path).advice({"bucket": "b"}).splitlines()
    yours = [line for line in told if "user:YOU" in line]
    for role in ("storage.objectAdmin", "storage.legacyBucketReader", "artifactregistry.reader"):
        assert any(f"--role roles/{role} " in line for line in yours)


# One job, of a server that answers as Google does


PARENT = "/v1/projects/p/locations/us-central1/customJobs"
REF = JobRef("vertex", "us-central1.p", "a-job")


def told(state: str) -> dict[str, Any]:
    output = {"outputUriPrefix": "gs://bucket/finelaunch/jobs/a-job/output"}
    return {
        "name": f"{PARENT.removeprefix('/v1/')}/42", "displayName": "a-job", "labels": {"finelaunch_job": "a-job"},
        "state": f"JOB_STATE_{state}", "createTime": "2026-11-25T07:00:00Z", "endTime": "2026-11-25T08:00:00Z",
        "jobSpec": {"baseOutputDirectory": output}, "error": {"code": 3, "message": "status of 1"},
    }  # fmt: skip


@pytest.fixture
def vertex(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    server = Loopback()
    for variable in ("LAUNCH_VERTEX_ENDPOINT", "LAUNCH_LOGGING_ENDPOINT", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(variable, server.url)
    yield server
    server.close()


def stands(vertex: Loopback, state: str) -> None:
    vertex.answers |= {PARENT: (200, {"customJobs": [told(state)]}), f"{PARENT}/42": (200, told(state))}


@pytest.mark.parametrize(("status", "error"), [(503, UnreachableError), (401, CredentialsError)])
def test_why_a_job_failed_is_not_settled_while_its_log_can_not_be_asked(
    status: int, error: type[LaunchError], vertex: Loopback, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(google, "RETRY_S", 0.2)
    backend = VertexBackend(tmp_path)
    stands(vertex, "FAILED")
    vertex.answers["/v2/entries:list"] = (status, {"error": {"message": "not now"}})
    with pytest.raises(error):
        backend.status(REF)
    vertex.answers["/v2/entries:list"] = (200, {"entries": [entry(1, 1, "no driver")]})
    assert backend.status(REF).reason == "status of 1 | no driver"
    vertex.answers["/v2/entries:list"] = (403, {"error": {"message": "denied"}})
    assert backend.status(REF).reason == "status of 1", "no right to read the log is no reason to wait"


def test_a_job_that_is_being_stopped_is_stopped_again_without_a_word(vertex: Loopback, tmp_path: Path) -> None:
    backend = VertexBackend(tmp_path)
    vertex.answers[f"{PARENT}/42:cancel"] = (400, {"error": {"message": "is being cancelled"}})
    stands(vertex, "RUNNING")
    with pytest.raises(BackendError, match="is being cancelled"):
        backend.cancel(REF)
    stands(vertex, "CANCELLING")
    backend.cancel(REF)
    for state in ("CANCELLING", "SUCCEEDED"):  # since it was looked at
        stands(vertex, "RUNNING")
        vertex.answers[f"{PARENT}/42"] = (200, told(state))
        VertexBackend(tmp_path).cancel(REF)


def test_a_secret_whose_making_was_not_answered_is_made(
    vertex: Loopback, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", vertex.url)
    home = "/v1/projects/p/secrets"
    exists = {"error": {"message": "Secret already exists.", "status": "ALREADY_EXISTS"}}
    vertex.answers |= {home: (409, exists), f"{home}/TOKEN:addVersion": (200, {})}
    vertex.answers[f"{home}/TOKEN"] = (404, {"error": {"message": "Secret not found."}})
    site = Site(backend="vertex", facts={"project": "p", "region": "us-central1"})
    assert "TOKEN" in VertexBackend(tmp_path).put_secret(site, "TOKEN", "value")
    vertex.answers[home] = (403, {"error": {"message": "denied"}})
    with pytest.raises(BackendError, match="denied"):
        VertexBackend(tmp_path).put_secret(site, "TOKEN", "value")


# The log


@pytest.fixture
def logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    server = Loopback()
    monkeypatch.setenv("LAUNCH_LOGGING_ENDPOINT", server.url)
    yield server
    server.close()


def entry(number: int, second: float, text: str | None = None) -> dict[str, Any]:
    return {
        "insertId": f"i{number}", "timestamp": f"2026-11-25T07:00:{second:012.9f}Z", "severity": "INFO",
        "textPayload": text or f"line {number}", "resource": {"labels": {"task_name": "workerpool0-0"}},
    }  # fmt: skip


def read(cursor: str | None = None) -> list[Any]:
    return list(logs.lines(Google("p", "us-central1"), "42", START, cursor))


def test_a_line_that_arrives_late_is_read_once_and_none_is_lost(logging: Loopback) -> None:
    early, late, last = entry(1, 1.5), entry(2, 1.25), entry(3, 30)
    logging.answers["/v2/entries:list"] = (200, {"entries": [early]})
    (first,) = read()
    logging.answers["/v2/entries:list"] = (200, {"entries": [late, early, last]})
    assert [line.text for line in read(first.cursor)] == ["line 2", "line 3"]
    assert [line.text for line in read()] == ["line 2", "line 1", "line 3"]


def test_equal_times_are_told_apart(logging: Loopback) -> None:
    logging.answers["/v2/entries:list"] = (200, {"entries": [entry(n, 1) for n in range(5)]})
    found = read()
    assert len({line.cursor for line in found}) == 5
    for index, line in enumerate(found):
        assert [other.text for other in read(line.cursor)] == [other.text for other in found[index + 1 :]]


def test_every_page_is_read(logging: Loopback) -> None:
    logging.first["/v2/entries:list"] = [(200, {"entries": [entry(1, 1)], "nextPageToken": "more"})]
    logging.answers["/v2/entries:list"] = (200, {"entries": [entry(2, 2)]})
    assert [line.text for line in read()] == ["line 1", "line 2"]
    assert b'"pageToken": "more"' in logging.seen[1][3]


def test_a_line_is_one_line_from_either_field(logging: Loopback) -> None:
    other = {**entry(2, 2), "jsonPayload": {"message": "a\nb\n"}}
    logging.answers["/v2/entries:list"] = (200, {"entries": [entry(1, 1, "text\r\n"), other]})
    assert [line.text for line in read()] == ["text", "a\\nb"]


def test_a_line_of_which_the_end_has_not_arrived_is_told_later_and_whole(logging: Loopback) -> None:
    def piece(number: int, second: float, text: str, task: str = "workerpool0-0") -> dict[str, Any]:
        resource = {"labels": {"task_name": task}}
        return {**entry(number, second), "jsonPayload": {"message": text}, "resource": resource}

    start, other = piece(1, 1, "x" * logs.PIECE_BYTES), piece(2, 2, "other\n", "workerpool1-0")
    logging.answers["/v2/entries:list"] = (200, {"entries": [start, other]})
    (told,) = read()
    assert (told.text, told.source) == ("other", "workerpool1-0")
    logging.answers["/v2/entries:list"] = (200, {"entries": [start, piece(3, 1.5, "end\n"), other]})
    (told,) = read(told.cursor)
    assert told.text == "x" * logs.PIECE_BYTES + "end"
    assert read(told.cursor) == []
    warning = {**piece(4, 1.2, "warning\n"), "severity": "ERROR"}
    logging.answers["/v2/entries:list"] = (200, {"entries": [start, warning, piece(3, 1.5, "end\n")]})
    assert [line.text for line in read()] == ["warning", "x" * logs.PIECE_BYTES + "end"], "of two streams"


@pytest.mark.parametrize("cursor", ["", "x", "[]", "[1]", '["a", {}]', "[1, 2]"])
def test_another_logs_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(ConfigError, match="cursor"):
        list(logs.lines(Google("p", "us-central1"), "42", START, cursor))


def test_a_secret_is_not_stored_before_the_project_is_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="project"):
        VertexBackend(tmp_path).put_secret(Site(backend="vertex"), "TOKEN", "value")
