"""launcher.load: a job file and its overrides become a JobSpec, or every problem in the user's words."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.errors import ConfigError
from launcher.load import MAX_BYTES, MAX_PROBLEMS, json_schema, load_job, parse_set
from launcher.problems import ELSEWHERE, Fields
from launcher.spec import JobSpec

JOB = "name: triage\nmodel: org/base\ntask: classification\ndata:\n  train: rows.jsonl\n"
JARGON = (
    "Input should",
    "Extra inputs",
    "a valid ",
    "dictionary",
    "tuple",
    "pydantic",
    "type=",
    "NoneType",
    "dataclass",
)

Load = Callable[..., JobSpec]
Refuse = Callable[..., ConfigError]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a text as launch.yaml of the current folder."""
    monkeypatch.chdir(tmp_path)

    def call(content: str | bytes, *sets: str, name: str = "launch.yaml") -> JobSpec:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_job(Path(name), sets)

    return call


@pytest.fixture
def refuse(load: Load) -> Refuse:
    """The error of a job that must be refused."""

    def call(content: str | bytes, *sets: str, name: str = "launch.yaml") -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            load(content, *sets, name=name)
        return caught.value

    return call


def all_text(error: ConfigError) -> str:
    return "\n".join((error.message, error.hint or "", *error.problems))


class TestReading:
    def test_a_small_file_gets_every_default(self, load: Load) -> None:
        job = load(JOB)
        assert (job.name, job.model.id, job.task, job.data.train) == (
            "triage", "org/base", "classification", "rows.jsonl",
        )  # fmt: skip
        assert (job.tuning.kind, job.train.epochs, job.backend, job.budget) == ("lora", 3.0, "local", None)

    @pytest.mark.parametrize(
        "written", ["2e-4", "2E-4", "0.0002", ".0002", '"2e-4"', "2.0e-04"], ids=lambda text: text.replace("/", "")
    )
    def test_numbers_as_people_write_them(self, load: Load, written: str) -> None:
        assert load(JOB + f"train: {{learning_rate: {written}}}\n").train.learning_rate == 2e-4

    def test_a_number_field_takes_decimal_even_with_a_leading_zero(self, load: Load) -> None:
        assert load(JOB + "train: {max_steps: 010}\n").train.max_steps == 10

    def test_money_keeps_its_cents(self, load: Load) -> None:
        assert load(JOB + "budget: 20.10\n").budget == Decimal("20.10")

    def test_words_and_numbers_stay_as_written_where_text_is_wanted(self, load: Load) -> None:
        words = [
            "yes",
            "no",
            "on",
            "off",
            "y",
            "true",
            "010",
            "1.10",
            "1_000",
            "12:30:00",
            "2024-05-01",
            "1e5",
            "0x1F",
        ]
        job = load(JOB + f"eval: {{labels: [{', '.join(words)}]}}\n")
        assert job.eval.labels == tuple(words)

    def test_text_fields_keep_zeros_and_exponents(self, load: Load) -> None:
        job = load(JOB + "env: {PORT: 0080, RATE: 1.50}\ntags: {yes: no}\n", "model.revision=12e45")
        assert (job.env, job.tags, job.model.revision) == (
            {"PORT": "0080", "RATE": "1.50"}, {"yes": "no"}, "12e45",
        )  # fmt: skip

    @pytest.mark.parametrize(("word", "value"), [("true", True), ("yes", True), ("on", True), ("off", False)])
    def test_a_switch_takes_the_usual_words(self, load: Load, word: str, value: bool) -> None:
        assert load(JOB + f"resources: {{spot: {word}}}\n").resources.spot is value

    def test_null_turns_a_nullable_field_off_and_quotes_make_it_a_word(self, load: Load) -> None:
        job = load(JOB + "train: {early_stopping: ~}\neval: {labels: ['null', \"~\", x]}\n")
        assert job.train.early_stopping is None
        assert job.eval.labels == ("null", "~", "x")

    def test_backend_options_get_their_types(self, load: Load) -> None:
        text = "{a: 010, b: 0x1f, c: 1e3, d: true, e: no, f: 12:30, g: ~, h: [1, '1'], i: .5}"
        options = {
            "a": 10,
            "b": 31,
            "c": 1000.0,
            "d": True,
            "e": "no",
            "f": "12:30",
            "g": None,
            "h": [1, "1"],
            "i": 0.5,
        }
        got = load(JOB + f"backend_options: {{local: {text}}}\n").backend_options["local"]
        assert got == options
        assert [type(value) for value in got.values()] == [type(value) for value in options.values()]

    def test_a_backend_option_that_json_cannot_hold_is_refused(self, refuse: Refuse) -> None:
        error = refuse(JOB + "backend_options:\n  local:\n    x: .inf\n")
        assert error.problems[0].startswith(
            "launch.yaml:8: backend_options.local.x: is not a number that can be sent"
        )

    def test_shorthands(self, load: Load) -> None:
        job = load(JOB + "tuning: qlora\n")
        assert (job.model.id, job.tuning.kind) == ("org/base", "qlora")

    def test_anchors_and_merge_keys(self, load: Load) -> None:
        job = load(JOB + "env: &base {A: one, B: two}\ntags:\n  <<: *base\n  B: mine\n")
        assert job.tags == {"A": "one", "B": "mine"}

    def test_the_first_of_several_merged_mappings_wins(self, load: Load) -> None:
        text = "env: &a {K: first}\nbackend_options:\n  x: &b {K: second, L: third}\ntags:\n  <<: [*a, *b]\n"
        assert load(JOB + text).tags == {"K": "first", "L": "third"}

    def test_json(self, load: Load) -> None:
        job = load(JOB)
        for indent in (None, 2, "\t"):
            text = json.dumps(job.model_dump(mode="json"), indent=indent)
            assert load(text, name="job.json") == job
            assert load(b"\xef\xbb\xbf" + text.encode(), name="job.json") == job

    def test_json_escapes_beyond_the_basic_plane(self, load: Load) -> None:
        data = {"train": "r", "system": "a \U0001f600 b / ü"}
        text = json.dumps({"name": "a", "model": "m", "task": "generation", "data": data})
        assert "\\ud83d" in text
        assert load(text, name="a.json").data.system == "a \U0001f600 b / ü"

    def test_windows_line_ends_byte_order_mark_and_backslashes(self, load: Load, refuse: Refuse) -> None:
        text = JOB.replace("rows.jsonl", r"C:\data\new\rows.jsonl").replace("\n", "\r\n")
        assert load(b"\xef\xbb\xbf" + text.encode()).data.train == r"C:\data\new\rows.jsonl"
        assert refuse(text + "foo: 1\r\n").problems == ("launch.yaml:6: foo: unknown field",)

    def test_old_mac_line_ends_count_as_lines(self, load: Load, refuse: Refuse) -> None:
        text = JOB.replace("\n", "\r")
        assert load(text).name == "triage"
        assert refuse(text + "a: 1\r\tb: 2\r").problems[0].startswith("launch.yaml:7: ")

    def test_what_it_loads_can_be_dumped_and_loaded_again(self, load: Load) -> None:
        job = load(
            JOB + "tuning: {kind: qlora, targets: [q, v]}\nbudget: 1.50\ntags: {a: 'no'}\nsecrets: [TOKEN]\n"
        )
        assert load(yaml.safe_dump(job.model_dump(mode="json"))) == job


class TestProblems:
    def test_all_are_told_at_once_in_the_order_of_the_file(self, refuse: Refuse) -> None:
        text = "nmae: x\nmodel: m\ntask: clasification\ndata: {train: r}\n"
        error = refuse(text + "train:\n  epohcs: 3\n  batch_size: 0\n  seed: x\n")
        assert error.message == "launch.yaml has 6 problems"
        assert (
            error.problems[0]
            == "launch.yaml: name: is missing (lower-case letters, digits and dashes, at most 40)"
        )
        assert [problem.split(": ")[1] for problem in error.problems] == [
            "name", "nmae", "task", "train.epohcs", "train.batch_size", "train.seed",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("epochs: 3", "6: epochs: unknown field; did you mean train.epochs?"),
            ("batch-size: 3", "6: batch-size: unknown field; did you mean train.batch_size or eval.batch_size?"),
            ("num_train_epochs: 3", "6: num_train_epochs: unknown field; did you mean train.epochs?"),
            ("Tuning: lora", "6: Tuning: unknown field; did you mean tuning?"),
            ("train: {max_hours: 3}", "6: train.max_hours: unknown field; did you mean resources.max_hours?"),
            ("train.epochs: 3",
             "6: train.epochs: unknown field; did you mean epochs on a line of its own below train:?"),
            ("zzz: 3", "6: zzz: unknown field"),
            ("train:\n  epochs: soon", "7: train.epochs: expected a number, got soon"),
            ("train: {epochs: true}", "6: train.epochs: expected a number, got true"),
            ("train: {epochs: -1}", "6: train.epochs: must be above 0, got -1"),
            ("train: {epochs: inf}", "6: train.epochs: must be a finite number, got inf"),
            ("train: {epochs: .nan}", "6: train.epochs: expected a number, got .nan"),
            ("train: {max_steps: 1.5}", "6: train.max_steps: expected a whole number or null, got 1.5"),
            ("train: {seed: 4294967296}", "6: train.seed: must be at most 4294967295, got 4294967296"),
            ("train: {early_stopping: false}",
             "6: train.early_stopping: expected a mapping (patience, min_delta) or null, got false"),
            ("train:\n  # epochs: 3",
             "6: train: expected a mapping (epochs, max_steps, learning_rate, ...), got nothing"),
            ("tuning: {r: 2000}", "6: tuning.r: must be at most 1024, got 2000"),
            ("tuning: loar", "6: tuning.kind: must be one of lora, qlora, full, got loar; did you mean lora?"),
            ("tuning: [lora]",
             "6: tuning: expected one of lora, qlora, full or a mapping (kind, r, alpha, ...), got a list"),
            ("tuning: {targets: 1}\neval: {labels: pos}",
             "7: eval.labels: expected a list of texts or null, got pos; write [pos]"),
            ("tuning:\n  targets:\n  - q\n  - [k]", "9: tuning.targets[1]: expected text, got a list"),
            ("eval:\n  labels: [a, null]",
             '7: eval.labels[1]: expected text, got nothing; the word itself is written "null"'),
            ("method: dpo", "6: method: must be sft, got dpo"),
            ("resources: {spot: maybe}", "6: resources.spot: expected true or false, got maybe"),
            ("budget: $20", "6: budget: expected a number or null, got $20"),
            ("budget: 0", "6: budget: must be above 0, got 0"),
            ("tags: [a]", "6: tags: expected a mapping, got a list"),
            ("tags: {a: {b: c}}", "6: tags.a: expected text, got a mapping"),
            ("output: {merged: x}", "6: output.merged: expected true or false, got x"),
            ("backend_options: {local: 3}", "6: backend_options.local: expected a mapping, got 3"),
            ("tuning: {kind: full, dora: true}",
             "6: tuning.dora: needs an adapter: tuning.kind lora or qlora, not full"),
            ("train:\n  batch_size: 2\n  micro_batch: 4", "8: train.micro_batch: is above train.batch_size"),
            ("env: {A: x}\nsecrets: [A]", "6: env.A: also stands in secrets"),
        ],
    )  # fmt: skip
    def test_each_says_where_what_and_what_was_meant(self, refuse: Refuse, line: str, said: str) -> None:
        assert refuse(JOB + line + "\n").problems == (f"launch.yaml:{said}",)

    def test_missing_fields_are_told_at_the_section_with_what_they_are(self, refuse: Refuse) -> None:
        error = refuse("name: a\nmodel: {}\ntask: generation\ndata:\n  eval: x\n")
        assert error.problems == (
            "launch.yaml:2: model.id: is missing (hub id, local folder, s3:// gs:// or azure URI of a Hugging Face"
            " folder, or embedded:NAME)",
            "launch.yaml:4: data.train: is missing (JSONL, JSON, CSV or Parquet file, or its URI)",
        )

    def test_impossible_combinations_are_told_together(self, refuse: Refuse) -> None:
        text = "tuning: {kind: full, dora: true}\ntrain: {batch_size: 2, micro_batch: 3}\n"
        assert len(refuse(JOB + text).problems) == 2

    def test_a_key_that_stands_twice_names_both_lines(self, refuse: Refuse) -> None:
        error = refuse(JOB + "train:\n  epochs: 1\n  seed: 3\n  epochs: 2\nfoo: 1\n")
        assert error.problems == (
            "launch.yaml:9: train.epochs: stands twice, on lines 7 and 9",
            "launch.yaml:10: foo: unknown field",
        )

    def test_values_of_env_and_secrets_are_never_repeated(self, refuse: Refuse) -> None:
        value = "hun" + "ter2"
        file = f"env: {{1A: {value}, B: [{value}]}}\nsecrets: ['{value} x']\n"
        error = refuse(JOB + file, f"env.TOKEN=[{value}]", f"secrets={value}", f"env={{B: [{value}]}}")
        assert len(error.problems) >= 2
        assert value not in all_text(error)
        error = refuse(JOB + file)
        assert len(error.problems) == 3
        assert value not in all_text(error)

    def test_libraries_do_not_speak_to_the_user(self, refuse: Refuse) -> None:
        wrong: dict[str, Any] = {}
        for path in Fields(json_schema()).paths:
            at = wrong
            *above, name = path.split(".")
            for part in above:
                at = at[part] if isinstance(at.get(part), dict) else at.setdefault(part, {})
            at[name] = {} if any(other.startswith(path + ".") for other in Fields(json_schema()).paths) else [[{}]]
        error = refuse(json.dumps(wrong))
        assert len(error.problems) > 40
        assert not [word for word in JARGON if word in all_text(error)]

    def test_many_problems_are_cut_short(self, refuse: Refuse) -> None:
        error = refuse(JOB + "".join(f"unknown{i}: 1\n" for i in range(5000)))
        assert error.message == f"launch.yaml has over {MAX_PROBLEMS} problems; the first ones"
        assert len(error.problems) == MAX_PROBLEMS

    def test_names_from_other_tools_lead_to_fields_that_are_there(self) -> None:
        paths = Fields(json_schema()).paths
        assert set(ELSEWHERE.values()) <= set(paths)
        assert not set(ELSEWHERE) & {path.rsplit(".", 1)[-1] for path in paths}


class TestOverrides:
    def test_they_win_over_the_file_and_the_last_wins_over_the_first(self, load: Load) -> None:
        job = load(JOB + "train: {epochs: 9, seed: 1}\n", "train.epochs=5", "train.epochs=6")
        assert (job.train.epochs, job.train.seed) == (6.0, 1)

    def test_they_make_the_sections_on_the_way(self, load: Load) -> None:
        job = load(JOB, "train.early_stopping.patience=7", "tags.team=nlp", "backend_options.local.processes=2")
        assert job.train.early_stopping is not None
        assert job.train.early_stopping.patience == 7
        assert job.tags == {"team": "nlp"}
        assert job.backend_options == {"local": {"processes": 2}}

    def test_they_reach_into_shorthands(self, load: Load) -> None:
        job = load(JOB + "tuning: qlora\n", "tuning.r=8", "model.revision=main")
        assert (job.tuning.kind, job.tuning.r, job.model.id, job.model.revision) == (
            "qlora",
            8,
            "org/base",
            "main",
        )

    def test_a_problem_is_told_where_the_value_in_force_was_written(self, refuse: Refuse) -> None:
        error = refuse(JOB + "train:\n  epochs: a\n  seed: b\n", "train={seed: c}")
        assert error.problems == ("--set train={seed: c}: train.seed: expected a whole number, got c",)

    def test_a_shorthand_replaces_the_section(self, load: Load) -> None:
        job = load(JOB.replace("org/base", "{id: a, revision: b}"), "model=embedded:smollm2-135m", "tuning=full")
        assert (job.model.id, job.model.revision, job.tuning.kind) == ("embedded:smollm2-135m", None, "full")

    @pytest.mark.parametrize(
        "text", ["train.early_stopping=null", "train.early_stopping=", "train.early_stopping=~"]
    )
    def test_null(self, load: Load, text: str) -> None:
        assert load(JOB, text).train.early_stopping is None

    def test_they_can_supply_what_the_file_lacks(self, load: Load) -> None:
        assert load("task: generation\n", "name=a", "model=m", "data.train=r.csv").data.train == "r.csv"

    def test_they_mend_a_wrong_section_of_the_file(self, load: Load) -> None:
        assert load(JOB + "train: 5\n", "train.epochs=2").train.epochs == 2.0

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("train.epochs=5", (("train", "epochs"), "5")),
            ("resources.fallback=[a,b]", (("resources", "fallback"), ["a", "b"])),
            ("tags.team=nlp", (("tags", "team"), "nlp")),
            ("tags.when=no", (("tags", "when"), "no")),
            ("data.system=Answer: yes # or no", (("data", "system"), "Answer: yes # or no")),
            (r"data.train=C:\new\rows.csv", (("data", "train"), r"C:\new\rows.csv")),
            ("data.train=s3://b/k?x=1", (("data", "train"), "s3://b/k?x=1")),
            ("data.system='null'", (("data", "system"), "null")),
            ("data.system=", (("data", "system"), None)),
            ('data.columns={"prompt": question}', (("data", "columns"), {"prompt": "question"})),
            ("backend_options.x.n=010", (("backend_options", "x", "n"), 10)),
            ("backend_options.x.on=true", (("backend_options", "x", "on"), True)),
            ("backend_options.x.l=[1, 'a']", (("backend_options", "x", "l"), [1, "a"])),
            (" train.seed = 3 ", (("train", "seed"), "3")),
        ],
    )
    def test_parse_set(self, text: str, expected: object) -> None:
        assert parse_set(text) == expected

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("foo", "--set foo: no = in it; write --set foo=VALUE"),
            ("=x", "--set =x: '' is no path; write it like --set train.epochs=5"),
            ("train..x=1", "--set train..x=1: 'train..x' is no path; write it like --set train.epochs=5"),
            ("train.epohcs=1", "--set train.epohcs=1: unknown field; did you mean epochs?"),
            ("epochs=1", "--set epochs=1: unknown field; did you mean train.epochs?"),
            ("trian.epochs=1", "--set trian.epochs=1: trian: unknown field; did you mean train?"),
            ("train.epochs=x", "--set train.epochs=x: expected a number, got x"),
            ("train={epohcs: 1}", "--set train={epohcs: 1}: train.epohcs: unknown field; did you mean epochs?"),
            ("name.x=1", "--set name.x=1: name: expected text, got a mapping"),
            ("resources.fallback.0=x",
             "--set resources.fallback.0=x: resources.fallback: expected a list of texts, got a mapping"),
            ("eval.labels=a,b", "--set eval.labels=a,b: expected a list of texts or null, got a,b; write [a,b]"),
            ("backend_options.x.n=.nan", "--set backend_options.x.n=.nan: is not a number that can be sent;"
             " quote it if it is a text"),
        ],
    )  # fmt: skip
    def test_wrong_ones_are_named_by_what_was_typed(self, refuse: Refuse, text: str, said: str) -> None:
        assert refuse(JOB, text).problems == (said,)

    def test_open_brackets_suggest_the_shell_quotes(self, refuse: Refuse) -> None:
        (problem,) = refuse(JOB, "eval.labels=[a,").problems
        assert problem.startswith("--set eval.labels=[a,: ")
        assert "--set 'a=[b, c]'" in problem

    def test_problems_of_the_file_come_first(self, refuse: Refuse) -> None:
        error = refuse(JOB + "foo: 1\n", "bar=1", "baz")
        assert [problem[:10] for problem in error.problems] == ["launch.yam", "--set bar=", "--set baz:"]
        assert error.message == "launch.yaml with --set has 3 problems"


def _bomb(first: str, more: str) -> str:
    """Ten anchors, each of which unfolds to nine times the one before."""
    lines = [f"k{i}: &k{i} {more.format(', '.join([f'*k{i - 1}'] * 9))}\n" for i in range(1, 10)]
    return f"k0: &k0 {first}\n" + "".join(lines)


class TestFilesThatAreNoJobs:
    @pytest.mark.parametrize(
        ("text", "where", "what"),
        [
            ("train:\n\tepochs: 3\n", 2, "a tab stands here"),
            ("train:\n  epochs: 1\n seed: 2\n", 3, "indentation"),
            ("a: 1\nb: 'open\nc: 2\n", 2, "the quote opened here is not closed"),
            ('a: 1\nb: "open\nc: 2\n', 2, "the quote opened here is not closed"),
            ("a: 1\nb: [x,\nc: 2\n", 2, "the [ opened here is not closed"),
            ("a: 1\nb: {x: 1\nc: 2\n", 2, "the { opened here is not closed"),
            ("a: 1\nb: Answer: yes\n", 2, "a colon can't stand here"),
            ('a: "C:\\Users\\me"\n', 1, "\\ starts an escape in double quotes"),
            ("a: @x\n", 1, "must be quoted"),
            ("a: *nobody\n", 1, "has no &anchor"),
            ("a: 1\n---\nb: 2\n", 2, "text stands after the end"),
            ("a: 1\nb: \x07\n", 2, "U+0007"),
            ('a: 1\nb: "\\UFFFFFFFF"\n', 2, "means nothing"),
        ],
    )
    def test_broken_yaml_is_located_explained_and_shown(
        self, refuse: Refuse, text: str, where: int, what: str
    ) -> None:
        error = refuse(text)
        (problem,) = error.problems
        assert error.message == "launch.yaml is not valid YAML"
        assert problem.startswith(f"launch.yaml:{where}: ")
        assert what in problem
        shown = text.split("\n")[where - 1].strip().replace("\x07", "")
        assert shown.replace("\t", "→") in problem

    def test_empty(self, refuse: Refuse) -> None:
        for text in ("", "\n\n", "# nothing\n", "---\n", "null\n"):
            assert refuse(text).message == "launch.yaml is empty"

    @pytest.mark.parametrize(("text", "kind"), [("- a\n", "a list"), ("\nhello\n", "a text"), ("[1]", "a list")])
    def test_top_level_is_no_mapping(self, refuse: Refuse, text: str, kind: str) -> None:
        line = 2 if text.startswith("\n") else 1
        assert refuse(text).message == f"launch.yaml:{line}: the top level must be fields, not {kind}"

    def test_a_forgotten_space_after_the_colon_is_noticed(self, refuse: Refuse) -> None:
        assert "space after the colon" in (refuse("name:x").hint or "")

    def test_not_utf_8(self, refuse: Refuse) -> None:
        assert refuse(b"a: 1\nb: \xe9\n").message == "launch.yaml:2: byte 0xe9 is not UTF-8 text"
        error = refuse("name: a\n".encode("utf-16"))
        assert (error.message, error.hint) == ("launch.yaml is UTF-16 text", "save it as UTF-8")

    def test_binary_and_huge(self, refuse: Refuse) -> None:
        assert "launch.yaml:2: a NUL byte" in refuse(b"a: 1\nb: \0\n").message
        assert "over 1 MiB" in refuse(b"#" * (MAX_BYTES + 1)).message

    def test_a_file_of_just_the_limit_is_read(self, load: Load) -> None:
        assert load(JOB + "#" * (MAX_BYTES - len(JOB))).name == "triage"

    def test_an_escaped_nul_is_refused_where_it_stands(self, refuse: Refuse) -> None:
        assert refuse(JOB + 'tags: {a: "x\\0y"}\n').problems == (
            "launch.yaml:6: tags.a: holds a NUL character (\\0)",
        )

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load_job(tmp_path / "no.yaml")
        assert caught.value.message == f"there is no file {tmp_path / 'no.yaml'}"
        assert "launch init" in (caught.value.hint or "")

    def test_a_folder_names_the_job_file_in_it(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load_job(tmp_path)
        assert "is a folder" in caught.value.message
        (tmp_path / "launch.yaml").write_text(JOB)
        with pytest.raises(ConfigError) as caught:
            load_job(tmp_path)
        assert str(tmp_path / "launch.yaml") in (caught.value.hint or "")

    @pytest.mark.parametrize(
        "text",
        [
            "x: &x [*x]\n",
            "x: &x {a: *x}\n",
            "x: &x\n  <<: *x\n",
            _bomb("[x]", "[{}]"),
            _bomb("{x: 1}", "{{<<: [{}]}}"),
            "a: " + "[" * 100_000,
            "- " * 100_000,
            "- a\n" * 200_000,
        ],
        ids=["own list", "own mapping", "own merge", "lists", "merges", "brackets", "dashes", "long"],
    )  # fmt: skip
    @pytest.mark.timeout(20)
    def test_bombs_are_refused_quickly(self, refuse: Refuse, text: str) -> None:
        assert refuse(text).message == "launch.yaml is not valid YAML"

    @pytest.mark.parametrize("tag", ["!!python/object:os.system", "!mine", "!!set", "!!binary", "!!timestamp"])
    def test_tags_are_refused(self, refuse: Refuse, tag: str) -> None:
        (problem,) = refuse(JOB + f"tags: {{a: {tag} x}}\n").problems
        assert problem == f"launch.yaml:6: tags.a: the tag {tag} is not supported; remove it"
