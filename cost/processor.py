"""Training without a GPU: a nominal processor, and what a job that was measured on this machine makes of it.

How fast a processor trains depends on its kernels more than on anything that is known of it, so nothing is said
before something was measured. Then the same formulas as for GPUs count, with every speed divided by what the
measured job took longer than the nominal one.
"""

from __future__ import annotations

from dataclasses import replace

from cost.band import Refusal
from cost.calibration import Calibration
from cost.gpus import Gpu
from cost.packing import ways_of
from cost.phases import Hours, hours_of
from cost.recipe import Recipe, recipe_of
from cost.throughput import micro_batch_s
from cost.work import Work
from launcher.spec import JobSpec

PROCESSOR = Gpu(
    name="processor", generation="processor", memory_gib=0.0, tflops=0.1, hbm_gbs=20.0, sustained=1.0,
    link_gbs=1.0, fabric_gbs=1.0, measured=True,
)  # fmt: skip
"""100 GFLOP/s and 20 GB/s: round figures of the right size, for only ratios to them count."""
MICRO_BATCH = 8
"""Rows a pass on a processor when the job names none (train_entry/trainers.py, CPU_MICRO_BATCH)."""
OTHER_SHAPE = 0.20
"""By how much more another model or other rows may differ from the measured job than on a GPU, as a share."""


def processor_recipe(work: Work, speed: float = 1.0) -> Recipe | None:
    """What train_entry does with the job on a processor `speed` times as fast as the nominal one.

    None when it would refuse the job there.
    """
    gpu = replace(PROCESSOR, tflops=PROCESSOR.tflops * speed, hbm_gbs=PROCESSOR.hbm_gbs * speed)
    found = recipe_of(_as_trained(work.job), work.shape, gpu, work.rows)
    # Nothing is launched elsewhere.
    return found and replace(found, stack=replace(found.stack, kernel_s=0.0, micro_batch_s=0.0))


def _as_trained(job: JobSpec) -> JobSpec:
    """The job with train_entry's defaults for a processor: more rows a pass, no checkpoints of activations."""
    train = replace(
        job.train,
        micro_batch=job.train.micro_batch or min(MICRO_BATCH, job.train.batch_size),
        gradient_checkpointing=bool(job.train.gradient_checkpointing),
    )
    return job.model_copy(update={"train": train})


def nominal_step_s(recipe: Recipe) -> float | None:
    """Seconds of an optimizer step on the nominal processor; None where the model refuses."""
    passed = micro_batch_s(recipe)
    return None if isinstance(passed, Refusal) else passed.expected * recipe.accumulation


def processor_hours(work: Work, calibration: Calibration) -> Hours | Refusal:
    """The job's hours on the processor that the calibration was measured on.

    Example: measured jobs took 1.5 times the nominal time, 1.2 to 1.9: all speeds are divided by 1.5, and training
    may be 20 % less with another 20 % for other shapes, which makes 36 %, or 52 % more.
    """
    recipe = processor_recipe(work, 1 / calibration.factor)
    if recipe is None:
        return Refusal("the trainer would refuse this job on one processor")
    band = replace(
        calibration, factor=1.0, low=calibration.low / calibration.factor * (1 - OTHER_SHAPE),
        high=calibration.high / calibration.factor * (1 + OTHER_SHAPE),
    )  # fmt: skip
    return hours_of(replace(work, job=_as_trained(work.job)), ways_of(work, recipe), "local", False, band)
