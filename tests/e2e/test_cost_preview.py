"""launch cost, plan and run as a user meets them: the preview, the refusal over a budget, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Launch

JOB = """\
name: demo
model: meta-llama/Llama-3.1-8B-Instruct
task: generation
data: {train: rows.jsonl, eval_fraction: 0.2}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}."} for n in range(50)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "launch.yaml").write_text(JOB)
    return tmp_path / "launch.yaml"


def test_the_total_comes_first_and_nothing_needs_an_account(typed: Launch, job: Path) -> None:
    done = typed("cost")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("$")
    assert sum(line.startswith("> ") for line in lines) == 1
    assert any(line.startswith("shown ") for line in lines)
    assert any(line.startswith("tokens ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_json_has_every_offer_and_one_is_chosen(typed: Launch, job: Path) -> None:
    found = json.loads(typed("cost", "launch.yaml", "--json").stdout)
    assert {"local", "sagemaker", "vertex", "azureml", "skypilot", "together"} <= {
        one["backend"] for one in found["offers"]
    }
    chosen = [one for one in found["offers"] if one["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["fits"] is True
    total = chosen[0]["total"]
    assert 0 < total["low"] <= total["expected"] <= total["high"]
    unpriced = [one for one in found["offers"] if one["total"] is None]
    assert unpriced
    assert all(one["why_unpriced"] for one in unpriced)


def test_what_launch_plan_takes_is_what_launch_cost_chose(typed: Launch, job: Path) -> None:
    chosen = next(
        one for one in json.loads(typed("cost", "--backend", "vertex", "--json").stdout)["offers"] if one["chosen"]
    )
    plan = json.loads(typed("plan", "--backend", "vertex", "--json").stdout)
    assert plan["hardware"] == chosen["instance_type"]
    assert {"request", "estimate", "bundle"} <= plan.keys()
    assert float(plan["estimate"]["expected"]) == chosen["total"]["expected"]
    assert plan["estimate"]["hours"] == chosen["hours"]


def test_a_budget_below_the_band_is_refused_with_where_it_is_enough(typed: Launch, job: Path) -> None:
    for verb in ("plan", "run"):
        done = typed(verb, "--backend", "azureml", "--set", "resources.gpu=H100", "--budget", "0.9")
        assert done.returncode == 6, done.stderr
        assert "$0.9 is not enough on azureml" in done.stderr
        assert "launch run --backend" in done.stderr


def test_launch_run_shows_the_preview_and_does_not_spend_unasked(typed: Launch, job: Path) -> None:
    facts = {"region": "us-east-1", "role": "arn:aws:iam::111122223333:role/train", "bucket": "my-bucket"}
    sets = [f"--set=site.sagemaker.{name}={value}" for name, value in facts.items()]
    done = typed("run", "--backend", "sagemaker", *sets)
    assert done.returncode == 2
    assert "nobody can be asked" in done.stderr
    assert "training and judging" in done.stderr
    assert "likely $" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--gpu", "H1000"), "did you mean H100"),
        (("--set", "model=org/lama-3.1-8b"), "did you mean llama-3.1-8b"),
        (("--backend", "sagmaker"), "did you mean sagemaker"),
        (("--set", "data.train=none.jsonl"), "data file not found"),
        (("--set", "data.train=empty.jsonl"), "has no rows"),
        (("--set", "data.train=latin.jsonl"), "not UTF-8"),
        (("--budget", "much"), "budget"),
    ],
)
def test_bad_input_is_told_in_words(typed: Launch, job: Path, args: tuple[str, ...], said: str) -> None:
    (job.parent / "empty.jsonl").write_text("")
    (job.parent / "latin.jsonl").write_bytes('{"prompt": "caf\u00e9", "completion": "x"}'.encode("latin-1"))
    done = typed("cost", *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_a_plan_without_a_known_model_still_says_what_it_costs_at_most(typed: Launch, job: Path) -> None:
    done = typed("plan", "--backend", "vertex", "--set", "model=org/unheard-of")
    assert done.returncode == 0, done.stderr
    assert "at most $" in done.stdout
