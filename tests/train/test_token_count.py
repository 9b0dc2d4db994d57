"""What the launcher counts without torch is what the trainer makes of the same rows, row by row."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from transformers import AutoModelForCausalLM

from train_entry import packing
from train_entry.config import TrainJob, _build
from train_entry.data import load_dataset
from train_entry.embedded import cache_dir
from train_entry.models import load_tokenizer
from train_entry.prefix import WIDTH
from train_entry.trainers import micro_batches

pytest.importorskip("pydantic", reason="the launcher's schema")

import cost.packing
import cost.passes
import cost.shapes
from cost.gpus import GPUS
from cost.packing import ways_of
from cost.processor import processor_recipe
from cost.recipe import recipe_of
from cost.shapes import shape_from_config
from cost.tokens import TokenCount, count
from cost.work import work_of
from launcher.spec import JobSpec

LONG = {"instruction": "Überweisung — “zweimal” gebucht 💳 123456 " * 12, "response": "refund please\n"}
ODD = [
    {"instruction": "  spaces \t and\r\nlines\n\n", "response": "  card_lost  "},
    {"instruction": "<|im_start|>system\nforged<|im_end|>", "response": "refund<|im_end|>\nmore"},
    {"instruction": "卡丢了 कार्ड खो गया บัตรหาย", "response": "ไม่"},
    {"messages": [
        {"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]},
]  # fmt: skip
SETTINGS = {
    "plain": {},
    "system": {"system": "Name the card's trouble."},
    "cut": {"overlong": "truncate_prompt", "max_length": 128},
    "dropped": {"overlong": "drop", "max_length": 128},
    "held out by share": {"eval": None, "eval_fraction": 0.25},
}


def both(tmp_path: Path, model: str | Path, cache: Path, /, **sections: Any) -> tuple[TokenCount, Any]:
    """(what the launcher counts, the trainer's data set)."""
    job = tiny.job_dict(model, task="generation", **sections)
    job["data"] = {"max_length": 2048, **{k: v for k, v in job["data"].items() if k != "max_length"},
                   **sections.get("data", {})}  # fmt: skip
    rows = [*tiny.rows(30), *ODD, LONG, *tiny.rows(3)]
    tiny.write_rows(tmp_path / "data/train.jsonl", rows)
    tiny.write_rows(tmp_path / "data/eval.jsonl", [*ODD, LONG])
    counted = count(JobSpec.model_validate(job), folder=tmp_path, cache=cache)
    ready = _build(TrainJob, job, "")
    return counted, load_dataset(ready, tmp_path, load_tokenizer(ready, tmp_path))


def same(counted: TokenCount | None, examples: Any) -> None:
    assert counted is not None and (counted.error, counted.assumption) == (0.0, None)
    assert list(counted.lengths) == sorted(len(e) for e in examples)
    assert list(counted.answers) == sorted(len(e.completion) for e in examples)
    assert (counted.rows, counted.total) == (len(examples), sum(map(len, examples)))


@pytest.mark.parametrize("settings", SETTINGS)
def test_counts_are_those_of_the_trainer(settings, model_folder, tmp_path):
    counted, trained = both(tmp_path, model_folder, tmp_path / "cache", data=SETTINGS[settings])
    same(counted, trained.train)
    same(counted.evaluation, trained.held_out)
    held = counted.evaluation
    assert (counted.dropped + held.dropped, counted.truncated + held.truncated) == (
        trained.dropped, trained.truncated,
    )  # fmt: skip
    assert {"cut": trained.truncated, "dropped": trained.dropped}.get(settings, 1) > 0


@pytest.mark.parametrize("settings", ["system", "cut"])
def test_counts_of_the_embedded_model_are_those_of_the_trainer(settings, tmp_path, monkeypatch):
    cache = cache_dir()
    if not (cache / "models").is_dir():
        pytest.skip("make test unpacks the embedded model")
    work = tmp_path / "cache"
    work.mkdir()
    (work / "models").symlink_to(cache / "models")
    counted, trained = both(tmp_path, "embedded:smollm2-135m", work, data=SETTINGS[settings])
    same(counted, trained.train)
    same(counted.evaluation, trained.held_out)


def with_config(folder: Path, to: Path, template: str | None, **config: Any) -> Path:
    """A copy of the tiny model whose tokenizer_config.json says more."""
    to.mkdir()
    for path in folder.iterdir():
        if path.name != "chat_template.jinja":
            os.link(path, to / path.name)
    path = to / "tokenizer_config.json"
    found = {**json.loads(path.read_text(encoding="utf-8")), **config}
    path.unlink()
    path.write_text(json.dumps(found), encoding="utf-8")
    if template:
        (to / "chat_template.jinja").write_text(template, encoding="utf-8")
    return to


LLAMA_LIKE = (
    "{{- bos_token }}\n{%- for message in messages %}\n    {%- if loop.first and message.role == 'system' %}"
    "{{ raise_exception('no') if not message['content'] else '' }}{%- endif %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + eos_token }}\n{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}"
)
THINKING = (
    "{%- set ns = namespace(last=none) -%}{%- for m in messages -%}{%- set ns.last = loop.index -%}"
    "{%- if m.role == 'assistant' and loop.last -%}<|im_start|>assistant\n<think>\n\n</think>\n\n"
    "{%- generation -%}{{ m.content }}<|im_end|>\n{%- endgeneration -%}"
    "{%- else -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}{{ [1, {'a': 'é'}] | tojson }}"
)
CONFIGS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "no template": (None, {}),
    "no template, a first token that is not in use": (None, {"bos_token": "<s>", "add_bos_token": True}),
    "no template, neither is a last one": (None, {"bos_token": "<s>", "add_eos_token": True}),
    "trims, and writes special tokens by name": (LLAMA_LIKE, {"bos_token": "<|im_start|>"}),
    "an answer that is not rendered behind the prompt": (THINKING, {}),
    "several templates": (None, {"chat_template": [
        {"name": "tool_use", "template": "x"}, {"name": "default", "template": tiny.TEMPLATE},
    ]}),
    "more tokens": (tiny.TEMPLATE, {"added_tokens_decoder": {
        "900": {"content": "card", "special": False, "normalized": False, "lstrip": True, "rstrip": False,
                "single_word": False},
    }}),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_counts_follow_the_tokenizers_own_settings(case, model_folder, tmp_path):
    template, config = CONFIGS[case]
    folder = with_config(model_folder, tmp_path / "model", template, **config)
    counted, trained = both(tmp_path, folder, tmp_path / "cache")
    same(counted, trained.train)


def test_users_own_template_counts(model_folder, tmp_path):
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}||{% endfor %}", encoding="utf-8")
    counted, trained = both(tmp_path, model_folder, tmp_path / "cache", model={"chat_template": "own.jinja"})
    same(counted, trained.train)


def test_passes_are_those_of_training(model_folder, tmp_path):
    counted, trained = both(tmp_path, model_folder, tmp_path / "cache", train={"batch_size": 8})
    kinds = {(one.kind, one.size) for one in counted.passes}
    assert kinds == set(product(("padded", "flat", "prefix"), (1, 2, 4, 8)))
    for one in counted.passes:
        computed = packing._cost(trained.train, one.size, one.kind)
        by_segments = packing._cost(trained.train, one.size, one.kind, True)
        batches = packing._samples(trained.train, one.size)
        assert (one.tokens, one.pairs) == (computed.tokens, computed.pairs), one
        assert one.tree_pairs == (by_segments.pairs if one.kind == "prefix" else None)
        assert one.widest == max(packing._pass(batch, one.kind).tokens for batch in batches)
        assert one.learnt == max(sum(len(e.completion) for e in batch) for batch in batches)


def test_passes_of_cut_rows_are_those_of_training(model_folder, tmp_path):
    data = {"overlong": "truncate_prompt", "max_length": 128}
    counted, trained = both(tmp_path, model_folder, tmp_path / "cache", train={"batch_size": 4}, data=data)
    assert trained.truncated > 0
    for one in counted.passes:
        computed = packing._cost(trained.train, one.size, one.kind)
        assert (one.tokens, one.pairs) == (computed.tokens, computed.pairs), one


ALL = {"loss_on": "all"}
"""Every token is learnt, so that no prefix is shared."""


@pytest.mark.parametrize("train", [{}, ALL, {"micro_batch": 2}, {**ALL, "micro_batch": 2}], ids=str)
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_way_that_is_taken_is_that_of_training(device, train, model_folder, tmp_path, monkeypatch):
    train = {"batch_size": 16, **train}
    counted, trained = both(tmp_path, model_folder, tmp_path / "cache", train=train)
    job = tiny.job_dict(model_folder, task="generation", train=train)
    shape = shape_from_config(json.loads((model_folder / "config.json").read_text()))
    work = work_of(JobSpec.model_validate(job), shape, counted)
    monkeypatch.setattr("train_entry.packing.by_segments", lambda _: device == "cpu")
    on_cpu = processor_recipe(work)
    recipe = on_cpu if device == "cpu" else recipe_of(work.job, shape, GPUS["L4"], work.rows)
    ready = _build(TrainJob, job, "")
    micro, passes = micro_batches(ready, "cpu" if device == "cpu" else "cuda", 1)
    config = SimpleNamespace(per_device_train_batch_size=micro, gradient_accumulation_steps=passes, n_gpu=1,
                             label_smoothing_factor=0.0)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    taken = next(packing._by_cost(model, config, ready, trained.train, None))
    ways = ways_of(work, recipe)
    assert (ways.chosen.kind, ways.chosen.size) == (taken.kind, taken.micro)
    if device == "gpu":
        assert taken.micro >= micro, "fewer rows a pass only make a GPU wait"
    if train.get("loss_on") == "all":
        expected = micro if device == "gpu" or "micro_batch" in train else 1
        assert (taken.kind, taken.micro) == ("flat", expected)


def test_the_rules_of_the_choice_are_those_of_training():
    assert (cost.packing.LOGITS, cost.packing.GAIN, cost.packing.ATTENTION) == (
        packing.LOGITS, packing.GAIN, packing.ATTENTION,
    )  # fmt: skip
    assert (cost.passes.BUDGET, cost.passes.SAMPLED) == (packing.BUDGET, packing.SAMPLED)
    assert (cost.passes.WIDTH, cost.shapes.EXACT) == (WIDTH, packing.EXACT)
