"""The template that `launch init` writes trains the real language model, a few steps of it."""

from __future__ import annotations

import json

import pytest


@pytest.mark.train
@pytest.mark.real_model
@pytest.mark.timeout(900)
def test_the_template_trains_the_embedded_model(launch, tmp_path, train_python):
    assert launch("init", cwd=tmp_path).returncode == 0
    done = launch(
        "run", "--json", "--set", "train.max_steps=3", "--set", "eval.max_rows=16", cwd=tmp_path, timeout=600
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    losses = [e["loss"] for e in events if e["event"] == "step"]
    assert len(losses) == 3
    job = events[-1]
    assert job["event"] == "job"
    assert job["state"] == "SUCCEEDED"
    assert job["evaluation"]["baseline"]["rows"] == 16
    assert sum(a["size"] for a in job["artifacts"]) > 10 * 2**20
