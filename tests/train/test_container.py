"""A whole job through `python -m train_entry`: what it tells, what it leaves, and that this is the model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from train_entry.checkpoint import sha256_of
from train_entry.config import read_job
from train_entry.data import load_dataset
from train_entry.evaluate import label_scores
from train_entry.events import parse
from train_entry.general import QUESTIONS
from train_entry.held_out import held_out_loss
from train_entry.models import load_tokenizer

FIELDS = {
    "phase": {"name"},
    "data": {"train_rows", "eval_rows", "train_tokens", "dropped", "truncated", "labels"},
    "step": {
        "step",
        "total_steps",
        "epoch",
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "tokens_per_s",
        "step_s",
        "peak_gib",
    },
    "packing": {"kind", "why", "micro", "passes"},
    "eval_loss": {"step", "loss"},
    "eval": {"which", "metrics"},
    "checkpoint": {"step", "path"},
    "done": {"steps", "train_s", "tokens_per_s", "step_s", "peak_gib", "artifact", "files"},
}
SECRET = "s3cr" + "et-value"


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[tiny.Job, int, str]:
    """(job, exit status, log) of a job with everything on that ran to its end."""
    root = tmp_path_factory.mktemp("done")
    description = tiny.job_dict(
        model_folder,
        train={"max_steps": 24, "epochs": 10.0, "checkpoint_steps": 10, "evals_per_epoch": 1},
        eval={"baseline": True, "generation": True, "scorer": "mine.py"},
        output={"merged": True},
        secrets=["MY_TOKEN"],
    )
    job = tiny.Job(root, description, tiny.rows(24), tiny.rows(8, seed=1))
    (job.inputs / "mine.py").write_text(
        "import os\n\n"
        "def score(rows, answers):\n"
        "    print('token', os.environ['MY_TOKEN'])\n"
        "    return {'n': len(rows)}\n"
    )
    return job, *job.run(MY_TOKEN=SECRET)


def test_job_ends_with_status_0_and_the_state_succeeded(done):
    job, code, log = done
    assert code == 0, log
    assert job.state() == "succeeded"
    assert not (job.outputs / "failure.json").exists()
    assert not (job.outputs / ".work").exists(), "working files are gone"


def test_events_are_legal_numbered_and_in_order(done):
    job, _, log = done
    events = job.events()
    assert len({e["run"] for e in events}) == 1
    assert [e["seq"] for e in events] == list(range(len(events)))
    assert [e["time"] for e in events] == sorted(e["time"] for e in events)
    for event in events:
        assert set(event) - {"run", "seq", "time", "event"} == FIELDS[event["event"]], event
    phases = [e["name"] for e in events if e["event"] == "phase"]
    assert phases == ["setup", "data", "baseline", "train", "evaluate", "save"]
    assert [e["step"] for e in job.named("step")] == list(range(1, 25))
    assert {e["total_steps"] for e in job.named("step")} == {24}
    assert [e["step"] for e in job.named("checkpoint")] == [10, 20, 24]
    assert [e["step"] for e in job.named("eval_loss")] == [6, 12, 18, 24]
    assert [e["which"] for e in job.named("eval")] == ["baseline", "tuned"]
    assert events[-1]["event"] == "done" and events[-1]["steps"] == 24
    assert [e for line in log.splitlines() if (e := parse(line))] == events, "the log carries the same events"


def test_learning_is_told_truthfully(done):
    job, _, _ = done
    steps = job.named("step")
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert max(e["lr"] for e in steps) == pytest.approx(5e-3, rel=0.05) and steps[-1]["lr"] < 1e-4
    data = job.named("data")[0]
    rows = load_dataset(
        read_job(job.inputs / "job.json"),
        job.inputs,
        load_tokenizer(read_job(job.inputs / "job.json"), job.inputs),
    )
    assert data["train_tokens"] == sum(map(len, rows.train)) and data["labels"] == list(tiny.LABELS)
    assert sum(e["tokens"] for e in steps[:6]) == data["train_tokens"], "six steps of four are the 24 rows once"
    metrics = json.loads((job.outputs / "artifact/metrics.json").read_text())
    assert metrics["tuned"]["accuracy"] > metrics["baseline"]["accuracy"]
    assert metrics["train"]["tokens"] == sum(e["tokens"] for e in steps)
    assert metrics["train"]["final_loss"] == steps[-1]["loss"]


def test_artifact_is_whole_and_listed_by_hash(done):
    job, _, _ = done
    artifact = job.outputs / "artifact"
    listed = {f["path"]: f for f in job.named("done")[0]["files"]}
    there = {p.relative_to(job.outputs).as_posix(): p for p in artifact.rglob("*") if p.is_file()}
    assert listed.keys() == there.keys()
    assert all(
        listed[n]["sha256"] == sha256_of(p) and listed[n]["size"] == p.stat().st_size for n, p in there.items()
    )
    wanted = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md", "metrics.json",
              "job.json", "predictions.jsonl", "merged/model.safetensors"}  # fmt: skip
    assert {f"artifact/{name}" for name in wanted} <= there.keys()
    assert (artifact / "job.json").read_bytes() == (job.inputs / "job.json").read_bytes()
    card = (artifact / "README.md").read_text()
    metrics = json.loads((artifact / "metrics.json").read_text())
    assert "library_name: peft" in card and "lora, r 16, alpha 32, dropout 0.05" in card
    assert f"| accuracy | {metrics['baseline']['accuracy']:.3f} | {metrics['tuned']['accuracy']:.3f} |" in card
    assert metrics["tuned"]["scorer"] == {"n": 8.0}


def test_predictions_stand_row_by_row_and_give_the_accuracy_told(done):
    job, _, _ = done
    lines = (job.outputs / "artifact/predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [p["prompt"] for p in predictions] == [r["instruction"] for r in tiny.rows(8, seed=1)]
    assert [p["where"] for p in predictions] == [f"eval.jsonl:{i}" for i in range(1, 9)]
    metrics = json.loads((job.outputs / "artifact/metrics.json").read_text())
    for which in ("baseline", "tuned"):
        right = sum(p[which] == p["expected"] for p in predictions)
        assert metrics[which]["accuracy"] == pytest.approx(right / 8)


def test_artifact_gives_the_told_answers_and_the_merged_weights_its_logits(done, model_folder):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    job, _, _ = done
    artifact = job.outputs / "artifact"
    description = read_job(job.inputs / "job.json")
    tokenizer = load_tokenizer(description, job.inputs)
    rows = load_dataset(description, job.inputs, tokenizer)
    model = AutoPeftModelForCausalLM.from_pretrained(artifact, dtype=torch.float32).eval()
    scores = label_scores(model, tokenizer, description, rows.held_out, rows.labels, lambda: None)
    predictions = [json.loads(line) for line in (artifact / "predictions.jsonl").read_text().splitlines()]
    assert [rows.labels[s.index(max(s))] for s in scores] == [p["tuned"] for p in predictions]
    last = job.named("eval_loss")[-1]["loss"]
    assert held_out_loss(model, rows.held_out, 4, tokenizer.pad_token_id, lambda: None) == pytest.approx(
        last, rel=1e-6
    )
    merged = AutoModelForCausalLM.from_pretrained(artifact / "merged", dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    ids = torch.tensor([[*rows.held_out[0].prompt]])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-4)
        assert (base(input_ids=ids).logits - wanted).abs().max() > 0.1, "the adapter must change something"
    assert merged.config.use_cache is True


def test_artifact_gives_the_same_logits_in_a_new_process(done):
    from peft import AutoPeftModelForCausalLM

    artifact = done[0].outputs / "artifact"
    script = (
        "import sys, hashlib, torch\nfrom peft import AutoPeftModelForCausalLM\n"
        "torch.set_num_threads(1)\n"
        "m = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()\n"
        "with torch.no_grad(): x = m(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits\n"
        "print(hashlib.sha256(x.numpy().tobytes()).hexdigest())\n"
    )
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(artifact)], capture_output=True, text=True, check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = AutoPeftModelForCausalLM.from_pretrained(artifact, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits
    finally:
        torch.set_num_threads(threads)
    assert other.stdout.split()[-1] == hashlib.sha256(logits.numpy().tobytes()).hexdigest()


def test_what_was_forgotten_stands_beside_what_was_learnt(done, model_folder):
    """The figures are those of the definition: one question a forward pass, every token's own probability."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    job, _, _ = done
    artifact = job.outputs / "artifact"
    metrics = json.loads((artifact / "metrics.json").read_text())
    description = read_job(job.inputs / "job.json")
    tokenizer = load_tokenizer(description, job.inputs)
    models = {
        "baseline": AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval(),
        "tuned": AutoPeftModelForCausalLM.from_pretrained(artifact, dtype=torch.float32).eval(),
    }
    for which, model in models.items():
        found = []
        for question, answer in QUESTIONS:
            prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            begin, end = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
            with torch.no_grad():
                probability = model(input_ids=torch.tensor([begin + end])).logits[0].softmax(-1)
            found += [math.log(probability[len(begin) - 1 + i, token]) for i, token in enumerate(end)]
        told = metrics[which]["general"]
        assert told["log_prob"] == pytest.approx(sum(found) / len(found), rel=1e-4)
        assert told["perplexity"] == pytest.approx(math.exp(-told["log_prob"])) and told["questions"] == 16
    before, after = (metrics[which]["general"]["log_prob"] for which in ("baseline", "tuned"))
    assert metrics["general_drop"] == pytest.approx(before - after) and abs(before - after) > 1e-3
    card = (artifact / "README.md").read_text()
    assert f"| general questions, log-probability a token | {before:.3f} | {after:.3f} |" in card


def test_values_of_secrets_are_masked_in_the_log(done):
    _, _, log = done
    assert SECRET not in log
    assert "token ***" in log


def kept_metrics(job: tiny.Job) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.outputs / "artifact/metrics.json").read_text())
    return found


def test_early_stopping_stops_and_the_best_weights_are_the_result(new_job):
    from transformers import AutoModelForCausalLM

    job = new_job(
        tuning={"kind": "full"},
        train={"max_steps": 200, "epochs": 100.0, "learning_rate": 3e-2, "early_stopping": {"patience": 2}},
    )
    code, log = job.run()
    assert code == 0, log
    losses = {e["step"]: e["loss"] for e in job.named("eval_loss")}
    figures = kept_metrics(job)["train"]
    best = min(losses, key=losses.__getitem__)
    assert figures["steps"] == max(losses) < 200
    assert (figures["best_step"], figures["best_eval_loss"]) == (best, losses[best])
    assert sorted(losses).index(max(losses)) - sorted(losses).index(best) == 2, (
        "two evaluations without a better one"
    )
    description = read_job(job.inputs / "job.json")
    tokenizer = load_tokenizer(description, job.inputs)
    rows = load_dataset(description, job.inputs, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(job.outputs / "artifact", dtype=torch.float32)
    measured = held_out_loss(model, rows.held_out, 4, tokenizer.pad_token_id, lambda: None)
    assert measured == pytest.approx(losses[best], rel=1e-5)
    assert model.config.use_cache is True


def test_qlora_leaves_an_adapter_that_loads_on_the_4_bit_base(new_job, model_folder):
    from peft import PeftModel

    from train_entry.models import load_base

    job = new_job(tuning={"kind": "qlora"})
    code, log = job.run()
    assert code == 0, log
    description = read_job(job.inputs / "job.json")
    model = PeftModel.from_pretrained(load_base(description, job.inputs, "cpu"), job.outputs / "artifact")
    rows = load_dataset(description, job.inputs, load_tokenizer(description, job.inputs))
    last = job.named("eval_loss")[-1]["loss"]
    assert held_out_loss(model, rows.held_out, 4, 2, lambda: None) == pytest.approx(last, rel=1e-2)


def test_dry_run_reports_time_and_memory_and_leaves_no_artifact(new_job):
    job = new_job(train={"max_steps": 50, "dry_run_steps": 3, "checkpoint_steps": 1}, eval={"baseline": True})
    code, log = job.run()
    assert code == 0, log
    done = job.named("done")[0]
    assert done["steps"] == 3 and done["artifact"] is None and done["files"] == []
    assert done["step_s"] > 0 and done["tokens_per_s"] > 0 and done["peak_gib"] > 0.1
    assert job.named("stopped")[0]["reason"] == "dry_run"
    assert not (job.outputs / "artifact").exists() and job.steps_kept() == []
    assert [e["name"] for e in job.named("phase")] == ["setup", "data", "train"], "nothing is judged"
