"""Rows laid out as a tree: every answer is predicted from its own row, whatever the rows are."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from test_loss import gradients, plain_loss
from test_packing import examples, tuned

from train_entry.data import Example
from train_entry.packing import as_tokens
from train_entry.prefix import PrefixCollator, lay_out, packs_of, rows_in_packs, width_of


def test_a_shared_token_is_computed_once_and_a_branch_keeps_one_of_its_prompt():
    rows = [((1, 2, 3, 4), (7, 0)), ((1, 2, 3, 4), (8, 0)), ((1, 2, 5), (9, 0)), ((6,), (9, 9, 0))]
    pack = lay_out(rows)
    # The last token of an answer predicts nothing.
    assert pack.ids == [1, 2, 3, 4, 7, 4, 8, 5, 9, 6, 9, 9]
    assert pack.positions == [0, 1, 2, 3, 4, 3, 4, 2, 3, 0, 1, 2]
    assert pack.targets == [-100] * 3 + [7, 0, 8, 0, 9, 0, 9, 9, 0]
    seen = [{pack.ids[j] for j, yes in enumerate(line) if yes} for line in pack.mask(12).tolist()]
    assert seen[6] == {1, 2, 3, 4, 8} and seen[8] == {1, 2, 5, 9} and seen[9] == {6}


def any_rows(draw, count):
    """Rows of few different tokens, so that they share by chance too: equal ones, prompts that begin others, short
    prompts and answers of one token, and some that no budget holds."""
    rows = []
    for _ in range(count):
        stem = list(draw.choice(rows)[0]) if rows and draw.random() < 0.7 else []
        stem = stem[: draw.randint(0, len(stem))]
        tail = [draw.randint(3, 6) for _ in range(draw.choice([0, 1, 2, 5, 30]))]
        prompt = [*stem, *tail] or [draw.randint(3, 6)]
        rows.append((tuple(prompt), (*[draw.randint(3, 6) for _ in range(draw.choice([0, 1, 4]))], 1)))
        if draw.random() < 0.2:
            rows.append(rows[-1])
    return rows


def learnt_of(rows):
    """(what stands before, token) of everything that is learnt of the rows."""
    wholes = [([*prompt, *answer], len(prompt)) for prompt, answer in rows]
    return Counter((tuple(w[:at]), w[at]) for w, start in wholes for at in range(start, len(w)))


def learnt_in(packs, width):
    """The same, read from the packs as a model reads them: by mask and positions alone."""
    found = Counter()
    for pack in packs:
        mask, padding = pack.mask(width), width - len(pack)
        assert not mask[: len(pack), len(pack) :].any() and not mask[len(pack) :, : len(pack)].any()
        assert mask.any(dim=1).all(), "a row of the mask that is empty gives no number"
        assert len(pack.ids) == len(pack.positions) == len(pack.targets) == width - padding
        for place, target in enumerate(pack.targets):
            if target != -100:
                seen = sorted((pack.positions[j], pack.ids[j]) for j in mask[place].nonzero().flatten().tolist())
                assert [position for position, _ in seen] == list(range(len(seen))), "each position once"
                found[tuple(token for _, token in seen), target] += 1
    return found


def test_whatever_the_rows_are_a_pack_predicts_their_answers_from_what_stands_before_them():
    for seed in range(300):
        draw = random.Random(seed)
        rows = any_rows(draw, draw.randint(1, 12))
        packs = packs_of(rows, draw.choice([1, 20, 60, 2048]))
        assert learnt_in(packs, width_of(packs)) == learnt_of(rows), f"seed {seed}"


def test_whatever_the_rows_are_their_packed_loss_is_theirs_alone(model_folder, tmp_path):
    _, _, model = tuned(model_folder, tmp_path)
    where = examples(1)[0].row
    for seed in range(12):
        draw = random.Random(seed)
        rows = [Example(where, *row) for row in any_rows(draw, draw.randint(2, 12))]
        batch = PrefixCollator(draw.choice([20, 60, 2048]))([as_tokens(row, "completion") for row in rows])
        batch.pop("row_tokens")
        with torch.no_grad():
            loss = model(**batch, use_cache=False).loss
            assert float(loss) == pytest.approx(float(plain_loss(model, rows, "completion")), rel=1e-4), (
                f"seed {seed}"
            )


def test_packs_keep_within_the_budget_and_lose_no_row():
    rows = [(e.prompt, e.completion) for e in examples(40, prefixes=(24, 30))]
    for budget in (1, 50, 100, 10_000):
        packs = packs_of(rows, budget)
        assert all(len(p) <= budget or len(p.above) == 1 for p in packs)
        assert sum(t != -100 for p in packs for t in p.targets) == sum(len(c) for _, c in rows)
    assert len(packs) == 1


def test_rows_can_be_read_back_from_their_packs():
    rows = examples(8, prefixes=(24, 12))
    batch = PrefixCollator(50)([as_tokens(row, "completion") for row in rows])
    found = rows_in_packs(batch)
    assert {(*e.prompt, *e.completion[:-1]) for e in rows} <= set(found)


def test_several_packs_of_one_pass_give_the_same_loss(model_folder, tmp_path):
    rows = examples(8, prefixes=(24, 12))
    _, _, model = tuned(model_folder, tmp_path)
    batch = PrefixCollator(50)([as_tokens(row, "completion") for row in rows])
    assert batch["input_ids"].shape[0] > 2
    batch.pop("row_tokens")
    with torch.no_grad():
        loss = model(**batch, use_cache=False).loss
        assert float(loss) == pytest.approx(float(plain_loss(model, rows, "completion")), rel=1e-5)


def test_attention_by_segments_is_attention_under_the_mask(model_folder, tmp_path):
    """Loss and gradients of random trees; the model gets a mask that would let every token see all."""
    _, _, model = tuned(model_folder, tmp_path)
    where = examples(1)[0].row
    for seed in range(8):
        draw = random.Random(seed)
        rows = [Example(where, *row) for row in any_rows(draw, draw.randint(2, 12))]
        batch = PrefixCollator(draw.choice([20, 2048]))([as_tokens(row, "completion") for row in rows])
        batch.pop("row_tokens")
        found = []
        for change in ({"trees": None}, {"attention_mask": torch.ones_like(batch["attention_mask"])}):
            model.zero_grad()
            loss = model(**{**batch, **change}, use_cache=False).loss
            loss.backward()
            found.append((loss.item(), gradients(model)))
        assert found[1][0] == pytest.approx(found[0][0], rel=1e-5), f"seed {seed}"
        for part, gradient in found[0][1].items():
            torch.testing.assert_close(found[1][1][part], gradient, rtol=1e-4, atol=1e-5)
