"""Azure ML's states, errors and times against the vendor's own lists."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from backends.azureml import states
from backends.azureml.azure import in_words, refusal, workspace_path
from backends.azureml.states import STATES, error_of, reason_of, state_of, time_of, was_preempted
from backends.base import JobState
from launcher.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    JobNotFoundError,
    LaunchError,
    QuotaError,
    UnreachableError,
)

FAILED = JobState.FAILED


def test_every_state_of_the_vendors_has_one_of_ours() -> None:
    rest = pytest.importorskip("azure.ai.ml._restclient.arm_ml_service.models")
    assert {state.value for state in rest.JobStatus} == set(STATES)


def test_a_state_never_heard_of_is_unknown_and_a_silent_machine_is_not_an_end() -> None:
    assert state_of("Hibernating") == state_of("NotResponding") == JobState.UNKNOWN
    assert state_of("Canceled") == JobState.CANCELLED


@pytest.mark.parametrize(
    ("error", "left", "code", "reason"),
    [
        ("Execution failed.", {"message": "out of memory\nmore"}, 1, "out of memory"),
        ("Execution failed.", {}, 143, "launch resume goes on"),
        ("Execution failed.\nsee the log", {}, 1, "Execution failed."),
        ("", {}, None, "failed; see the log"),
    ],
)
def test_a_failures_reason_is_the_jobs_own_where_it_left_one(
    error: str, left: dict[str, str], code: int | None, reason: str
) -> None:
    found = reason_of(FAILED, error, left, code)
    assert found is not None
    assert reason in found
    assert "\n" not in found


SIGNALLED = "Execution failed. User process '/bin/bash' exited with status code 143. Please check log file x"
LOGGED = "User process 'python' exited with status code 1. Error: the pod was evicted; PreemptionError"


@pytest.mark.parametrize(
    ("state", "error", "left", "ended", "preempted"),
    [
        (FAILED, "PreemptionError: Nodes of this job got pre-empted.", {"retry": True}, {"exit": 1}, True),
        (FAILED, "PreemptionError: Nodes of this job got pre-empted.", {"retry": False}, {"exit": 1}, False),
        (FAILED, SIGNALLED, {}, {"exit": 143}, True),
        (FAILED, SIGNALLED, {}, {}, True),
        (FAILED, "", {}, {"exit": 143}, True),
        (FAILED, SIGNALLED, {}, {"exit": 143, "over": None}, False),
        (FAILED, SIGNALLED, {"retry": False}, {}, False),
        (FAILED, LOGGED, {}, {"exit": 1}, False),
        (FAILED, "Execution failed.", {}, {}, False),
        (JobState.CANCELLED, "The node was preempted", {}, {}, True),
        (JobState.CANCELLED, "", {}, {"exit": 143}, False),
        (JobState.SUCCEEDED, "preempted", {}, {}, False),
    ],
)
def test_a_machine_that_was_taken_is_told_from_a_job_that_failed_or_ended_by_itself(
    state: JobState, error: str, left: dict[str, Any], ended: dict[str, Any], preempted: bool
) -> None:
    assert was_preempted(state, error, left, ended) is preempted


def test_a_job_that_did_not_fail_has_no_failure() -> None:
    assert reason_of(JobState.SUCCEEDED, "odd", {"message": "odd"}, 0) is None
    assert reason_of(JobState.CANCELLED, "", {}, None) == "cancelled"
    assert "spot capacity was taken" in (reason_of(FAILED, "evicted", {"message": "x"}, 1, True) or "")


def test_nested_errors_are_read_to_the_innermost() -> None:
    assert error_of({"error": {"error": {"code": "UserError", "message": "no such image"}}}) == "no such image"
    assert error_of({"error": None}) == ""


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-03-27T10:11:12.1234567+00:00", datetime(2026, 3, 27, 10, 11, 12, 123456, UTC)),
        ("2026-03-27T10:11:12Z", datetime(2026, 3, 27, 10, 11, 12, 0, UTC)),
        ("2026-03-27T12:11:12.5+02:00", datetime(2026, 3, 27, 10, 11, 12, 500000, UTC)),
        (None, None),
        ("soon", None),
    ],
)
def test_times_are_read_as_azure_writes_them(text: str | None, time: datetime | None) -> None:
    assert time_of(text) == time


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "InvalidAuthenticationToken", CredentialsError),
        (403, "AuthenticationFailed", CredentialsError),
        (403, "AuthorizationFailed", BackendError),
        (404, "ResourceNotFound", JobNotFoundError),
        (429, "TooManyRequests", UnreachableError),
        (503, "ServerBusy", UnreachableError),
        (400, "QuotaExceeded", QuotaError),
        (400, "UserError", BackendError),
    ],
)
def test_a_refusal_is_told_by_kind_with_a_way_out(status: int, code: str, kind: type[LaunchError]) -> None:
    found = refusal(status, code, "what Azure says", "looking", "id")
    assert type(found) is kind
    assert found.hint
    assert "what Azure says" in found.message


def test_a_reference_names_a_whole_workspace() -> None:
    assert workspace_path("s:g.1:w").endswith("/resourceGroups/g.1/providers/"
                                              "Microsoft.MachineLearningServices/workspaces/w")  # fmt: skip
    for wrong in ("localhost", "a:b", "a::c"):
        with pytest.raises(ConfigError):
            workspace_path(wrong)


def test_a_signed_address_in_an_error_is_masked() -> None:
    exceptions = pytest.importorskip("azure.core.exceptions")
    error = exceptions.ServiceRequestError("GET /azureml/log.txt?sv=1&sig=ab%2Fc%3D&se=2 failed")
    found = in_words(error, "reading")
    assert isinstance(found, UnreachableError)
    assert "sig=***" in found.message
    assert "ab%2Fc" not in found.message


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("EnvironmentCredential: Authentication failed: HTTPSConnectionPool(host='login.microsoftonline.com', "
         "port=443): Max retries exceeded (Failed to resolve 'login.microsoftonline.com')", UnreachableError),
        ("EnvironmentCredential: Authentication failed: ('Unable to connect to proxy', ...)", UnreachableError),
        ("AzureCliCredential: Please run 'az login' to set up an account", CredentialsError),
        ("ManagedIdentityCredential: HTTPConnectionPool(host='169.254.169.254'): Max retries exceeded",
         CredentialsError),
    ],
)  # fmt: skip
def test_a_lost_network_is_told_from_a_sign_in_that_is_missing(line: str, kind: type[LaunchError]) -> None:
    exceptions = pytest.importorskip("azure.core.exceptions")
    error = exceptions.ClientAuthenticationError(
        f"DefaultAzureCredential failed\nAttempted credentials:\n\t{line}"
    )
    assert type(in_words(error, "signing in")) is kind


def test_words_are_there_for_known_states_only() -> None:
    assert set(states.WORDS) <= set(STATES)
