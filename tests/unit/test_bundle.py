"""The bundle: content-addressed, complete, without credentials."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from backends.base import Bundle
from launcher.bundle import SECRETS, build_bundle, resolved_job
from launcher.errors import ConfigError
from launcher.spec import JobSpec
from train_entry.config import read_job

# Put together here, so that no scanner takes this file for a leak.
SAMPLES = {
    "an AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "a private key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "a Hugging Face token": "hf_" + "a1B2" * 9,
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "an OpenAI-style key": "sk-" + "proj-" + "a1B2" * 9 + "-",
    "a Google API key": "AIza" + "b" * 34 + "-",
    "a Slack token": "xoxb-" + "1" * 22,
}


def job(**changes: Any) -> JobSpec:
    base = {"name": "demo", "model": "org/model", "task": "generation", "data": {"train": "rows.jsonl"}}
    return JobSpec.model_validate({**base, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    here = tmp_path / "project"
    here.mkdir()
    (here / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return here


def paths(bundle: Bundle) -> list[str]:
    return [file.path for file in bundle.files]


def build(spec: JobSpec, folder: Path) -> Bundle:
    return build_bundle(spec, folder, folder.parent / "work")


def model_folder(at: Path, order: list[str]) -> Path:
    at.mkdir(parents=True)
    for name in order:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(f"content of {name}")
    return at


def test_it_holds_the_entrypoint_verbatim_the_job_and_the_data(folder: Path) -> None:
    bundle = build(job(), folder)
    assert {"job.json", "data/train.jsonl", "code/train_entry/__main__.py"} <= set(paths(bundle))
    code = Path(__file__).parents[2] / "train_entry"
    shipped = {p.removeprefix("code/train_entry/") for p in paths(bundle) if p.startswith("code/")}
    assert shipped == {p.name for p in code.iterdir() if p.suffix in (".py", ".txt")}
    for file in bundle.files:
        assert file.size == file.source.stat().st_size
    assert bundle.size == sum(file.size for file in bundle.files)


def test_equal_content_has_an_equal_sha256_whatever_the_time_order_and_place(tmp_path: Path) -> None:
    names = ["config.json", "a.safetensors", "deep/b.txt"]
    bundles = []
    for number, order in enumerate((names, names[::-1])):
        project = tmp_path / f"place{number}"
        model_folder(project / "base", order)
        (project / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        os.utime(project / "rows.jsonl", (number * 1e6, number * 1e6))
        bundles.append(build_bundle(job(model="./base"), project, tmp_path / f"work{number}"))
    assert bundles[0].sha256 == bundles[1].sha256
    assert paths(bundles[0]) == paths(bundles[1]) == sorted(paths(bundles[0]))


@pytest.mark.parametrize("changed", ["data", "job", "name"])
def test_any_change_changes_the_sha256(changed: str, folder: Path) -> None:
    before = build(job(), folder).sha256
    spec = job()
    if changed == "data":
        (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "c"}\n')
    elif changed == "job":
        spec = job(train={"epochs": 2})
    else:
        spec = job(name="other")
    assert build(spec, folder).sha256 != before


def test_the_training_process_reads_the_job_that_was_bundled(folder: Path) -> None:
    spec = job(train={"epochs": 2}, resources={"max_hours": 3}, tuning={"targets": ["q_proj"]})
    bundle = build(spec, folder)
    read = read_job(next(f.source for f in bundle.files if f.path == "job.json"))
    assert (read.name, read.train, read.tuning, read.max_hours) == ("demo", spec.train, spec.tuning, 3.0)
    assert read.data == dataclasses.replace(spec.data, train="data/train.jsonl")


def test_files_of_the_user_get_paths_inside(folder: Path) -> None:
    for name in ("held.csv", "template.jinja", "score.py"):
        (folder / name).write_text("x")
    spec = job(
        data={"train": "rows.jsonl", "eval": "held.csv"}, eval={"scorer": "score.py"},
        model={"id": "org/model", "chat_template": "template.jinja"},
    )  # fmt: skip
    inside = {"data/eval.csv", "files/scorer.py", "files/chat_template.jinja"}
    assert inside <= set(paths(build(spec, folder)))
    resolved = resolved_job(spec, folder)
    named = {resolved["data"]["eval"], resolved["eval"]["scorer"], resolved["model"]["chat_template"]}
    assert named == inside


def test_uris_stay_where_they_are(folder: Path) -> None:
    spec = job(data={"train": "s3://bucket/rows.jsonl"}, model="s3://bucket/model")
    assert resolved_job(spec, folder)["data"]["train"] == "s3://bucket/rows.jsonl"
    assert not [p for p in paths(build(spec, folder)) if p.startswith(("data/", "model/"))]


def test_a_model_folder_goes_along_without_hidden_files(folder: Path) -> None:
    model_folder(folder / "base", ["config.json", "deep/weights.bin", ".cache/secret", ".hidden"])
    spec = job(model="base")
    assert [p for p in paths(build(spec, folder)) if p.startswith("model/")] == [
        "model/config.json", "model/deep/weights.bin",
    ]  # fmt: skip
    assert resolved_job(spec, folder)["model"]["id"] == "model"


def test_a_folder_without_a_config_is_no_model(folder: Path) -> None:
    (folder / "base").mkdir()
    with pytest.raises(ConfigError, match=r"base has no config\.json"):
        build(job(model="base"), folder)


@pytest.mark.parametrize("name", ["./gone", "../gone", "/gone/model"])
def test_a_model_folder_that_is_not_there_is_named_before_anything_starts(name: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.id: folder not found: .*gone"):
        build(job(model=name), folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": {"train": "gone.jsonl"}}, "data.train"),
        ({"data": {"train": "rows.jsonl", "eval": "gone.csv"}}, "data.eval"),
        ({"eval": {"scorer": "gone.py"}}, "eval.scorer"),
        ({"model": {"id": "org/m", "chat_template": "gone.jinja"}}, "model.chat_template"),
    ],
)
def test_a_missing_file_is_named_with_its_field(changes: dict[str, Any], field: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: file not found: .*gone") as refusal:
        build(job(**changes), folder)
    assert refusal.value.hint


# Credentials


def test_every_pattern_has_a_sample() -> None:
    assert SAMPLES.keys() == SECRETS.keys()


@pytest.mark.parametrize("what", SAMPLES)
def test_a_credential_in_the_data_is_refused_by_file_and_line(what: str, folder: Path) -> None:
    row = json.dumps({"prompt": f"my key is {SAMPLES[what]}", "completion": "b"})
    with (folder / "rows.jsonl").open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(ConfigError, match="credential") as refusal:
        build(job(), folder)
    assert refusal.value.problems == (f"rows.jsonl:2: looks like {what}",)
    assert SAMPLES[what] not in f"{refusal.value.message} {refusal.value.problems} {refusal.value.hint}"
    build(job(data={"train": "rows.jsonl", "allow_secrets": True}), folder)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"env": {"TOKEN": "{}"}}, "env.TOKEN"),
        ({"tags": {"owner": "{}"}}, "tags.owner"),
        ({"data": {"train": "rows.jsonl", "system": "use {}", "allow_secrets": True}}, "data.system"),
        ({"backend_options": {"local": {"list": ["a", "{}"]}}}, "backend_options.local.list[1]"),
    ],
)
def test_a_credential_anywhere_in_the_job_file_is_refused(
    changes: dict[str, Any], where: str, folder: Path
) -> None:
    filled = json.loads(json.dumps(changes).replace("{}", SAMPLES["a GitHub token"]))
    with pytest.raises(ConfigError) as refusal:
        build(job(**filled), folder)
    assert refusal.value.problems == (f"{where}: looks like a GitHub token",)


def test_a_credential_in_the_users_code_is_refused_even_with_allow_secrets(folder: Path) -> None:
    (folder / "score.py").write_text(f"KEY = '{SAMPLES['an AWS access key']}'\n")
    spec = job(data={"train": "rows.jsonl", "allow_secrets": True}, eval={"scorer": "score.py"})
    with pytest.raises(ConfigError) as refusal:
        build(spec, folder)
    assert refusal.value.problems == ("score.py:1: looks like an AWS access key",)


def test_many_hits_are_counted_not_listed(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(f"{SAMPLES['an AWS access key']}\n" * 30)
    with pytest.raises(ConfigError) as refusal:
        build(job(), folder)
    assert refusal.value.problems[-1] == "... and 20 more"


@pytest.mark.parametrize("text", ["task-" + "a" * 40, "sk-short", "AKIA and more", "my hf_home", "xoxb-1"])
def test_ordinary_text_is_no_credential(text: str, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": text, "completion": "b"}))
    build(job(), folder)
