"""A probe: a few real steps of the job on this machine, whose record calibrates the estimates that follow."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from backends.base import Progress
from launcher.client import Client
from launcher.errors import JobFailedError
from launcher.events import Event
from launcher.spec import JobSpec


def on_this_machine(job: JobSpec) -> JobSpec:
    """The job on one node with one GPU, or the processor, whatever it asks for elsewhere."""
    one = {"gpu": None, "gpus": 1, "nodes": 1, "spot": False, "region": None, "fallback": ()}
    return job.model_copy(update={"resources": job.resources.model_copy(update=one)})


def probe(client: Client, job: JobSpec, folder: Path, progress: Progress) -> str:
    """Run the job's first steps here; what was measured, in words. Raises JobFailedError when they fail.

    The steps are recorded like any dry run: that record is the calibration.
    """
    planned = client.plan(on_this_machine(job), folder, "local", dry_run=True, progress=progress)
    progress(f"probing: {planned.plan.job.train.dry_run_steps} real steps on {planned.plan.offer.instance_type}")
    record = client.submit(planned, progress)
    steps = []
    for item in client.follow(record.id):
        if isinstance(item, Event) and item.name == "step":
            steps.append(item.fields)
            progress(f"step {item.fields['step']}: {item.fields['step_s']:.2f} s")
    record = client.get(record.id)
    if record.state != "SUCCEEDED":
        raise JobFailedError(f"the probe {record.id} failed: {record.reason}", f"launch logs {record.id}")
    usual = steps[1:] or steps  # kernels are chosen and memory is fetched in the first
    step_s = fmean(float(one["step_s"]) for one in usual)
    tokens_per_s = fmean(float(one["tokens_per_s"]) for one in usual)
    return (
        f"probed on {planned.plan.offer.instance_type}: {step_s:.2f} s a step, {tokens_per_s:,.0f} tokens/s, "
        f"{record.actual.get('peak_gib') or 0:.1f} GiB at most"
    )
