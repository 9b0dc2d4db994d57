"""What a user types and sees before anything trains: the real command line.

`launch` is it as a process; `typed` calls the same main() here, where only words and exit codes count.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import TABLE

ESCAPE = "\x1b["


def test_help_lists_every_verb(launch):
    shown = launch("--help").stdout
    for verb in TABLE:
        assert re.search(rf"^  {verb} ", shown, re.MULTILINE), verb


@pytest.mark.parametrize("verb", TABLE)
def test_every_verb_explains_itself(typed, verb):
    done = typed(verb, "--help")
    assert done.returncode == 0
    assert f"launch {verb}" in done.stdout
    assert "--debug" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_mistyped_verb_is_corrected_and_starts_nothing(typed, home):
    done = typed("statsu")
    assert done.returncode == 2
    assert "did you mean launch status?" in done.stderr
    assert not home.exists() or not any(home.iterdir())


def test_a_missing_job_file_is_an_error_that_names_init(typed, tmp_path):
    for arguments in (["job.yaml"], ["run"], ["plan", "other.yaml"]):
        done = typed(*arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert "launch init" in done.stderr


def test_the_default_verb_is_run(typed, tmp_path):
    typed("init", cwd=tmp_path)
    for arguments in (["--backend", "nowhere"], ["launch.yaml", "--backend", "nowhere"], ["run", "-b", "nowhere"]):
        done = typed(*arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "there is no backend 'nowhere'" in done.stderr


def test_an_unknown_backend_gets_a_suggestion(typed, tmp_path):
    typed("init", cwd=tmp_path)
    done = typed("plan", "--backend", "locl", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean local?" in done.stderr


@pytest.mark.parametrize("arguments", [("--debug", "show", "nothing"), ("show", "nothing", "--debug")])
def test_debug_shows_the_traceback_on_either_side(typed, arguments):
    done = typed(*arguments)
    assert done.returncode == 8
    assert "Traceback" in done.stderr
    assert "Traceback" not in typed("show", "nothing").stderr


def test_init_writes_a_job_that_plans_as_it_is_and_overwrites_nothing(typed, tmp_path):
    assert typed("init", "mine", cwd=tmp_path).returncode == 0
    folder = tmp_path / "mine"
    assert {"launch.yaml", "train.jsonl", "eval.jsonl"} <= {p.name for p in folder.iterdir()}
    before = (folder / "launch.yaml").read_bytes()
    again = typed("init", "mine", cwd=tmp_path)
    assert again.returncode == 2
    assert "nothing was written" in again.stderr
    assert (folder / "launch.yaml").read_bytes() == before
    planned = typed("plan", "mine/launch.yaml", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "the job is good" in planned.stdout


def test_init_names_the_templates_when_one_is_unknown(typed, tmp_path):
    done = typed("init", "--template", "suport_triage", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean support_triage?" in done.stderr
    assert not any(p.name != "home" for p in tmp_path.iterdir())


def test_plan_json_is_one_document_with_stable_names(typed, tmp_path):
    typed("init", cwd=tmp_path)
    done = typed("plan", "--json", "--set", "train.epochs=2", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found.keys() == {
        "backend", "hardware", "estimate", "bundle", "data", "checked", "unset", "request", "job",
    }  # fmt: skip
    assert found["checked"] is True
    assert found["unset"] == []
    assert found["backend"] == "local"
    assert found["job"]["train"]["epochs"] == 2
    assert found["estimate"]["expected"] == "0"
    assert {"job.json", "data/train.jsonl", "code/train_entry/__main__.py"} <= {
        f["path"] for f in found["bundle"]["files"]
    }


def test_every_problem_of_a_job_file_is_told_with_its_line(typed, tmp_path):
    (tmp_path / "launch.yaml").write_text(
        "name: Bad Name\nmodel: some/model\ntask: classfication\ndata:\n  train: train.jsonl\n"
        "train:\n  epohcs: 3\n"
    )
    done = typed("plan", cwd=tmp_path)
    assert done.returncode == 2
    assert "launch.yaml:1" in done.stderr
    assert "launch.yaml:3" in done.stderr
    assert "launch.yaml:7" in done.stderr
    assert "epochs?" in done.stderr
    assert "classification" in done.stderr


def test_a_bad_row_stops_the_job_before_it_starts(typed, tmp_path):
    typed("init", cwd=tmp_path)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"instruction": "x", "response": ""}\nnot json\n')
    done = typed("run", "--yes", cwd=tmp_path)
    assert done.returncode == 2
    assert "response is empty" in done.stderr
    assert "not JSON" in done.stderr
    assert json.loads(typed("list", "--json").stdout) == []


def test_a_credential_in_a_file_is_refused(typed, tmp_path):
    typed("init", cwd=tmp_path)
    (tmp_path / "scorer.py").write_text("KEY = '" + "AKIA" + "ABCDEFGHIJKLMNOP" + "'\n")
    done = typed("plan", "--set", "eval.scorer=scorer.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "scorer.py:1: looks like an AWS access key" in done.stderr


def test_listings_without_jobs(typed):
    assert json.loads(typed("list", "--json").stdout) == []
    assert "launch init" in typed("list").stderr
    for verb in ("status", "show", "logs", "watch", "fetch", "eval"):
        done = typed(verb)
        assert done.returncode == 8, verb
        assert "no jobs yet" in done.stderr


def test_an_unknown_job_has_its_own_exit_code(typed):
    for verb in ("status", "show", "logs", "watch", "cancel", "resume", "fetch", "eval"):
        done = typed(verb, "no-such-job")
        assert done.returncode == 8, verb
        assert "no-such-job" in done.stderr


def test_the_schema_is_json_and_knows_the_fields(typed):
    schema = json.loads(typed("schema").stdout)
    assert {"name", "model", "data", "tuning", "train", "resources"} <= schema["properties"].keys()


def test_the_page_of_json_has_every_name_that_is_printed(typed):
    page = (Path(__file__).parents[2] / "docs/json.md").read_text(encoding="utf-8")
    typed("init")
    documents = [json.loads(typed(*verb, "--json").stdout) for verb in (
        ("plan",), ("backends",), ("doctor",), ("setup", "vertex", "--list"), ("orphans",), ("list",)
    )]  # fmt: skip
    found = {name for document in documents for one in _dicts(document) for name in one}
    assert {"signed_in", "required", "unset"} <= found
    assert [name for name in found if not re.search(rf"\b{name}\b", page)] == []


def _dicts(document):
    return [document] if isinstance(document, dict) else document


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(typed, shell):
    done = typed("completion", shell)
    assert done.returncode == 0
    assert "_LAUNCH_COMPLETE" in done.stdout


def test_completion_answers_with_verbs(launch):
    done = launch(env={"_LAUNCH_COMPLETE": "bash_complete", "COMP_WORDS": "launch st", "COMP_CWORD": "1"})
    assert "plain,status" in done.stdout


def test_doctor_and_backends_name_each_problem_with_its_fix(typed):
    found = json.loads(typed("backends", "--json").stdout)
    assert found[0]["name"] == "local"
    assert all(p["fix"] for b in found for p in b["problems"])
    doctor = json.loads(typed("doctor", "--json").stdout)
    assert {"finelaunch", "python", "record", "cache", "problems"} <= doctor.keys()


def test_pipes_get_plain_text_of_80_columns(launch, typed, tmp_path):
    typed("init", cwd=tmp_path)
    said = [launch("plan", cwd=tmp_path), *(typed(verb, cwd=tmp_path) for verb in ("list", "backends", "doctor"))]
    for done in [*said, typed("--help")]:
        assert ESCAPE not in done.stdout + done.stderr, done.args
        assert max(map(len, done.stdout.splitlines()), default=0) <= 80, done.args


def test_a_reader_that_stops_early_gets_no_traceback(home):
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher.cli", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "LAUNCH_HOME": str(home)},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)
    assert b"Traceback" not in stderr
    assert b"BrokenPipe" not in stderr
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_without_colour_gets_errors_without_colour(home):
    for no_color, coloured in (("", True), ("1", False)):
        outer, inner = os.openpty()
        subprocess.run(
            [sys.executable, "-m", "launcher.cli", "show", "nope"], stderr=inner, check=False,
            env={**os.environ, "LAUNCH_HOME": str(home), "NO_COLOR": no_color},
        )  # fmt: skip
        os.close(inner)
        said = os.read(outer, 10_000).decode()
        os.close(outer)
        assert "no job 'nope'" in said
        assert (ESCAPE in said) is coloured


def test_a_folder_in_the_place_of_a_verb_is_answered_with_its_job_file(typed, tmp_path):
    typed("init", "mine")
    done = typed("mine")
    assert done.returncode == 2
    assert str(Path("mine") / "launch.yaml") in done.stderr


def test_what_plan_says_to_type_next_is_about_the_same_job(typed):
    typed("init", "mine")
    path = Path("mine") / "launch.yaml"
    given = ("--backend", "local", "--set", "train.max_steps=5", "--budget", "25")
    for more in ((), given):
        said = typed("plan", str(path), *more).stdout
        command = " ".join([str(path), *more])
        assert f"launch run {command} starts it" in said
        assert f"launch plan {command} --json" in said


def test_every_template_names_the_schema_to_editors(typed, tmp_path):
    for template in ("support_triage", "blank"):
        typed("init", template, "--template", template)
        first = (tmp_path / template / "launch.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema=")


def test_the_readme_lists_every_verb():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert [verb for verb in TABLE if f"| `launch {verb}" not in readme] == []


def test_help_lines_of_the_table_are_what_the_commands_are():
    import importlib

    for verb in TABLE:
        command = importlib.import_module(f"launcher.commands.{verb}").command
        assert command.name == verb
        assert command.help


def test_the_facts_of_a_backend_are_listed_for_scripts_too(typed):
    done = typed("setup", "vertex", "--list", "--json")
    assert done.returncode == 0, done.stderr
    facts = {fact["name"]: fact for fact in json.loads(done.stdout)}
    assert facts["project"]["required"] and facts["bucket"]["example"]
