"""From rows to token ids: what is learnt, what is refused, and that an answer is never cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from train_entry.config import TrainJob, _build
from train_entry.data import completion_ids, label_ids, load_dataset
from train_entry.failure import JobError
from train_entry.models import load_tokenizer
from train_entry.trainers import pad_left


def parsed(folder: Path, /, **sections: Any) -> TrainJob:
    return _build(TrainJob, tiny.job_dict(folder, **sections), "")


def dataset(job: TrainJob, inputs: Path, train: list[dict[str, Any]], held_out: int = 4) -> Any:
    tiny.write_rows(inputs / "data/train.jsonl", train)
    tiny.write_rows(inputs / "data/eval.jsonl", tiny.rows(held_out, seed=1))
    return load_dataset(job, inputs, load_tokenizer(job, inputs))


def with_long_row() -> list[dict[str, str]]:
    return [*tiny.rows(4), {"instruction": "help " * 200, "response": "refund " * 6}]


def test_overlong_row_is_refused_with_file_line_and_the_length_that_would_do(model_folder, tmp_path):
    with pytest.raises(JobError) as refused:
        dataset(parsed(model_folder), tmp_path, with_long_row())
    assert refused.value.kind == "data"
    assert "train.jsonl:5" in refused.value.message
    needed = int(refused.value.message.split("longest has ")[1].split()[0])
    assert f"data.max_length: {needed}" in (refused.value.hint or "")
    found = dataset(parsed(model_folder, data={"max_length": needed}), tmp_path, with_long_row())
    assert max(map(len, found.train)) == needed


def test_overlong_rows_are_dropped_and_counted(model_folder, tmp_path):
    found = dataset(parsed(model_folder, data={"overlong": "drop"}), tmp_path, with_long_row())
    assert (len(found.train), found.dropped, found.truncated) == (4, 1, 0)


def test_truncation_cuts_the_prompt_never_the_answer_nor_the_template(model_folder, tmp_path):
    job = parsed(model_folder, data={"overlong": "truncate_prompt"})
    found = dataset(job, tmp_path, with_long_row())
    tokenizer = load_tokenizer(job, tmp_path)
    cut = found.train[4]
    assert (len(found.train), found.dropped, found.truncated) == (5, 0, 1)
    assert 120 <= len(cut) <= 128
    assert tokenizer.decode(cut.completion) == "refund " * 6 + "<|im_end|>"
    prompt = tokenizer.decode(cut.prompt)
    assert prompt.startswith("<|im_start|>user\nhelp help") and prompt.endswith(
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_answer_that_alone_is_too_long_is_an_error_even_when_prompts_may_be_cut(model_folder, tmp_path):
    job = parsed(model_folder, data={"overlong": "truncate_prompt", "max_length": 16})
    with pytest.raises(JobError, match=r"train\.jsonl:1: the answer and the template alone"):
        dataset(job, tmp_path, [{"instruction": "help", "response": "refund " * 30}, *tiny.rows(2)])


@pytest.mark.parametrize("answer", ["refund", "refund<|im_end|>", "refund<|im_end|>\n"])
def test_completion_ends_in_exactly_one_end_of_turn(model_folder, tmp_path, answer):
    tokenizer = load_tokenizer(parsed(model_folder), tmp_path)
    ids = completion_ids(tokenizer, answer)
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id


def test_pad_equal_to_eos_leaves_the_learnt_eos_in_the_labels(tmp_path):
    folder = tiny.make_model(tmp_path / "model", pad=False)
    job = parsed(folder)
    tokenizer = load_tokenizer(job, tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    found = dataset(job, tmp_path, tiny.rows(8))
    batch = pad_left(
        [{"input_ids": [*e.prompt, *e.completion], "labels": label_ids(e, "completion")} for e in found.train],
        tokenizer.pad_token_id,
    )
    assert (batch["attention_mask"] == 0).any(), "the rows must differ in length for this test"
    learnt = (batch["labels"] == tokenizer.eos_token_id).sum(dim=1).tolist()
    assert learnt == [1] * 8
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_learning_every_token_leaves_out_the_one_that_nothing_precedes(model_folder, tmp_path):
    found = dataset(parsed(model_folder), tmp_path, tiny.rows(2))
    example = found.train[0]
    assert label_ids(example, "all") == [-100, *example.prompt[1:], *example.completion]
    assert label_ids(example, "completion") == [-100] * len(example.prompt) + list(example.completion)


def test_prompt_ids_are_those_that_the_template_gives_in_use(model_folder, tmp_path):
    job = parsed(model_folder, data={"system": "be brief"})
    found = dataset(job, tmp_path, tiny.rows(2))
    tokenizer = load_tokenizer(job, tmp_path)
    messages = [{"role": "system", "content": "be brief"}, *found.train[0].row.messages]
    used = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(found.train[0].prompt) == list(used)


def test_row_that_the_template_refuses_is_named(model_folder, tmp_path):
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    )
    job = parsed(model_folder, model={"chat_template": "strict.jinja"}, data={"system": "be brief"})
    with pytest.raises(JobError, match=r"train\.jsonl:1.*no system role") as refused:
        dataset(job, tmp_path, tiny.rows(2))
    assert refused.value.kind == "data"


def test_split_keeps_equal_prompts_on_one_side_and_depends_on_the_seed_alone(model_folder, tmp_path):
    twice = [row for row in tiny.rows(20) for _ in range(2)]
    job = parsed(model_folder, data={"eval": None, "eval_fraction": 0.25})
    first, again = dataset(job, tmp_path, twice), dataset(job, tmp_path, twice)
    assert [e.prompt for e in first.held_out] == [e.prompt for e in again.held_out]
    assert not {e.prompt for e in first.held_out} & {e.prompt for e in first.train}
    assert len(first.held_out) == 10 and len(first.train) == 30
