"""Training on packed rows is training on the rows: every figure equals that of the rows alone."""

from __future__ import annotations

import dataclasses
import random
import signal

import pytest
import tiny
import torch
from test_loss import gradients, plain_loss
from test_tokens import parsed
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from train_entry.data import Example
from train_entry.held_out import held_out_loss, packed_loss
from train_entry.models import load_base, load_tokenizer, with_tuning
from train_entry.packing import EXACT, Packing, _pass, as_tokens, difference, obstacle
from train_entry.prefix import PrefixCollator
from train_entry.rows import Row
from train_entry.trainers import make_trainer, packing_of, trainer_config

SYSTEM = "please help the account now " * 3
PREFIX = Packing(kind="prefix", why="", micro=8, passes=1)


def examples(count, *, prefixes=(24,), seed=0):
    """Rows of random tokens; each begins with one of as many shared prefixes of these lengths."""
    draw = random.Random(seed)
    heads = [[draw.randrange(3, 500) for _ in range(length)] for length in prefixes]
    made = []
    for number in range(count):
        head = heads[number % len(heads)]
        tail = [draw.randrange(3, 500) for _ in range(draw.randint(1, 9))]
        answer = [draw.randrange(3, 500) for _ in range(draw.randint(1, 4))]
        row = Row(f"row {number}", ({"role": "user", "content": "?"},), "!")
        made.append(Example(row, (*head, *tail), (*answer, 1)))
    return made


CASES = {
    "one prefix": examples(8),
    "mixed prefixes": examples(8, prefixes=(24, 7, 13)),
    "a prefix for some": examples(8, prefixes=(24, 0)),
    "no prefix": examples(8, prefixes=(0,)),
    "equal prompts": [dataclasses.replace(examples(1)[0], completion=(n + 5, n + 9, 1)) for n in range(8)],
}


def tuned(folder, tmp_path, dtype="float32", **train):
    """(job, tokenizer, model) without dropout, whose adapters already do something."""
    job = parsed(
        folder,
        model={"dtype": dtype},
        tuning={"dropout": 0.0},
        train={"batch_size": 8, "max_grad_norm": 0.0, **train},
    )
    model = with_tuning(load_base(job, tmp_path, "cpu"), job)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    return job, load_tokenizer(job, tmp_path), model


def trained(folder, tmp_path, rows, packing, dtype="float32", **train):
    """(trainer after its run, gradients of its first step)."""
    job, tokenizer, model = tuned(folder, tmp_path, dtype, **train)
    config = trainer_config(job, tmp_path / "work", "cpu", 1)
    trainer = make_trainer(model, tokenizer, config, job, rows, packing)
    trainer.create_optimizer_and_scheduler(num_training_steps=train["max_steps"])
    first = {}
    trainer.optimizer.register_step_pre_hook(lambda *_: None if first else first.update(gradients(model)))
    trainer.train()
    return trainer, first


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_of_a_packed_step_are_those_of_the_rows_alone(model_folder, tmp_path, name, micro):
    rows = CASES[name]
    packing = dataclasses.replace(PREFIX, micro=micro, passes=8 // micro)
    trainer, found = trained(model_folder, tmp_path, rows, packing, max_steps=1)
    _, _, model = tuned(model_folder, tmp_path)
    expected = plain_loss(model, rows, "completion")
    expected.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-4)
    wanted = gradients(model)
    assert found.keys() == wanted.keys() and len(wanted) > 10
    for part, gradient in wanted.items():
        torch.testing.assert_close(found[part], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=part: f"{n}: {m}")
    assert trainer.state.num_input_tokens_seen == sum(map(len, rows)), "tokens are those of the rows"


@pytest.mark.parametrize(("name", "micro"), [("one prefix", 8), ("mixed prefixes", 4), ("no prefix", 2)])
def test_twenty_packed_steps_are_the_steps_of_unpacked_training(model_folder, tmp_path, name, micro):
    """Over several epochs, in one pass a step or more, answers of unequal length among them."""
    rows = CASES[name] + examples(16, seed=5)
    train = {"max_steps": 20, "epochs": 100.0, "learning_rate": 1e-3}
    padded = Packing(kind="padded", why="", micro=4, passes=2)
    prefix = dataclasses.replace(PREFIX, micro=micro, passes=8 // micro)
    (plain, _), (packed, _) = (trained(model_folder, tmp_path, rows, p, **train) for p in (padded, prefix))
    losses = [[step["loss"] for step in run.state.log_history if "loss" in step] for run in (plain, packed)]
    assert len(losses[0]) == 20 and losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    ours, theirs = packed.model.state_dict(), plain.model.state_dict()
    for part, value in theirs.items():
        assert float((ours[part] - value).abs().max()) < 1e-4, part


def test_checkpointed_activations_give_the_same_gradients(model_folder, tmp_path):
    rows = CASES["one prefix"]
    runs = [
        trained(model_folder, tmp_path, rows, PREFIX, max_steps=1, gradient_checkpointing=on)
        for on in (False, True)
    ]
    assert runs[1][0].model.base_model.model.model.gradient_checkpointing
    for part, gradient in runs[0][1].items():
        torch.testing.assert_close(runs[1][1][part], gradient, rtol=1e-5, atol=1e-7)


def test_packed_gradients_in_bfloat16_are_the_unpacked_ones_but_for_rounding(model_folder, tmp_path):
    rows, found = CASES["mixed prefixes"], []
    for kind in ("prefix", "padded"):
        packing = Packing(kind=kind, why="", micro=8, passes=1)
        trainer, first = trained(model_folder, tmp_path, rows, packing, "bfloat16", max_steps=1)
        found.append((trainer.state.log_history[0]["loss"], torch.cat([g.flatten() for g in first.values()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-2)
    assert float(torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0)) > 0.99


@pytest.mark.parametrize("name", CASES)
def test_held_out_loss_of_packed_rows_is_the_mean_over_answer_tokens(model_folder, tmp_path, name):
    rows = [*CASES[name], *examples(3, seed=9)]
    _, tokenizer, model = tuned(model_folder, tmp_path)
    model.train()
    ticks = []
    unpacked = held_out_loss(model, rows, 4, tokenizer.pad_token_id, lambda: None)
    for size in (1, 4, 11):
        ticks.clear()
        assert packed_loss(model, rows, size, lambda: ticks.append(1)) == pytest.approx(unpacked, rel=1e-5)
        assert len(ticks) == -(-11 // size)
    assert model.training, "the mode is restored"


SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip


def random_model(kind, **more):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **more}))


@pytest.mark.parametrize("kind", EXACT)
def test_models_that_are_packed_give_the_unpacked_loss(model_folder, tmp_path, kind):
    job, _, _ = tuned(model_folder, tmp_path)
    model = random_model(kind, sliding_window=None)
    assert obstacle(model, trainer_config(job, tmp_path, "cpu", 1), job) is None
    rows = examples(8, prefixes=(24, 12))
    assert difference(model, PREFIX, job, rows, 0) < 1e-5
    assert difference(model, dataclasses.replace(PREFIX, kind="flat"), job, rows, 0) < 1e-5


def chosen(model, job, tmp_path, rows, capsys=None, **settings):
    config = trainer_config(job, tmp_path / "work", "cpu", 1)
    for name, value in settings.items():
        setattr(config, name, value)
    return packing_of(model, load_tokenizer(job, tmp_path), config, job, rows)


SHARED = examples(64, prefixes=(60,))


def test_rows_that_begin_alike_share_it_and_a_step_has_as_many_rows_as_before(model_folder, tmp_path):
    job, _, model = tuned(model_folder, tmp_path, batch_size=16)
    found = chosen(model, job, tmp_path, SHARED)
    assert (found.kind, found.micro * found.passes) == ("prefix", 16)
    assert "tokens are computed for a row of" in found.why
    job = dataclasses.replace(job, train=dataclasses.replace(job.train, micro_batch=4))
    found = chosen(model, job, tmp_path, SHARED)
    assert (found.kind, found.micro, found.passes) == ("prefix", 4, 4)


def test_rows_that_share_little_are_put_end_to_end_or_padded_where_masks_are_used(
    model_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("train_entry.packing.by_segments", lambda device: False)  # a GPU
    job, _, model = tuned(model_folder, tmp_path)
    draw = random.Random(0)
    ragged = [
        dataclasses.replace(e, prompt=tuple(draw.randrange(3, 500) for _ in range(draw.choice([2, 40]))))
        for e in examples(64)
    ]
    # At the size of a real model, attention is a small part of the work.
    wide = random_model("llama", hidden_size=512, intermediate_size=2048, head_dim=16)
    assert chosen(wide, job, tmp_path, ragged).kind == "flat"
    even = [
        dataclasses.replace(e, prompt=e.prompt[-1:] * 20, completion=(5, 1)) for e in examples(64, prefixes=(0,))
    ]
    assert chosen(model, job, tmp_path, even).kind == "padded"
    monkeypatch.undo()
    job = dataclasses.replace(job, train=dataclasses.replace(job.train, micro_batch=8))
    assert chosen(model, job, tmp_path, ragged).kind == "prefix", "a CPU computes no pair of two rows"


def test_a_prefix_costs_what_its_collator_makes_of_the_rows(model_folder, tmp_path, monkeypatch):
    """Packs that the budget splits, each with the prefix of its own, and padded to the widest."""
    monkeypatch.setattr("train_entry.packing.BUDGET", 100)
    rows = examples(8, prefixes=(60, 60))
    batch = PrefixCollator(100)([as_tokens(row, "completion") for row in rows])
    assert batch["input_ids"].shape[0] > 1
    cost, on_a_cpu = _pass(rows, "prefix"), _pass(rows, "prefix", segments=True)
    assert cost.tokens == on_a_cpu.tokens == batch["input_ids"].numel()
    assert cost.pairs == batch["attention_mask"].numel()
    assert int(batch["attention_mask"].sum()) < on_a_cpu.pairs < cost.pairs


@pytest.mark.parametrize("asked", [True, False])
def test_what_the_job_asks_for_is_done(model_folder, tmp_path, asked):
    job, _, model = tuned(model_folder, tmp_path, packing=asked)
    found = chosen(model, job, tmp_path, SHARED)
    assert found.kind == ("sequences" if asked else "padded") and "train.packing" in found.why


@pytest.mark.parametrize(
    ("model", "settings", "train", "why"),
    [
        (("gemma2", {}), {}, {}, "attention is eager"),
        (("mistral", {"sliding_window": 16}), {}, {}, "sliding-window"),
        (("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}), {}, {}, "sliding"),
        (("gpt_neox", {}), {}, {}, "gpt_neox models are not known"),
        (("llama", {}), {"label_smoothing_factor": 0.1}, {}, "label smoothing"),
        (("llama", {}), {"_n_gpu": 2}, {}, "one process drives several GPUs"),
        (("llama", {}), {}, {"loss_on": "all"}, "every token is learnt"),
    ],
)  # fmt: skip
def test_what_can_not_share_a_prefix_is_packed_without_or_padded(
    model_folder, tmp_path, model, settings, train, why
):
    job, _, _ = tuned(model_folder, tmp_path, **train)
    kind, shape = model
    found = chosen(random_model(kind, **shape), job, tmp_path, SHARED, **settings)
    assert found.kind in ("flat", "padded") and why in found.why


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention", "eager"])
def test_other_attention_than_sdpa_gets_no_mask_of_ours(model_folder, tmp_path, attention):
    job, _, _ = tuned(model_folder, tmp_path)
    model = random_model("llama")
    model.config._attn_implementation = attention
    assert attention in obstacle(model, trainer_config(job, tmp_path, "cpu", 1), job)


def test_linear_attention_shares_no_prefix(model_folder, tmp_path):
    job, _, _ = tuned(model_folder, tmp_path)
    model = random_model("qwen3", layer_types=["full_attention", "full_attention"])
    model.config.layer_types = ["linear_attention", "full_attention"]
    assert "linear_attention" in obstacle(model, trainer_config(job, tmp_path, "cpu", 1), job)


class Deaf(LlamaForCausalLM):
    """Takes the mask and the positions, and heeds neither."""

    def forward(self, *args, attention_mask=None, position_ids=None, **rest):
        return super().forward(*args, **rest)


def test_packing_that_changes_the_loss_is_left_out_with_a_line(model_folder, tmp_path, capsys):
    job, _, _ = tuned(model_folder, tmp_path)
    model = Deaf(random_model("llama").config)
    found = chosen(model, job, tmp_path, SHARED)
    assert found.kind == "padded" and "prefix packing gave another loss" in found.why
    assert "prefix packing is left out: its loss differs by" in capsys.readouterr().err


def job_on_shared_rows(root, model_folder, **train):
    sections = {
        "tuning": {"dropout": 0.0}, "data": {"system": SYSTEM},
        "train": {"max_steps": 20, "epochs": 100.0, "learning_rate": 1e-3, "batch_size": 8, **train},
    }  # fmt: skip
    return tiny.Job(root, tiny.job_dict(model_folder, **sections), tiny.rows(24), tiny.rows(8, seed=1))


def test_two_packed_processes_take_the_steps_of_one_unpacked(tmp_path, model_folder):
    alone = job_on_shared_rows(tmp_path / "alone", model_folder, packing=False)
    pair = job_on_shared_rows(tmp_path / "pair", model_folder)
    assert alone.run()[0] == 0
    code, log = pair.run(LAUNCH_PROCESSES="2")
    assert code == 0, log
    assert [job.named("packing")[0]["kind"] for job in (alone, pair)] == ["padded", "prefix"]
    for theirs, ours in zip(alone.named("step"), pair.named("step"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["tokens"] == theirs["tokens"]
    ours, theirs = (job.named("eval_loss")[-1]["loss"] for job in (alone, pair))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_stopped_packed_training_goes_on_bit_for_bit(tmp_path, model_folder):
    twin, job = (job_on_shared_rows(tmp_path / n, model_folder, max_steps=60) for n in ("twin", "job"))
    for one in (twin, job):  # the dropout's draws must come back too
        one.write(tiny.job_dict(model_folder, data={"system": SYSTEM}, train={"max_steps": 60, "epochs": 100.0}))
    assert twin.run()[0] == 0
    process = job.start()
    job.wait_for_step(5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=tiny.PATIENCE_S)
    assert process.returncode == 143
    assert job.run()[0] == 0 and job.named("resumed")
    assert [e["kind"] for e in job.named("packing")] == ["prefix", "prefix"]
    assert [e["loss"] for e in job.named("step")] == [e["loss"] for e in twin.named("step")]
    assert job.weights() == twin.weights()
