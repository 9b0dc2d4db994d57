"""The loss that is trained on and the one that is measured equal their definitions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_tokens import dataset, parsed

from train_entry.config import TrainJob
from train_entry.data import Example, label_ids
from train_entry.held_out import held_out_loss, packed_loss
from train_entry.models import load_base, load_tokenizer, with_tuning
from train_entry.trainers import make_trainer, micro_batches, trainer_config

NO_DROPOUT = {"dropout": 0.0}


def plain_loss(model: Any, rows: Sequence[Example], loss_on: str) -> torch.Tensor:
    """Cross-entropy of the learnt tokens, one row a forward pass, no padding: the definition."""
    total, count = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.completion]])
        labels = torch.tensor(label_ids(row, loss_on))
        logits = model(input_ids=ids, use_cache=False).logits[0].float()
        total = total + torch.nn.functional.cross_entropy(
            logits[:-1], labels[1:], ignore_index=-100, reduction="sum"
        )
        count += int((labels[1:] != -100).sum())
    return total / count


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def first_step(job: TrainJob, inputs: Path, rows: Sequence[Example]) -> tuple[float, dict[str, torch.Tensor], Any]:
    """(logged loss, gradients, model before the step) of the trainer's first optimizer step over all `rows`."""
    tokenizer = load_tokenizer(job, inputs)
    model = with_tuning(load_base(job, inputs, "cpu"), job)
    before = copy.deepcopy(model)
    trainer = make_trainer(model, tokenizer, trainer_config(job, inputs / "work", "cpu", 1), job, rows)
    seen: dict[str, Any] = {}
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.update(grads=gradients(model)))
    trainer.train()
    return trainer.state.log_history[0]["loss"], seen["grads"], before


@pytest.mark.parametrize("loss_on", ["completion", "all"])
@pytest.mark.parametrize("train", [{"micro_batch": 8}, {"micro_batch": 2}, {"micro_batch": 8, "packing": True}])
def test_loss_and_gradients_of_a_step_equal_plain_cross_entropy(model_folder, tmp_path, loss_on, train):
    packing = bool(train.get("packing"))
    job = parsed(
        model_folder,
        tuning=NO_DROPOUT,
        # Packed, the eight rows fill fewer sequences than a step may take: all are in the one step.
        train={"batch_size": 8, "max_steps": 1, "max_grad_norm": 0.0, "loss_on": loss_on, **train},
        data={"max_length": 128},
    )
    rows = dataset(job, tmp_path, tiny.rows(8)).train
    assert len({len(r) for r in rows}) > 1, "padding must matter"
    logged, found, before = first_step(job, tmp_path, rows)
    before.train()
    expected = plain_loss(before, rows, loss_on)
    expected.backward()
    assert logged == pytest.approx(expected.item(), rel=1e-4)
    wanted = gradients(before)
    assert found.keys() == wanted.keys() and len(wanted) > 10
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    if packing:
        assert sum(map(len, rows)) > 128, "the rows must fill more than one sequence"


def test_packed_rows_do_not_see_each_other(model_folder, tmp_path):
    job = parsed(model_folder, tuning=NO_DROPOUT, train={"packing": True, "max_steps": 1, "batch_size": 1})
    rows = dataset(job, tmp_path, tiny.rows(4)).train
    tokenizer = load_tokenizer(job, tmp_path)
    model = with_tuning(load_base(job, tmp_path, "cpu"), job)
    trainer = make_trainer(model, tokenizer, trainer_config(job, tmp_path / "work", "cpu", 1), job, rows)
    batch = next(iter(trainer.get_train_dataloader()))
    assert int((batch["position_ids"] == 0).sum()) > 1, "more than one row in the sequence"
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    with torch.no_grad():
        packed = model(**inputs, use_cache=False).logits[0]
        starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), packed.shape[0]]
        for start, end in pairwise(starts):
            alone = model(input_ids=batch["input_ids"][:, start:end], use_cache=False).logits[0]
            torch.testing.assert_close(packed[start:end], alone, rtol=1e-4, atol=1e-4)


def test_held_out_loss_is_the_mean_over_answer_tokens_whatever_the_batch(model_folder, tmp_path):
    job = parsed(model_folder)
    rows = dataset(job, tmp_path, tiny.rows(9)).train
    model = load_base(job, tmp_path, "cpu")
    model.train()
    ticks = []
    with torch.no_grad():
        expected = float(plain_loss(model, rows, "completion"))
    for batch in (1, 4, 9):
        ticks.clear()
        assert held_out_loss(model, rows, batch, 2, lambda: ticks.append(1)) == pytest.approx(expected, rel=1e-5)
        assert len(ticks) == -(-9 // batch)
    assert model.training, "the mode is restored"


@pytest.mark.parametrize("loss", [packed_loss, lambda *given: held_out_loss(*given[:3], 2, *given[3:])])
def test_held_out_loss_of_long_answers_takes_fewer_rows_a_pass(model_folder, tmp_path, monkeypatch, loss):
    """As many logits as fit, whatever eval.batch_size says; the figure is the same."""
    job = parsed(model_folder)
    rows = dataset(job, tmp_path, tiny.rows(24)).train
    model = load_base(job, tmp_path, "cpu")
    sizes = []
    model.register_forward_hook(lambda module, given, out: sizes.append(out.logits.shape[:2].numel()))
    expected = loss(model, rows, 24, lambda: None)
    most, passes = max(sizes), len(sizes)
    assert passes == 1, "short answers share a pass"
    sizes.clear()
    monkeypatch.setattr("train_entry.held_out.PLACES", most // 4)
    assert loss(model, rows, 24, lambda: None) == pytest.approx(expected, rel=1e-5)
    assert max(sizes) <= most // 4 + 24 and len(sizes) >= 4
    monkeypatch.setattr("train_entry.held_out.PLACES", 1)
    assert loss(model, rows, 24, lambda: None) == pytest.approx(expected, rel=1e-5)
    assert len(sizes) >= 24, "one row a pass is the least"


def test_step_shares_are_exact_for_every_batch_size(model_folder):
    for batch in range(1, 40):
        for world in (w for w in (1, 2, 4) if batch % w == 0):
            job = parsed(model_folder, train={"batch_size": batch, "micro_batch": 6})
            micro, passes = micro_batches(job, "cpu", world)
            assert micro * passes * world == batch and micro <= 6


def test_batch_that_can_not_be_shared_out_is_refused(model_folder):
    from train_entry.failure import JobError

    with pytest.raises(JobError, match=r"train\.batch_size 5 can't be shared out over 2"):
        micro_batches(parsed(model_folder, train={"batch_size": 5}), "cpu", 2)
