"""Going on from the checkpoint of a job that has changed: its weights, optimizer and steps, the rest anew."""

from __future__ import annotations

from typing import Any

from train_entry.config import TrainJob
from train_entry.failure import JobError


def take_settings(scheduler: Any, job: TrainJob, step: int, total: int) -> None:
    """Put the job's own rate and decay in place of those that the checkpoint brought along.

    Raises JobError("config") when the job has no step left.
    """
    if step >= total:
        raise JobError(
            "config",
            f"the checkpoint was made after step {step}, and this job has {total} steps",
            "raise train.epochs or train.max_steps: the steps before the checkpoint count",
        )
    scheduler.base_lrs = [job.learning_rate] * len(scheduler.base_lrs)
    rates = [job.learning_rate * share(step) for share in scheduler.lr_lambdas]
    scheduler._last_lr = rates  # what the next step is reported with
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["initial_lr"], group["lr"] = job.learning_rate, rate
    # The Trainer's second group, of norms and biases, never decays.
    scheduler.optimizer.param_groups[0]["weight_decay"] = job.train.weight_decay
