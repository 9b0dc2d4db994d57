"""Runs in the environment of AWS's clients: four trainings by the real ModelTrainer, told as one JSON line."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import boto3
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.resources import TrainingJob
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import CheckpointConfig, Compute, InputData, SourceCode, StoppingCondition

ROLE, BUCKET, SOURCE = sys.argv[1:]
IMAGE = "1.dkr.ecr.us-east-1.amazonaws.com/aws-clients:1"


def trainer(name: str, *, spot: bool = False, **hyperparameters: object) -> ModelTrainer:
    """One that runs SOURCE/script.py."""
    return ModelTrainer(
        training_image=IMAGE,
        source_code=SourceCode(source_dir=SOURCE, entry_script="script.py"),
        compute=Compute(instance_type="ml.g5.xlarge", instance_count=1, enable_managed_spot_training=spot),
        stopping_condition=StoppingCondition(
            max_runtime_in_seconds=300, max_wait_time_in_seconds=300 if spot else None
        ),
        checkpoint_config=CheckpointConfig(s3_uri=f"s3://{BUCKET}/checkpoints/{name}") if spot else None,
        role=ROLE, base_job_name=name, hyperparameters=hyperparameters,
        sagemaker_session=Session(boto_session=boto3.Session(), default_bucket=BUCKET),
    )  # fmt: skip


def told(job: TrainingJob) -> dict[str, Any]:
    job.refresh()
    return {
        "name": job.training_job_name, "status": job.training_job_status, "reason": str(job.failure_reason),
        "states": [t.status for t in job.secondary_status_transitions],
    }  # fmt: skip


def main() -> None:
    rows = [InputData(channel_name="rows", data_source=f"s3://{BUCKET}/clients-rows")]
    good = trainer("good", lr=0.1)
    good.train(input_data_config=rows, wait=True, logs=True)
    others = {"bad": trainer("bad", exit=3), "spot": trainer("spot", spot=True, steps=20),
              "stopped": trainer("stopped", steps=2000)}  # fmt: skip
    for one in others.values():
        one.train(input_data_config=rows, wait=False)
    jobs = {"good": good._latest_training_job, **{k: v._latest_training_job for k, v in others.items()}}
    while told(jobs["stopped"])["states"][-1] != "Training":
        time.sleep(0.2)
    jobs["stopped"].stop()
    raised = {}
    for name, job in jobs.items():
        try:
            job.wait(poll=1)
        except Exception as exc:  # noqa: BLE001 - which one the SDK raises is what is told
            raised[name] = type(exc).__name__
    print("\n" + json.dumps({"jobs": {k: told(v) for k, v in jobs.items()}, "raised": raised}), flush=True)


if __name__ == "__main__":
    main()
