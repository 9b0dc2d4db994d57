"""A processor's time is unknown until something was measured on it; then jobs are known beforehand."""

from __future__ import annotations

import json

import pytest

from tests.e2e.jobs import write_job

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]


def local_row(launch, folder, *options: str) -> dict:
    done = launch("cost", "launch.yaml", "--backend", "local", "--json", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return next(row for row in json.loads(done.stdout)["offers"] if row["backend"] == "local")


def test_a_probe_makes_this_machines_time_known_and_the_ledger_compares_it(launch, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model)
    before = local_row(launch, folder)
    assert before["gpu"] is None, "this test is about a machine without a GPU"
    assert before["hours"] is None

    probed = launch("cost", "launch.yaml", "--backend", "local", "--probe", cwd=folder)
    assert probed.returncode == 0, probed.stderr
    assert "probed on CPU" in probed.stderr and "tokens/s" in probed.stderr

    hours = local_row(launch, folder)["hours"]
    assert 0 < hours["low"] < hours["expected"] < hours["high"]

    done = launch("run", "launch.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    ledger = json.loads(launch("cost", "accuracy", "--json").stdout)
    probe, job = ledger["jobs"]
    assert probe["hours"] is None, "nothing was promised of a probe"
    assert job["hours"]["expected"] is not None and job["hours"]["actual"] > 0
    assert 0.1 < job["step_s"]["ratio"] / probe["step_s"]["ratio"] < 10
    [known] = ledger["calibrations"]
    assert (known["gpu"], known["method"], known["n"]) == ("processor", "lora", 2)
    assert known["source"] == "1 earlier job and 1 probe of yours"


def test_a_probe_that_fails_says_which_job_has_the_log(launch, tmp_path, tiny_model):
    folder = tmp_path / "work"
    write_job(folder, tiny_model)
    done = launch("cost", "launch.yaml", "--probe", "--set", "tuning.targets=nothing_like_it", cwd=folder)
    assert done.returncode == 1
    assert "launch logs tiny-" in done.stderr
