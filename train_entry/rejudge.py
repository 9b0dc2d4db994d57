"""Judge a finished job's artifact again, on the rows that data.eval names: `python -m train_entry.rejudge`.

LAUNCH_INPUT_DIR holds the job and its data (a bundle), LAUNCH_ARTIFACT_DIR the adapter or the full weights.
LAUNCH_OUTPUT_DIR gets metrics.json {task, baseline, tuned} and predictions.jsonl. Exit status and failure.json
as in train.py; one process, on the first GPU where there is one.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from train_entry.__main__ import QUIET
from train_entry.artifact import list_files, prediction_rows, write_predictions
from train_entry.config import read_job
from train_entry.data import Dataset, judged_rows, load_dataset
from train_entry.failure import JobError, write_atomic
from train_entry.masking import set_names
from train_entry.train import Context, context, emit_data, guarded, judge_rows

RESULTS = ("metrics.json", "predictions.jsonl")


def main() -> int:
    """Judge, and return the exit status."""
    os.environ.update(QUIET)
    warnings.simplefilter("ignore")  # PYTHONWARNINGS comes too late for this interpreter
    os.environ.setdefault("LAUNCH_RUN", secrets.token_hex(4))
    return guarded(_run)


def _run(outputs: Path) -> int:
    for old in (outputs / ".work" / "stop", outputs / "failure.json"):
        old.unlink(missing_ok=True)
    set_names(read_job(Path(os.environ["LAUNCH_INPUT_DIR"]) / "job.json").secrets)
    at = context(outputs, outputs / ".work")
    _judge_both(at, Path(os.environ["LAUNCH_ARTIFACT_DIR"]))
    shutil.rmtree(at.work, ignore_errors=True)
    return 0


def _judge_both(at: Context, artifact: Path) -> None:
    from train_entry.loop import peak_gib
    from train_entry.models import load_base, load_tokenizer

    kind = _kind(artifact)
    at.emit("phase", name="data")
    tokenizer = load_tokenizer(at.job, at.inputs)
    data = load_dataset(at.job, at.inputs, tokenizer)
    emit_data(at, data)
    base = load_base(at.job, at.inputs, at.device) if at.job.eval.baseline or kind == "adapter" else None
    baseline = before = None
    if at.job.eval.baseline:
        baseline, before = _judge(at, "baseline", base, tokenizer, data)
    if kind == "full":
        base = None
        gc.collect()  # two models need not fit
    tuned, after = _judge(at, "tuned", _load_tuned(at, artifact, base), tokenizer, data)
    at.emit("phase", name="save")
    write_predictions(at.outputs / RESULTS[1], prediction_rows(judged_rows(at.job, data), before, after))
    metrics = {"task": at.job.task, "baseline": baseline, "tuned": tuned}
    write_atomic(at.outputs / RESULTS[0], json.dumps(metrics, indent=1).encode())
    files = list_files(at.outputs, [at.outputs / name for name in RESULTS])
    at.emit(
        "done", steps=0, train_s=0.0, tokens_per_s=None, step_s=None, peak_gib=peak_gib(), artifact=None,
        files=files,
    )  # fmt: skip


def _judge(at: Context, which: str, model: Any, tokenizer: Any, data: Dataset) -> tuple[dict[str, Any], list[str]]:
    at.emit("phase", name="baseline" if which == "baseline" else "evaluate")
    metrics, answers = judge_rows(at, model, tokenizer, data)
    at.emit("eval", which=which, metrics=metrics)
    return metrics, answers


def _kind(artifact: Path) -> str:
    """ "adapter" or "full". Raises JobError("model") for a folder that is no artifact."""
    if (artifact / "adapter_config.json").is_file():
        return "adapter"
    if (artifact / "config.json").is_file():
        return "full"
    raise JobError(
        "model",
        f"{artifact} holds neither adapter_config.json nor config.json",
        "LAUNCH_ARTIFACT_DIR names the artifact folder that a finished job left",
    )


def _load_tuned(at: Context, artifact: Path, base: Any) -> Any:
    """The artifact's model; an adapter goes on `base`, full weights are loaded as they are."""
    from dataclasses import replace

    from train_entry.models import load_base

    if base is None:
        own = replace(at.job.model, id=str(artifact.resolve()), revision=None)
        return load_base(replace(at.job, model=own), at.inputs, at.device)
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, artifact).eval()
    except (OSError, ValueError, RuntimeError) as exc:
        first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise JobError(
            "model",
            f"the adapter in {artifact} does not fit {at.job.model.id}: {first}",
            "model.id must be the model that the job trained on",
        ) from exc


if __name__ == "__main__":
    sys.exit(main())
