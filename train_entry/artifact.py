"""What a job leaves: adapter or weights, tokenizer, model card, figures, the resolved job."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from train_entry.checkpoint import sha256_of
from train_entry.config import TrainJob
from train_entry.data import Example
from train_entry.failure import write_atomic
from train_entry.folders import move_tree
from train_entry.hub import on_the_hub


def build_artifact(
    work: Path, model: Any, tokenizer: Any, job: TrainJob, job_file: Path,
    metrics: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]],
) -> Path:  # fmt: skip
    """Write the artifact under `work`; returns its path there."""
    building = work / "artifact"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    # The model card that peft would write is replaced below; the weights are safetensors.
    model.config.use_cache = True  # off in training only; whoever loads full weights wants it
    model.save_pretrained(building)
    tokenizer.save_pretrained(building)
    if job.output.merged and job.tuning.kind == "lora":
        merged = model.merge_and_unload()
        merged.save_pretrained(building / "merged")
        tokenizer.save_pretrained(building / "merged")
    write_atomic(building / "metrics.json", json.dumps(metrics, indent=1).encode())
    shutil.copyfile(job_file, building / "job.json")
    write_predictions(building / "predictions.jsonl", predictions)
    write_atomic(building / "README.md", model_card(job, metrics).encode())
    return building


def put_in_place(building: Path, outputs: Path) -> list[dict[str, Any]]:
    """Make what was built outputs/artifact; returns its files. Not to be ended half-way."""
    target = outputs / "artifact"
    move_tree(building, target)
    return list_files(outputs, target.rglob("*"))


def list_files(outputs: Path, paths: Iterable[Path]) -> list[dict[str, Any]]:
    """{path, size, sha256} of the files, paths relative to the output folder."""
    return [
        {"path": path.relative_to(outputs).as_posix(), "size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(p for p in paths if p.is_file())
    ]


def write_predictions(path: Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    """One JSON line a judged row, whole or not at all."""
    lines = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in predictions)
    write_atomic(path, lines.encode())


def prediction_rows(
    rows: Sequence[Example], baseline: Sequence[str] | None, tuned: Sequence[str] | None
) -> list[dict[str, Any]]:
    """One object a judged row: where it stands, what was expected, what both models answered."""
    return [
        {
            "where": e.row.where,
            "prompt": e.row.prompt,
            "expected": e.row.answer,
            "baseline": baseline[i] if baseline else None,
            "tuned": tuned[i] if tuned else None,
        }
        for i, e in enumerate(rows)
    ]


def model_card(job: TrainJob, metrics: Mapping[str, Any]) -> str:
    """A model card in the Hub's format."""
    adapter = job.tuning.kind != "full"
    header = ["---", *(["library_name: peft"] if adapter else ["library_name: transformers"])]
    base = on_the_hub(job.model).id
    if ":" not in base and not base.startswith(("/", ".")):
        header.append(f"base_model: {base}")
    header += ["pipeline_tag: text-generation", f"tags: [finelaunch, {job.task}, {job.tuning.kind}]", "---"]
    how = (
        f"{job.tuning.kind}, r {job.tuning.r}, alpha {job.alpha}, dropout {job.tuning.dropout}, "
        f"targets {job.tuning.targets}"
        if adapter
        else "full fine-tuning"
    )
    loading = (
        "```python\nfrom peft import AutoPeftModelForCausalLM\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")\n```'
        if adapter
        else "```python\nfrom transformers import AutoModelForCausalLM\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n```'
    )
    train = metrics["train"]
    lines = [
        *header, "", f"# {job.name}", "",
        f"Base model: `{job.model.id}`" + (f" at `{job.model.revision}`" if job.model.revision else ""), "",
        f"Task: {job.task}. Training: {job.method}, {how}; learning rate {job.learning_rate:g}, "
        f"{job.train.scheduler}, batch {job.train.batch_size}, seed {job.train.seed}; "
        f"{train['steps']} steps, {train['tokens']} tokens.", "",
        "## Evaluation", "", *_figures(metrics), "", "## Use", "", loading, "",
        "The licence of the base model applies to these weights.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    names = ("accuracy", "macro_f1", "exact_match", "field_f1", "rouge_l")
    before, after = metrics["baseline"] or {}, metrics["tuned"] or {}
    rows = [
        f"| {name} | {_cell(before.get(name))} | {_cell(after.get(name))} |"
        for name in names
        if name in before or name in after
    ]
    general = [(side.get("general") or {}).get("log_prob") for side in (before, after)]
    if general != [None, None]:
        cells = " | ".join(_cell(value) for value in general)
        rows.append(f"| general questions, log-probability a token | {cells} |")
    if not rows:
        return ["Not evaluated."]
    count = (after or before)["rows"]
    return [f"On {count} held-out rows.", "", "| | base model | tuned |", "|---|---|---|", *rows]


def _cell(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"
