"""Which weights learn, with which defaults, and what becomes of the others."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from test_tokens import dataset, parsed

from train_entry.config import TrainJob, _build
from train_entry.failure import JobError
from train_entry.loop import JobCallback, Progress, load_result
from train_entry.models import load_base, load_tokenizer, with_tuning
from train_entry.trainers import make_trainer, trainer_config


def bare(folder, **sections):
    """A job that names nothing that has a default."""
    job = {
        "name": "t",
        "model": {"id": str(folder)},
        "task": "classification",
        "data": {"train": "data/train.jsonl"},
    }
    return _build(TrainJob, {**job, **sections}, "")


def trained(job, inputs):
    """(model before, model after) a real training run over a few rows."""
    rows = dataset(job, inputs, tiny.rows(8)).train
    model = with_tuning(load_base(job, inputs, "cpu"), job)
    before = copy.deepcopy(model.state_dict())
    tokenizer = load_tokenizer(job, inputs)
    make_trainer(model, tokenizer, trainer_config(job, inputs / "work", "cpu", 1), job, rows).train()
    return before, model


def test_defaults_are_those_of_the_guide(model_folder, tmp_path):
    job = bare(model_folder)
    model = with_tuning(load_base(job, tmp_path, "cpu"), job)
    adapter = model.peft_config["default"]
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (16, 32, 0.05)
    assert adapter.base_model_name_or_path == str(model_folder)
    config = trainer_config(job, tmp_path, "cpu", 1)
    assert (config.learning_rate, config.lr_scheduler_type) == (2e-4, "cosine")
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 16
    assert (config.num_train_epochs, config.warmup_steps, config.seed) == (3.0, 0.03, 42)
    assert (config.bf16, config.gradient_checkpointing) == (False, False)
    linear = {n for n, m in load_base(job, tmp_path, "cpu").named_modules() if isinstance(m, torch.nn.Linear)}
    adapted = {
        n.split(".lora_A")[0].removeprefix("base_model.model.") for n in model.state_dict() if ".lora_A" in n
    }
    assert adapted == linear - {"lm_head"}
    assert bare(model_folder, tuning={"kind": "full"}).learning_rate == 2e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_trains_fp32_adapters_and_leaves_the_base_bit_identical(model_folder, tmp_path, dtype):
    before, model = trained(parsed(model_folder, model={"dtype": dtype}), tmp_path)
    learn = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learn and all("lora_" in n for n in learn)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    after = model.state_dict()
    for name, old in before.items():
        if name not in learn:
            assert torch.equal(old, after[name]), name
    assert all(not torch.equal(before[n], after[n]) for n in learn)


def test_full_tuning_changes_every_weight(model_folder, tmp_path):
    before, model = trained(parsed(model_folder, tuning={"kind": "full"}, train={"max_steps": 2}), tmp_path)
    assert all(p.requires_grad for p in model.parameters())
    same = [n for n, p in model.state_dict().items() if torch.equal(p, before[n])]
    assert not same


def test_qlora_trains_fp32_adapters_on_a_4_bit_base(model_folder, tmp_path):
    import bitsandbytes

    before, model = trained(parsed(model_folder, tuning={"kind": "qlora"}), tmp_path)
    quantised = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(quantised) == 14 and {m.weight.dtype for m in quantised} == {torch.uint8}
    assert {m.weight.quant_state.quant_type for m in quantised} == {"nf4"}
    learn = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n for n in learn) and {p.dtype for p in learn.values()} == {torch.float32}
    assert any(not torch.equal(before[n], p) for n, p in learn.items())
    weights = {n: v for n, v in model.state_dict().items() if n.endswith("base_layer.weight")}
    assert weights and all(torch.equal(before[n], v) for n, v in weights.items())


def test_dora_and_rslora_reach_peft(model_folder, tmp_path):
    job = parsed(model_folder, tuning={"dora": True, "rslora": True, "r": 4, "targets": ["q_proj"]})
    adapter = with_tuning(load_base(job, tmp_path, "cpu"), job).peft_config["default"]
    assert (adapter.use_dora, adapter.use_rslora, adapter.r, adapter.lora_alpha) == (True, True, 4, 8)
    assert adapter.target_modules == {"q_proj"}


def test_layer_that_the_model_lacks_is_refused(model_folder, tmp_path):
    job = parsed(model_folder, tuning={"targets": ["nothing_like_it"]})
    with pytest.raises(JobError, match=r"tuning\.targets.*nothing_like_it"):
        with_tuning(load_base(job, tmp_path, "cpu"), job)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_kept_weights_come_back_exactly(model_folder, tmp_path, kind):
    _, model = trained(parsed(model_folder, tuning={"kind": kind}, train={"max_steps": 2}), tmp_path)
    model.save_pretrained(tmp_path / "result")
    kept = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1.0)
    load_result(model, tmp_path / "result")
    assert all(torch.equal(kept[n], v) for n, v in model.state_dict().items())


def test_judging_a_4_bit_base_changes_neither_its_weights_nor_the_gradients(model_folder, tmp_path):
    job = parsed(model_folder, tuning={"kind": "qlora", "dropout": 0.0})
    row = dataset(job, tmp_path, tiny.rows(2)).train[0]
    ids = torch.tensor([[*row.prompt, *row.completion]])

    def gradients(judge_first):
        base = load_base(job, tmp_path, "cpu")
        if judge_first:
            base.eval()
            with torch.no_grad():
                base(input_ids=ids)
        model = with_tuning(base, job)
        model.train()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain, judged = gradients(False), gradients(True)
    assert all(torch.equal(plain[n], judged[n]) for n in plain)
    assert all(g.abs().max() > 0 for n, g in plain.items() if "lora_B" in n)


def test_adapter_dropout_drops_its_share_keeps_the_mean_and_passes_that_gradient():
    from train_entry.dropout import QuickDropout

    torch.manual_seed(3)
    ones = torch.ones(257, 1021, requires_grad=True)
    for share in (0.05, 0.5, 0.9):
        ones.grad = None
        given = QuickDropout(share)(ones)
        given.sum().backward()
        assert (given == 0).float().mean().item() == pytest.approx(share, abs=0.005)
        assert given.mean().item() == pytest.approx(1.0, abs=0.02)
        assert torch.equal(ones.grad, given)
    lanes = (QuickDropout(0.5)(torch.ones(400_000)) == 0).float().view(-1, 4).mean(dim=0)
    assert all(lane == pytest.approx(0.5, abs=0.01) for lane in lanes.tolist()), "each of a word's four parts"
    plain = torch.randn(3, 5)
    assert torch.equal(QuickDropout(0.5).eval()(plain), plain)


def test_every_adapter_gets_that_dropout_and_draws_it_by_the_seed(model_folder, tmp_path):
    from train_entry.dropout import QuickDropout

    job = parsed(model_folder, tuning={"dropout": 0.25})
    model = with_tuning(load_base(job, tmp_path, "cpu"), job)
    found = [m for n, m in model.named_modules() if n.endswith("lora_dropout.default")]
    assert len(found) == 14 and {(type(m), m.p) for m in found} == {(QuickDropout, 0.25)}
    ids = torch.tensor([[5, 6, 7, 8]])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    model.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model(input_ids=ids, use_cache=False).logits)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_model_whose_attention_torch_has_no_kernel_for_loads_with_its_own(model_folder, tmp_path):
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    folder = tmp_path / "gemma"
    config = Gemma2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=16,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    assert load_base(bare(folder), tmp_path, "cpu").config._attn_implementation == "eager"
    assert load_base(bare(model_folder), tmp_path, "cpu").config._attn_implementation == "sdpa"
    before, model = trained(parsed(folder, train={"max_steps": 2}), tmp_path)
    learn = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert any(not torch.equal(before[n], p) for n, p in learn.items())


def test_the_peak_of_memory_leaves_out_what_was_judged_before_training(model_folder, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: done.append("counted anew"))
    left = Progress(unjudged=True)
    callback = JobCallback(bare(model_folder), left, None, print, tmp_path, tmp_path, {}, [], 0)
    monkeypatch.setattr(callback, "_over", lambda state, model: done.append("judged"))
    callback.on_train_begin(None, None, None)
    assert done == ["judged", "counted anew"]
