"""Judging an artifact again gives the job's own figures, on other rows those of the other rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

EVAL = {"baseline": True, "generation": True}


def rejudged(job: tiny.Job, folder: Path, artifact: Path) -> tuple[int, str, tiny.Job]:
    """A second set of folders over the same bundle."""
    again = tiny.Job(
        folder, json.loads((job.inputs / "job.json").read_text()), tiny.rows(24), tiny.rows(8, seed=1)
    )
    return *again.run("train_entry.rejudge", LAUNCH_ARTIFACT_DIR=str(artifact)), again


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return json.loads((folder / "metrics.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_artifact_judged_again_gives_the_figures_and_answers_of_the_job(new_job, tmp_path, kind):
    job = new_job(tuning={"kind": kind}, eval=EVAL, train={"max_steps": 12, "epochs": 9.0})
    code, log = job.run()
    assert code == 0, log
    artifact = job.outputs / "artifact"
    code, log, again = rejudged(job, tmp_path / "again", artifact)
    assert code == 0, log
    assert "Warning" not in log
    metrics, predictions = results(again.outputs)
    wanted, wanted_predictions = results(artifact)
    assert metrics == {k: wanted[k] for k in ("task", "baseline", "tuned")}
    assert predictions == wanted_predictions
    assert metrics["tuned"]["accuracy"] > metrics["baseline"]["accuracy"]
    told = [e.get("name") or e.get("which") or e["event"] for e in again.events()]
    assert told == ["data", "data", "baseline", "baseline", "evaluate", "tuned", "save", "done"]
    assert [e["seq"] for e in again.events()] == list(range(len(told)))
    listed = again.named("done")[0]["files"]
    assert [f["path"] for f in listed] == ["metrics.json", "predictions.jsonl"]
    assert all((again.outputs / f["path"]).stat().st_size == f["size"] for f in listed)


def test_folder_that_is_no_artifact_fails_with_what_to_name(new_job, tmp_path):
    job = new_job()
    code, _, again = rejudged(job, tmp_path / "again", tmp_path)
    assert code == 1
    assert again.failure()["kind"] == "model" and "adapter_config.json" in again.failure()["message"]
    assert not (again.outputs / "metrics.json").exists()


def test_adapter_of_another_model_is_refused(new_job, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    other = get_peft_model(
        LlamaForCausalLM(config), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    )
    other.save_pretrained(tmp_path / "foreign")
    code, _, again = rejudged(new_job(), tmp_path / "again", tmp_path / "foreign")
    assert code == 1
    assert again.failure()["kind"] == "model" and "does not fit" in again.failure()["message"]
