"""The process that speaks for SkyPilot: kept, timed, its errors told by kind. Its interpreter is a script."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.skypilot.environment import SkyPilotEnvironment
from backends.skypilot.service import SkyPilotService
from launcher.errors import (
    BackendError,
    BackendNotInstalledError,
    CapacityError,
    CredentialsError,
    UnreachableError,
)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "python"
    monkeypatch.setenv("LAUNCH_SKYPILOT_PYTHON", str(path))
    return path


def service(script: Path, text: str) -> SkyPilotService:
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return SkyPilotService(SkyPilotEnvironment(script.parent))


def test_one_process_answers_many_questions_and_ends_with_its_owner(script: Path) -> None:
    asked = service(script, 'while read -r line; do echo "{\\"result\\": $$}"; done')
    first, second = asked.ask("look"), asked.ask("look")
    assert first == second
    asked.close()
    assert not Path(f"/proc/{first}").exists()
    assert asked.ask("look") != first
    asked.close()


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        ("ResourcesUnavailableError", CapacityError),
        ("NoCloudAccessError", CredentialsError),
        ("ApiServerConnectionError", UnreachableError),
        ("ValueError", BackendError),
    ],
)
def test_skypilots_own_exception_says_what_kind_it_is(script: Path, kind: str, raised: type[Exception]) -> None:
    answer = f'{{"error": "{kind}: no luck", "type": "{kind}"}}'
    asked = service(script, f"while read -r line; do echo '{answer}'; done")
    with pytest.raises(raised, match=f"{kind}: no luck"):
        asked.ask("launch")
    asked.close()


def test_what_does_not_answer_is_ended(script: Path) -> None:
    asked = service(script, "read -r line; exec sleep 600")
    with pytest.raises(UnreachableError, match=r"0\.3 s"):
        asked.ask("launch", 0.3)
    assert asked._process is None


def test_the_last_words_of_a_worker_that_dies_are_told(script: Path) -> None:
    asked = service(script, "echo 'No module named sky' >&2; exit 3")
    with pytest.raises(BackendError, match="No module named sky"):
        asked.ask("start")


def test_without_its_environment_the_command_that_builds_it_is_named(script: Path) -> None:
    with pytest.raises(BackendNotInstalledError) as refusal:
        SkyPilotService(SkyPilotEnvironment(script.parent)).ask("start")
    assert refusal.value.hint == "launch setup skypilot --install"
