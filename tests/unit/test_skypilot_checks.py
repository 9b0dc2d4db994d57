"""`sky check`, as SkyPilot 0.14.1 words it, as problems with fixes and as whom it speaks. Its words are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.base import Problem, Site
from backends.skypilot import SkyPilotBackend, checks
from launcher.errors import CredentialsError

SAID = """\
Checking credentials to enable clouds for SkyPilot.
\x1b[32m\x1b[22m  AWS: enabled [compute, storage]\x1b[0m
    Activated account: AIDAFAKE, 123456789012
\x1b[2m  GCP: disabled \x1b[0m
    Reason [compute, storage]: GCP tools are not installed. Run the following commands:
      $ pip install google-api-python-client
\x1b[32m\x1b[22m  Lambda: enabled [compute]\x1b[0m
"""


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SkyPilotBackend:
    said = {"result": {"enabled": {"AWS": ["compute", "storage"], "Lambda": ["compute"]}, "said": SAID}}
    (tmp_path / "said").write_text(json.dumps(said).replace("\n", "") + "\n")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nwhile read -r line; do cat {tmp_path}/said; done\n")
    python.chmod(0o755)
    monkeypatch.setenv("LAUNCH_SKYPILOT_PYTHON", str(python))
    (tmp_path / "shared").mkdir()
    return SkyPilotBackend(tmp_path / "home")


def problems(backend: SkyPilotBackend, tmp_path: Path, infra: str, store: str = "") -> list[Problem]:
    facts = {"infra": infra, "store": store or str(tmp_path / "shared")}
    return backend.check(Site(backend="skypilot", facts=facts))


def test_what_can_be_used_is_no_problem(backend: SkyPilotBackend, tmp_path: Path) -> None:
    assert problems(backend, tmp_path, "aws/us-east-1") == []
    assert problems(backend, tmp_path, "lambda") == []


@pytest.mark.parametrize(
    ("infra", "travel", "refused"),
    [("lambda", False, True), ("lambda", True, False), ("aws/us-east-1", False, False), ("slurm", False, False)],
)
def test_a_bucket_of_aws_for_another_clouds_machines_needs_static_keys(
    backend: SkyPilotBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    infra: str,
    travel: bool,
    refused: bool,
) -> None:
    """Machines of the user's own may have a role of their own: nothing is said of those."""
    monkeypatch.setattr(checks, "_of_the_store", lambda *_: [])
    enabled = {"AWS": ["compute", "storage"], "Lambda": ["compute"], "Slurm": ["compute"]}
    answer = json.dumps({"result": {"enabled": enabled, "said": "", "travel": travel}})
    (tmp_path / "said").write_text(f"{answer}\n")
    found = [(p.kind, p.fix) for p in problems(backend, tmp_path, infra, "s3://team-bucket")]
    fix = "static keys as [default] of ~/.aws/credentials, a gs:// store, or --infra aws"
    assert found == ([("credentials", fix)] if refused else [])


def test_what_skypilots_environment_lacks_is_built_by_the_command_that_is_named(
    backend: SkyPilotBackend, tmp_path: Path
) -> None:
    backend._environment.choose(["aws"])
    (problem,) = problems(backend, tmp_path, "gcp/us-central1")
    assert "GCP tools are not installed" in problem.what
    assert problem.fix == "launch setup skypilot --clouds aws,gcp"


def test_a_cloud_without_credentials_names_skypilots_own_check(backend: SkyPilotBackend, tmp_path: Path) -> None:
    (problem,) = problems(backend, tmp_path, "nebius")
    assert (problem.fix, problem.kind) == ("sky check nebius", "credentials")


def test_who_speaks_to_each_cloud_is_told_in_one_line(backend: SkyPilotBackend) -> None:
    anywhere = Site(backend="skypilot", facts={"store": "s3://team-bucket"})
    assert backend.signed_in(anywhere) == "SkyPilot: aws as AIDAFAKE, 123456789012; lambda"


def test_no_cloud_at_all_is_told_with_what_to_type(tmp_path: Path, backend: SkyPilotBackend) -> None:
    (tmp_path / "said").write_text(json.dumps({"result": {"enabled": {}, "said": SAID}}) + "\n")
    with pytest.raises(CredentialsError) as refusal:
        backend.signed_in(Site(backend="skypilot", facts={"infra": "gcp"}))
    assert "GCP tools are not installed" in refusal.value.message
    assert refusal.value.hint == "launch setup skypilot --clouds gcp"
