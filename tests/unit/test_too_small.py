"""A job that can't fit on its GPU is not started by agreeing to its price alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from launcher.cli import cli

FULL_8B_ON_L4 = ("--backend", "vertex", "--set", "tuning.kind=full", "--set", "resources.gpu=L4")


@pytest.fixture(autouse=True)
def job(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}. " * 60} for n in range(50)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "launch.yaml").write_text(
        "name: demo\nmodel: meta-llama/Llama-3.1-8B-Instruct\ntask: generation\ndata: {train: rows.jsonl}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def launch(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


def why(done: Result) -> str:
    return f"{done.exception.message} -> {done.exception.hint}"  # type: ignore[union-attr]


def test_it_is_refused_with_the_smallest_change_that_fits() -> None:
    refused = launch("run", "--yes", *FULL_8B_ON_L4)
    assert getattr(refused.exception, "exit_code", None) == 2
    assert "is too small" in why(refused) and "on each L4, which has 22" in why(refused)
    assert "LoRA fits: --set tuning.kind=lora;" in why(refused)
    assert "is not set up" in why(launch("run", "--yes", *FULL_8B_ON_L4, "--set", "tuning.kind=lora"))


def test_whoever_wants_it_all_the_same_says_so() -> None:
    assert "is not set up" in why(launch("run", "--yes", "--even-if-too-small", *FULL_8B_ON_L4))


def test_a_plan_shows_it_and_does_not_call_it_good() -> None:
    facts = {
        "project": "my-project", "region": "us-central1", "bucket": "my-bucket",
        "service_account": "a@my-project.iam.gserviceaccount.com",
        "image": f"us-docker.pkg.dev/my-project/r/train@sha256:{'ab' * 32}",
    }  # fmt: skip
    sets = [f"--set=site.vertex.{name}={value}" for name, value in facts.items()]
    shown = launch("plan", *FULL_8B_ON_L4, *sets)
    assert shown.exit_code == 0, shown.output
    assert "is too small" in shown.stdout and "the job is good" not in shown.stdout
    assert "the job is good" in launch("plan", *FULL_8B_ON_L4, *sets, "--set", "tuning.kind=lora").stdout


def test_what_the_training_mends_by_itself_is_no_reason_to_refuse() -> None:
    """It halves a micro-batch that is too large."""
    wide = ("--set", "train.batch_size=64", "--set", "train.micro_batch=64", "--set", "resources.gpu=A100-80GB")
    long = ("--set", "data.max_length=2048", "--set", "train.gradient_checkpointing=false")
    shown = launch("plan", "--backend", "vertex", *wide, *long)
    assert "short" in shown.stdout and "micro-batch" in shown.stdout
    assert "is not set up" in why(launch("run", "--yes", "--backend", "vertex", *wide, *long))
