"""Judge a finished job's model again on this machine: on its own held-out rows, or on others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from backends.base import Bundle, JobState, Progress
from launcher.bundle import build_bundle
from launcher.client import Client
from launcher.errors import ConfigError
from launcher.events import from_line
from launcher.home import cache
from launcher.live import as_words
from launcher.spec import JobSpec
from launcher.store import JobRecord

PREDICTIONS = "predictions.jsonl"


def judge_again(
    client: Client, job_id: str, data: Path | None, max_rows: int | None, progress: Progress
) -> tuple[Mapping[str, Any], Path]:
    """({"baseline": figures or None, "tuned": figures}, the predictions file).

    The figures are kept in the record, those of another file as "baseline@FILE" and "tuned@FILE". Raises
    ConfigError when the job left no model or its rows are not here.
    """
    record = client.get(job_id)
    if record.state != JobState.SUCCEEDED or not record.artifacts:
        raise ConfigError(f"{record.id} left no model to judge ({record.state})", f"launch show {record.id}")
    artifact = _artifact(client, record)
    here = client.here()
    here.prepare(progress)
    folder = client.home / "evaluations" / record.id / (data.stem if data else "held-out")
    with TemporaryDirectory(prefix="finelaunch-") as work:
        inputs, outputs = Path(work) / "input", Path(work) / "output"
        _lay_out(_bundle(client, record, data, max_rows, Path(work)), inputs)
        outputs.mkdir()
        env = {
            "LAUNCH_INPUT_DIR": str(inputs),
            "LAUNCH_OUTPUT_DIR": str(outputs),
            "LAUNCH_ARTIFACT_DIR": str(artifact),
            "LAUNCH_CACHE_DIR": str(cache()),
        }
        for line in here.run_here("train_entry.rejudge", inputs / "code", env, record.spec["secrets"]):
            event = from_line(line)
            said = as_words(event) if event else line
            if said:
                progress(said)
        metrics: dict[str, Any] = json.loads((outputs / "metrics.json").read_text(encoding="utf-8"))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(outputs / PREDICTIONS, folder / PREDICTIONS)
    for which in ("baseline", "tuned"):
        if data is not None and metrics[which] is not None:
            client.set_evaluation(record.id, f"{which}@{data.name}", metrics[which])
    return metrics, folder / PREDICTIONS


def _artifact(client: Client, record: JobRecord) -> Path:
    """The artifact folder on this machine; fetched first when the job ran elsewhere."""
    if record.folder is not None and (Path(record.folder) / "artifact").is_dir():
        return Path(record.folder) / "artifact"
    return client.fetch(record.id, client.home / "fetched" / record.id) / "artifact"


def _bundle(client: Client, record: JobRecord, data: Path | None, max_rows: int | None, work: Path) -> Bundle:
    """The job's own bundle, or one whose rows are those of `data`."""
    given = client.bundle(record, work / "given")
    if data is None and max_rows is None:
        return given
    staged = work / "staged"
    _lay_out(given, staged)
    raw = json.loads((staged / "job.json").read_text(encoding="utf-8"))
    if max_rows is not None:
        raw["eval"]["max_rows"] = max_rows
    if data is not None:
        if not data.is_file():
            raise ConfigError(f"--data: file not found: {data}", "name a file of rows like those of the job")
        if record.spec["task"] == "classification":
            tuned = record.evaluation.get("tuned") or {}
            known = tuned.get("confusion_matrix", {}).get("labels") or sorted(record.data.get("labels") or {})
            raw["eval"]["labels"] = raw["eval"]["labels"] or known or None
        raw["data"]["eval"] = str(data.absolute())
    return build_bundle(JobSpec.model_validate(raw), staged, work)


def _lay_out(bundle: Bundle, folder: Path) -> None:
    for file in bundle.files:
        assert file.source is not None  # Client.bundle brings them
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.source, target)
