"""How rows share passes: the expected time is that of the way training takes, the band reaches to the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cost.assumptions import assumptions
from cost.band import Band
from cost.calibration import PADDED, Calibration, Training
from cost.estimate import Estimator, Hardware
from cost.gpus import GPUS
from cost.ledger import training_of
from cost.packing import Ways, peak_of, ways_of
from cost.passes import Passes, PassRow, pack_tokens, passes_of, tree_pairs, tree_tokens
from cost.processor import processor_recipe
from cost.recipe import MICRO_BATCH, recipe_of
from cost.throughput import micro_batch_s
from cost.work import Work
from launcher.spec import JobSpec
from tests.unit.cost_jobs import PRICES, job, offer, work

FOUR: dict[str, Any] = {"batch_size": 4, "epochs": 1}
ALIKE = [PassRow([*range(100), 1000 + n], 20) for n in range(40)]
"""Rows of 121 tokens, of which 100 are the same in all of them."""


def alike(of: JobSpec | None = None, rows: list[PassRow] = ALIKE, known: bool = True) -> Work:
    """4,000 such rows; a step has as many as the job says, 4 of them a pass."""
    of = of or job(train=FOUR)
    lengths = sorted(map(len, rows))
    found = work(of, lengths=lengths, rows=4000, answer=rows[0].answer)
    sizes = [n for n in range(1, of.train.batch_size + 1) if of.train.batch_size % n == 0]
    return replace(found, passes_by_way=passes_of(rows, sizes, known=known))


def hardware(of: Work, calibration: Calibration | None = None) -> Hardware:
    found = Estimator(work=of, prices=PRICES, calibrations=lambda gpu, kind, stack: calibration)(offer())
    return found.hardware


def ways(of: Work, gpus: int = 1) -> Ways:
    recipe = recipe_of(of.job, of.shape, GPUS["A100-80GB"], of.rows, gpus=gpus)
    assert recipe is not None
    return ways_of(of, recipe)


def test_the_tokens_of_a_tree_by_hand() -> None:
    """1 and 2 once, then 3 or 4 and one token each; alone, every token but the last."""
    rows = [PassRow([1, 2, 3], 2), PassRow([1, 2, 4], 2)]
    assert tree_tokens(rows) == 6
    assert tree_tokens(rows[:1]) == 4
    assert tree_tokens([PassRow([], 2), PassRow([5], 2)]) == 1 + 2
    assert tree_tokens([PassRow([1, 2, 9], 1), PassRow([1, 3], 1)]) == 2 + 2, "1 is shared, 2 is not"
    assert tree_pairs(rows) == 2 * 2 + 2 * 2 * 4
    assert tree_pairs([PassRow([], 2), PassRow([5], 2), PassRow([1, 2, 9], 1), PassRow([1, 3], 1)]) == (
        1 * 1 + 2 * 2 + (1 * 1 + 2 * 3 + 1 * 2)
    ), "1 is shared by two rows, then 2 and 9 of the one, 3 of the other"
    long = [PassRow([*range(1500), n], 100) for n in range(8)]
    assert pack_tokens(long) == [1500 + 400, 1500 + 400], "no more than 2,048 a pack"


def test_what_a_pass_comes_to_by_hand() -> None:
    """4 rows: padded 4 x 121; end to end 484; as a tree 100 + 4 x 20 = 180, which is 184 wide."""
    found = {one.kind: one for one in passes_of(ALIKE, [4])}
    assert found["padded"] == Passes(kind="padded", size=4, tokens=121, pairs=121**2, widest=484, learnt=80)
    assert found["flat"] == Passes(kind="flat", size=4, tokens=121, pairs=484**2 / 4, widest=484, learnt=80)
    by_segments = 100**2 + 4 * 20 * 120 + 4**2  # what is shared, each row's own tokens, 4 of padding
    assert found["prefix"] == Passes(
        kind="prefix", size=4, tokens=46, pairs=184**2 / 4, tree_pairs=by_segments / 4, widest=184, learnt=80
    )


def test_the_expected_time_is_that_of_the_way_that_training_takes() -> None:
    """Llama 3.1 8B: 46 tokens for a row instead of 121 cost 0.35 + 0.004 of 0.91 + 0.008 TFLOP, so it is a tree:
    passes of 184 tokens, attention over all 184, 80 of them learnt, 1,000 passes."""
    of = alike()
    chosen = ways(of).chosen
    recipe = chosen.recipe
    assert (chosen.kind, chosen.size) == ("prefix", 4)
    assert (recipe.tokens, recipe.span, recipe.head_tokens, recipe.accumulation) == (184, 368, 80, 1)
    step = micro_batch_s(recipe)
    assert isinstance(step, Band)
    found = hardware(of)
    assert found.hours is not None and found.hours.train_s == pytest.approx(1000 * step.expected)
    assert found.recipe is not None and found.recipe.tokens == pytest.approx(484), "memory is that of padded rows"
    assert training_of(found, "lora") == Training(
        gpu="A100-80GB", kind="lora", stack="trainer", step_s=step.expected, way="prefix",
        peak_gib=found.peak_gib,
    )  # fmt: skip


def test_the_band_reaches_to_the_other_ways() -> None:
    found = hardware(alike())
    padded = micro_batch_s(ways(alike()).padded.recipe)
    assert isinstance(padded, Band) and found.hours is not None
    assert found.hours.reaches == ("padded",)
    assert 3600 * found.hours.useful.high > 1000 * padded.expected
    said = "\n".join(assumptions(alike(), [Estimator(work=alike(), prices=PRICES)(offer())]))
    assert "computed once a pass, as training will choose it; the band reaches to padded rows" in said


def test_a_model_that_takes_no_mask_pads_and_may_be_better() -> None:
    found = ways(alike(job(model="google/gemma-2-9b", train=FOUR)))
    assert found.chosen.kind == "padded"
    assert [one.kind for one in found.others] == ["prefix"]


def test_rows_of_mixed_lengths_go_end_to_end() -> None:
    mixed = [PassRow([n, *range(40 if n % 2 else 600)], 20) for n in range(40)]
    found = ways(alike(rows=mixed))
    assert found.chosen.kind == "flat"
    assert found.chosen.recipe.tokens == pytest.approx(found.chosen.size * 340.5, rel=0.03)


def test_a_gpu_has_no_fewer_rows_a_pass_than_padding_for_kernels_to_be_launched_for() -> None:
    """End to end, tokens are as many at every size and pairs fewer at 1 row: a processor takes that one."""
    every = job(train={"batch_size": 16, "loss_on": "all"})
    mixed = alike(every, [PassRow([n, *range(40 if n % 2 else 600)], 20) for n in range(40)])
    on_gpu = ways(mixed).chosen
    assert (on_gpu.kind, on_gpu.size, on_gpu.recipe.accumulation) == ("flat", MICRO_BATCH, 16 // MICRO_BATCH)
    recipe = processor_recipe(mixed)
    assert recipe is not None
    on_processor = ways_of(mixed, recipe).chosen
    assert (on_processor.kind, on_processor.size) == ("flat", 1)


def test_a_processor_leaves_out_pairs_that_a_mask_would_hide() -> None:
    """8 rows of 250 tokens that share 30: under a mask every token sees 1784 places, by segments 249 at most. So
    the tree's 223 tokens a row are worth it where no mask is."""
    rows = [PassRow([*range(30), 1000 + n, *range(199)], 20) for n in range(40)]
    apart = alike(job(train={"batch_size": 8}), rows)
    assert ways(apart).chosen.kind == "padded"
    tree = next(one for one in apart.passes_by_way if (one.kind, one.size) == ("prefix", 8))
    assert tree.tree_pairs is not None and tree.tree_pairs < tree.pairs / 7
    recipe = processor_recipe(apart)
    assert recipe is not None
    found = ways_of(apart, recipe)
    assert (found.chosen.kind, found.chosen.size) == ("prefix", 8)
    assert found.chosen.recipe.span == pytest.approx(2 * tree.tree_pairs / tree.tokens)


def test_more_rows_share_a_pass_as_long_as_memory_stays_what_padding_takes() -> None:
    """16 rows a step: 8 rows of a tree have 100 + 8 x 20 = 260 tokens, 16 have 420; padded passes have 484."""
    found = ways(alike(job(train={"batch_size": 16})))
    assert (found.chosen.size, found.chosen.recipe.accumulation) == (16, 1)
    named = ways(alike(job(train={"batch_size": 16, "micro_batch": 2})))
    assert (named.chosen.size, named.chosen.recipe.accumulation) == (2, 8)
    shared_out = ways(alike(job(train={"batch_size": 16})), gpus=4)
    assert (shared_out.chosen.size, shared_out.chosen.recipe.accumulation) == (4, 1)


def test_the_peak_of_a_few_steps_is_not_that_of_the_longest_row() -> None:
    """Two steps of 4 rows draw 8 of 1,000, of which one is 2,000 long: 100 + 1,900 x (1 - 0.999**8) = 115.2."""
    of = work(job(train={**FOUR, "packing": False, "dry_run_steps": 2}), lengths=[100] * 999 + [2000], rows=1000)
    way = ways(of).chosen
    assert peak_of(of, way).peak_tokens == pytest.approx(4 * 115.2, abs=1)
    whole = work(job(train={**FOUR, "packing": False}), lengths=[100] * 999 + [2000], rows=1000)
    assert peak_of(whole, way).peak_tokens == 4 * 2000


@pytest.mark.parametrize(
    "train", [{"packing": False}, {"packing": True}, {"loss_on": "all"}], ids=["padded", "sequences", "all learnt"]
)
def test_what_training_will_not_pack_stays_as_it_is(train: dict[str, object]) -> None:
    of = alike(job(train={**FOUR, **train}))
    assert ways(of).chosen.kind == "padded" and ways(of).others == ()
    assert hardware(of).hours == hardware(replace(of, passes_by_way=())).hours


def test_without_a_tokenizer_nobody_knows_what_rows_share() -> None:
    assert ways(alike(known=False)).chosen.kind == "padded"


def test_jobs_with_the_same_rows_have_told_which_way_it_goes() -> None:
    known = Calibration(factor=3.0, low=2.5, high=3.6, n=1, source="1 earlier job of yours", packed=True)
    plain, told = hardware(alike()).hours, hardware(alike(), known).hours
    assert plain is not None and told is not None
    assert told.reaches == ()
    assert told.train_s == pytest.approx(3 * plain.train_s)


def test_what_padded_rows_say_of_a_gpu_counts_until_packed_ones_have_run() -> None:
    def look(gpu: str, kind: str, stack: str) -> Calibration | None:
        return known.get(stack)

    padded = Calibration(factor=1.5, low=1.3, high=1.8, n=1, source="padded")
    known = {"trainer": padded}
    estimator = Estimator(work=alike(), prices=PRICES, calibrations=look)
    assert estimator(offer()).hardware.calibration == padded
    known["trainer, prefix rows"] = replace(padded, source="prefix")
    estimator = Estimator(work=alike(), prices=PRICES, calibrations=look)
    found = estimator(offer()).hardware.calibration
    assert found is not None and found.source == "prefix"
    known.clear()
    known["trainer"] = replace(padded, packed=True)  # an older record: a tree, against padded rows as the model
    assert Estimator(work=alike(), prices=PRICES, calibrations=look)(offer()).hardware.calibration is None


def test_a_record_from_before_ways_were_kept_is_one_of_padded_rows() -> None:
    old = Training.read({"gpu": "L4", "kind": "lora", "stack": "trainer", "step_s": 2.0})
    assert old is not None and old.way == PADDED and old.key == ("L4", "lora", "trainer")
    new = replace(old, way="prefix")
    assert new.key == ("L4", "lora", "trainer, prefix rows")
    assert Training.read(new.as_json()) == new
