"""Counts of tokens: exact where a tokenizer is at hand, kept by content, sampled or guessed with their error."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost import counting, token_guess
from cost.counting import KEPT, sampling_error, thinned
from cost.passes import Passes
from cost.tokens import TokenCount, count
from launcher.errors import ConfigError
from launcher.spec import JobSpec
from train_entry.rows import Row

TEMPLATE = "{% for m in messages %}<b>{{ m.role }} {{ m.content }}<e>{% endfor %}"
WORDS = ("card", "lost", "refund", "please", "money", "twice")


def make_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A tokenizer that takes every word for a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = ["<u>", "<b>", "<e>", "user", "assistant", "system", *WORDS]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(known)}, unk_token=known[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<b>", "<e>"])
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<e>"}, "bos_token": "<b>"})
    )
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def words(n: int) -> str:
    return " ".join(WORDS[i % len(WORDS)] for i in range(n))


def write(path: Path, sizes: list[tuple[int, int]]) -> None:
    """Rows with so many words in the prompt and the answer; prompts differ."""
    rows = [{"prompt": f"{words(p - 1)} x{i}".strip(), "completion": words(a)} for i, (p, a) in enumerate(sizes)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def counted(tmp_path: Path, model: str = "m", **data: Any) -> TokenCount:
    spec = {
        "name": "x", "model": model, "task": "generation", "train": {"seed": 1},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl", **data},
    }  # fmt: skip
    return count(JobSpec.model_validate(spec), folder=tmp_path, cache=tmp_path / "cache")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    make_model(tmp_path / "m")
    write(tmp_path / "train.jsonl", [(5, 1), (10, 2), (20, 3)])
    write(tmp_path / "eval.jsonl", [(4, 2)])
    return tmp_path


def test_a_row_is_its_words_and_what_the_template_puts_round_them(rows: Path) -> None:
    found = counted(rows)
    # <b> user WORDS <e>, then <b> assistant WORDS <e>: the template has no other prompt for an answer.
    answers = (rows / "train.jsonl").read_text().splitlines()
    assert found.labels == len({json.loads(line)["completion"] for line in answers})
    # Padded rows: 3 x 29, and as many pairs as squares.
    assert found.passes[0] == Passes(
        kind="padded", size=1, tokens=59 / 3, pairs=(12**2 + 18**2 + 29**2) / 3, widest=29, learnt=6
    )
    assert replace(found, passes=(), labels=1) == TokenCount(
        lengths=(5 + 3 + 1 + 3, 10 + 3 + 2 + 3, 20 + 3 + 3 + 3), answers=(4, 5, 6), rows=3, total=12 + 18 + 29,
        evaluation=TokenCount(lengths=(4 + 3 + 2 + 3,), answers=(5,), rows=1, total=12),
    )  # fmt: skip


def test_counts_are_kept_and_made_anew_when_anything_that_matters_changes(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = counting.count_files
    monkeypatch.setattr(counting, "count_files", lambda *a: made.append(1) or real(*a))
    first = counted(rows)
    assert counted(rows) == first and len(made) == 1
    os.utime(rows / "train.jsonl", (0, 0))
    counted(rows)
    assert len(made) == 1, "the content counts, not the file's age"
    counted(rows, system="be brief")
    write(rows / "train.jsonl", [(6, 1), (10, 2), (20, 3)])
    assert counted(rows).total == first.total + 1
    (rows / "m/chat_template.jinja").write_text(TEMPLATE.replace("<e>", "<e> x"))
    assert counted(rows).total > first.total + 1
    assert len(made) == 4


def test_a_damaged_or_older_count_is_made_anew(rows: Path) -> None:
    first = counted(rows)
    [kept] = (rows / "cache/tokens").iterdir()
    for text in ("{", "[]", '{"lengths": [1]}'):
        kept.write_text(text)
        assert counted(rows) == first


def test_overlong_rows_are_refused_as_the_trainer_will_before_anything_is_spent(rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 rows are longer than data.max_length 15 .*train.jsonl:2") as refused:
        counted(rows, max_length=15)
    assert "data.max_length: 29" in (refused.value.hint or "")


def test_overlong_rows_are_left_out_or_cut(rows: Path) -> None:
    dropped = counted(rows, max_length=15, overlong="drop")
    assert (dropped.rows, dropped.dropped, dropped.total) == (1, 2, 12)
    cut = counted(rows, max_length=15, overlong="truncate_prompt")
    assert (cut.rows, cut.truncated, cut.lengths, cut.answers) == (3, 2, (12, 15, 15), (4, 5, 6))


@pytest.mark.parametrize("model", ["m", "org/nowhere"], ids=["counted", "guessed"])
def test_cut_rows_share_passes_too(rows: Path, model: str) -> None:
    """Nearly all rows are overlong: passes are of cut rows, not of the few short ones."""
    write(rows / "train.jsonl", [(5, 1), *[(60, 2)] * 15])
    found = counted(rows, model=model, max_length=20, overlong="truncate_prompt")
    assert found.truncated == 15
    padded = {one.size: one for one in found.passes if one.kind == "padded"}
    assert set(padded) == {1, 2, 4, 8, 16}
    assert padded[16].widest == 16 * 20
    assert padded[1].tokens == pytest.approx(found.total / 16)
    left = counted(rows, model=model, max_length=20, overlong="drop")
    assert {one.size for one in left.passes} == {1}


def test_of_many_overlong_rows_some_are_cut_and_the_others_taken_to_be_alike(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(rows / "train.jsonl", [(20 + i % 5, 1) for i in range(50)])
    exact = counted(rows, max_length=15, overlong="truncate_prompt")
    monkeypatch.setattr(counting, "CUT_EXACTLY", 10)
    (rows / "cache/tokens").rename(rows / "cache/before")
    assert counted(rows, max_length=15, overlong="truncate_prompt") == exact


def test_no_row_left_is_refused(rows: Path) -> None:
    with pytest.raises(ConfigError, match="no row is left within"):
        counted(rows, max_length=8, overlong="drop")


def test_a_sample_states_its_error_and_still_has_the_longest_row(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    sizes = [(draw.randint(2, 40), draw.randint(1, 9)) for _ in range(3000)]
    sizes[1234] = (500, 9)
    write(rows / "train.jsonl", sizes)
    whole = counted(rows)
    monkeypatch.setattr(counting, "MOST_ROWS", 1000)
    monkeypatch.setattr(counting, "SAMPLE", 400)
    (rows / "cache/tokens").rename(rows / "cache/before")
    sample = counted(rows)
    assert whole.error == 0 and 0 < sample.error < 0.1
    assert (sample.rows, sample.lengths[-1]) == (whole.rows, whole.lengths[-1]) == (3000, 515)
    assert abs(sample.total / whole.total - 1) < 2 * sample.error


def test_a_file_with_too_much_text_is_sampled_too(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(rows / "train.jsonl", [(10, 1), (30, 1)] * 100)
    monkeypatch.setattr(counting, "SAMPLE", 50)
    monkeypatch.setattr(counting, "MOST_CHARACTERS", 100)
    assert counted(rows).error > 0


def test_without_a_tokenizer_the_size_of_the_text_counts_and_that_is_said(rows: Path) -> None:
    found = counted(rows, model="org/nowhere")
    assert found.error == token_guess.ENGLISH
    assert "org/nowhere is not on this machine" in (found.assumption or "")
    assert found.evaluation is not None and found.evaluation.assumption == found.assumption
    assert found.rows == 3 and list(found.lengths) == sorted(found.lengths)


def test_a_guess_refuses_no_row(rows: Path) -> None:
    found = counted(rows, model="org/nowhere", max_length=8)
    assert found.lengths[-1] == 8 and found.truncated == 3


def row(text: str) -> Row:
    return Row("x:1", ({"role": "user", "content": text},), text)


@pytest.mark.parametrize(
    ("text", "large", "small"),
    [
        ("a" * 43, 10, 11.3), ("卡" * 11, 10, 16.9), ("и" * 24, 10, 16), ("1" * 20, 10, 20),
        ("a" * 33 + "é" * 12, 20, 32.7), ("a" * 43 + "卡" * 11, 20, 28.2),
    ],
    ids=["ascii", "han", "cyrillic", "digits", "european", "mixed"],
)  # fmt: skip
def test_a_guess_by_script_by_hand(text: str, large: float, small: float) -> None:
    scripts = token_guess._scripts([row(text)])
    assert token_guess._tokens_a_character(scripts, True) * len(text) == pytest.approx(large, rel=0.01)
    assert token_guess._tokens_a_character(scripts, False) * len(text) == pytest.approx(small, rel=0.01)


def test_a_guess_of_other_languages_than_english_is_worth_less() -> None:
    assert token_guess.error([row("the card was lost")]) == token_guess.ENGLISH
    assert token_guess.error([row("la carte a été égarée")]) == token_guess.ELSE
    assert token_guess.error([row("卡丢了")]) == token_guess.ELSE


def test_every_character_has_a_script() -> None:
    assert {token_guess.script(chr(code)) for code in range(0x110000)} <= token_guess.CHARACTERS.keys()
    assert [token_guess.script(c) for c in "aé1жア卡한ก😀ßא"] == [
        "ascii", "latin", "digits", "cyrillic", "kana", "han", "hangul", "thai", "other", "latin", "hebrew",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no rows"),
        (b'{"prompt": "a", "completion": "b"}\n\xff\n', "train.jsonl:2: not UTF-8"),
        (b'{"prompt": "a"}\n', "train.jsonl:1"),
    ],
    ids=["empty", "not UTF-8", "bad row"],
)
def test_data_that_cannot_be_read_is_a_clear_error(rows: Path, content: bytes, says: str) -> None:
    (rows / "train.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        counted(rows)
    assert not list((rows / "cache").rglob("*.json"))


def test_data_elsewhere_is_said_to_be_elsewhere(rows: Path) -> None:
    with pytest.raises(ConfigError, match=r"s3://b/t\.jsonl is read where the job runs"):
        counted(rows, train="s3://b/t.jsonl")
    assert counted(rows, eval="s3://b/e.jsonl").evaluation is None
    with pytest.raises(ConfigError, match="data file not found"):
        counted(rows, train="gone.jsonl")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_named(rows: Path, name: str) -> None:
    (rows / "m" / name).write_text("{")
    with pytest.raises(ConfigError, match=f"m/{name} can't be read"):
        counted(rows)


def test_a_model_without_an_end_of_sequence_token_is_refused_as_the_trainer_will(rows: Path) -> None:
    (rows / "m/tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        counted(rows)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% if %}", "the chat template can't be read"),
        ("{{ raise_exception('never') }}", "train.jsonl:1.*never"),
        ("{{ 1 + 'a' }}", "train.jsonl:1.*TypeError"),
    ],
)
def test_a_template_that_fails_is_named(rows: Path, template: str, says: str) -> None:
    (rows / "m/chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=says):
        counted(rows)


def test_a_template_cannot_leave_its_sandbox(rows: Path) -> None:
    (rows / "m/chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ConfigError, match="refuses this row"):
        counted(rows)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=3 * KEPT), st.integers(0, 6000))
def test_thinning_keeps_order_and_ends(values: list[int], longest: int) -> None:
    found = thinned(values, longest)
    assert list(found) == sorted(found) and len(found) == min(len(values), KEPT)
    assert found[-1] == max(*values, longest)


def test_thinned_and_sampling_error_by_hand() -> None:
    assert thinned(range(6000), 0)[:3] == (1, 4, 7)
    assert thinned(range(6000), 0)[-2:] == (5995, 5999)
    assert sampling_error([10] * 100 + [30] * 100) == pytest.approx(1.96 * 10.025 / 200**0.5 / 20, rel=1e-3)
