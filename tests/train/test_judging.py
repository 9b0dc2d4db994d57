"""Judging: label scores equal their definition, free answers ignore the batch, nothing stays changed."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from test_tokens import dataset, parsed

from train_entry import evaluate
from train_entry.data import completion_ids
from train_entry.failure import JobError
from train_entry.models import load_base, load_tokenizer, with_tuning
from train_entry.stop import Stopped


def still() -> None:
    """No one asks to stop."""


@pytest.fixture
def setting(model_folder, tmp_path) -> Any:
    """(job, tokenizer, model with a LoRA that changes its answers, held-out rows)."""
    job = parsed(model_folder, eval={"batch_size": 3, "generation": True})
    found = dataset(job, tmp_path, tiny.rows(8), held_out=7)
    model = with_tuning(load_base(job, tmp_path, "cpu"), job)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return job, load_tokenizer(job, tmp_path), model, found


def naive_scores(model: Any, tokenizer: Any, rows: Any, labels: Any) -> list[list[float]]:
    """One forward pass a label: the mean log-probability of its tokens and the end of turn."""
    scores = []
    for row in rows:
        scores.append([])
        for label in labels:
            answer = completion_ids(tokenizer, label)
            ids = torch.tensor([[*row.prompt, *answer]])
            with torch.no_grad():
                logprob = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            first = len(row.prompt) - 1
            scores[-1].append(sum(logprob[first + k, t].item() for k, t in enumerate(answer)) / len(answer))
    return scores


def test_packed_label_scores_equal_plain_and_naive_ones(setting):
    job, tokenizer, model, found = setting
    model.eval()
    labels = (*found.labels, "refund help")  # one label that begins as another does
    naive = naive_scores(model, tokenizer, found.held_out, labels)
    assert evaluate._takes_block_masks(model)
    packed = evaluate.label_scores(model, tokenizer, job, found.held_out, labels, still)
    branches = [evaluate._label_tokens(tokenizer, job, row, labels) for row in found.held_out]
    with torch.no_grad():
        plain = evaluate._score_plain(model, [list(e.prompt) for e in found.held_out], branches)
    torch.testing.assert_close(torch.tensor(plain), torch.tensor(naive), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(packed), torch.tensor(naive), rtol=1e-4, atol=1e-4)


def test_label_scores_do_not_depend_on_how_rows_are_packed(setting, monkeypatch):
    job, tokenizer, model, found = setting
    model.eval()
    whole = evaluate.label_scores(model, tokenizer, job, found.held_out, found.labels, still)
    monkeypatch.setattr(evaluate, "PACK_TOKENS", 40)  # smaller than one row with its labels
    alone = evaluate.label_scores(model, tokenizer, job, found.held_out, found.labels, still)
    torch.testing.assert_close(torch.tensor(alone), torch.tensor(whole), rtol=1e-4, atol=1e-4)


def test_packs_cover_every_row_once_within_both_bounds(setting, monkeypatch):
    _, _, _, found = setting
    rows, branches = found.held_out, [[[1, 2]] * 4] * len(found.held_out)
    monkeypatch.setattr(evaluate, "PACK_TOKENS", 90)
    packs = list(evaluate._packs(rows, branches, 3))
    assert [i for start, end in packs for i in range(start, end)] == list(range(len(rows)))
    for start, end in packs:
        assert end - start == 1 or (
            end - start <= 3 and sum(len(rows[i].prompt) + 8 for i in range(start, end)) <= 90
        )


def test_free_answers_of_a_padded_batch_equal_those_one_at_a_time(setting):
    _, tokenizer, model, found = setting
    model.eval()
    together = evaluate.generate(model, tokenizer, found.held_out, 8, 7, still)
    alone = [evaluate.generate(model, tokenizer, [row], 8, 1, still)[0] for row in found.held_out]
    assert together == alone
    assert len(set(alone)) > 1, "answers must depend on the prompt for this test"
    row = found.held_out[0]
    ids = list(row.prompt)
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    assert tokenizer.decode(ids[len(row.prompt) :], skip_special_tokens=True).strip() == alone[0]


def test_judging_restores_mode_and_cache_also_when_it_is_stopped(setting, tmp_path):
    job, tokenizer, model, found = setting
    model.train()
    metrics, answers = evaluate.judge(model, tokenizer, job, found.held_out, found.labels, tmp_path, still)
    assert model.training and model.config.use_cache is False
    assert len(answers) == 7 and set(answers) <= set(found.labels)
    assert metrics["generation"]["method"] == "generation"

    def stop() -> None:
        raise Stopped("signal")

    with pytest.raises(Stopped):
        evaluate.judge(model, tokenizer, job, found.held_out, found.labels, tmp_path, stop)
    assert model.training and model.config.use_cache is False


def test_users_scorer_is_called_with_rows_and_answers(setting, tmp_path):
    job, tokenizer, model, found = setting
    (tmp_path / "mine.py").write_text(
        "def score(rows, answers):\n"
        "    assert rows[0]['messages'][0]['role'] == 'user'\n"
        "    return {'hits': sum(r['answer'] == a for r, a in zip(rows, answers)), 'n': len(rows)}\n"
    )
    job = parsed(job.model.id, eval={"scorer": "mine.py", "generation": False})
    metrics, answers = evaluate.judge(model, tokenizer, job, found.held_out, found.labels, tmp_path, still)
    hits = sum(e.row.answer == a for e, a in zip(found.held_out, answers, strict=True))
    assert metrics["scorer"] == {"hits": hits, "n": 7}
    (tmp_path / "mine.py").write_text("def score(rows, answers): return 1 / 0\n")
    with pytest.raises(JobError, match=r"eval\.scorer mine\.py: ZeroDivisionError"):
        evaluate.judge(model, tokenizer, job, found.held_out, found.labels, tmp_path, still)


def test_nothing_asks_a_hub_for_a_metric():
    sources = (tiny.ROOT / "train_entry").glob("*.py")
    assert not [
        p.name for p in sources if "import evaluate\n" in p.read_text() or "evaluate.load" in p.read_text()
    ]
