"""A probe runs on this machine, however many others the job asks for."""

from __future__ import annotations

from pathlib import Path

from launcher.client import Client
from launcher.probing import on_this_machine
from launcher.spec import JobSpec


def test_a_job_for_many_gpus_is_probed_on_one(home: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'
    )
    resources = {"gpu": "H100", "gpus": 8, "nodes": 2, "spot": True, "region": "us-east-1", "fallback": ["p5"]}
    job = JobSpec.model_validate(
        {"name": "demo", "model": "org/m", "task": "generation", "data": {"train": "rows.jsonl"},
         "resources": resources}
    )  # fmt: skip
    plan = Client(home).plan(on_this_machine(job), tmp_path, "local", dry_run=True).plan
    assert plan.offer.gpus <= 1 and plan.offer.nodes == 1
    assert plan.job.train.batch_size == job.train.batch_size
