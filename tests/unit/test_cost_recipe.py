"""The recipe of a job is what train_entry does with it."""

from __future__ import annotations

import ast
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost.band import Band
from cost.gpus import find_gpu
from cost.recipe import (
    MICRO_BATCH,
    NF4_BYTES,
    NF4_DOUBLE_BYTES,
    Recipe,
    Rows,
    longest_of,
    micro_batches,
    modules_of,
    recipe_of,
)
from cost.shapes import known_shape
from cost.throughput import micro_batch_s
from launcher.spec import JobSpec

LLAMA = known_shape("llama-3.1-8b")
ROWS = Rows.of(lengths=[100] * 5 + [200] * 5, answers=[10] * 10)


def job(**fields: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"name": "x", "model": "a/b", "task": "generation", "data": {"train": "t.jsonl"}, **fields}
    )


def made(rows: Rows = ROWS, gpus: int = 1, nodes: int = 1, **fields: Any) -> Recipe:
    found = recipe_of(job(**fields), LLAMA, find_gpu("A100-80GB"), rows, gpus=gpus, nodes=nodes)
    assert found is not None
    return found


def test_the_default_micro_batch_is_train_entrys() -> None:
    source = Path("train_entry/trainers.py").read_text(encoding="utf-8")
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    found = [node.value for node in assigned if "GPU_MICRO_BATCH" in ast.unparse(node.targets[0])]
    assert [ast.literal_eval(value)[1] for value in found] == [MICRO_BATCH]


@given(st.integers(1, 64), st.one_of(st.none(), st.integers(1, 32)), st.integers(1, 8))
def test_a_batch_is_shared_out_exactly_or_not_at_all(batch: int, wanted: int | None, ranks: int) -> None:
    split = micro_batches(batch, wanted, ranks)
    if split is None:
        assert batch % ranks
        return
    micro, passes = split
    assert micro * passes * ranks == batch
    assert micro <= (wanted or MICRO_BATCH)


def test_the_docstrings_examples() -> None:
    assert micro_batches(16, 3, 2) == (2, 4)
    assert longest_of([10, 20], 2) == pytest.approx(17.5)


def test_the_longest_of_some_rows_by_trying_all() -> None:
    lengths = [3, 5, 5, 9]
    assert longest_of(lengths, 3) == pytest.approx(statistics.mean(map(max, product(lengths, repeat=3))))


def test_rows_without_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Rows.of([], [])


def test_padded_rows_are_as_wide_as_their_longest() -> None:
    found = made(train={"micro_batch": 2, "batch_size": 8})
    assert found.tokens == pytest.approx(2 * (0.25 * 100 + 0.75 * 200))
    assert found.peak_tokens == 400
    assert found.span == found.tokens  # a masked half is not skipped: twice the width of each row
    assert (found.accumulation, found.mixed_lengths) == (4, True)


def test_packed_rows_are_whole_sequences() -> None:
    found = made(train={"packing": True, "micro_batch": 2}, data={"train": "t.jsonl", "max_length": 512})
    assert (found.tokens, found.peak_tokens, found.span) == (1024, 1024, 1024)
    assert not found.mixed_lengths
    assert found.peak_head_tokens == 0


def test_short_answers_get_logits_at_their_columns_only() -> None:
    found = made(train={"micro_batch": 2})
    assert (found.head_tokens, found.peak_head_tokens) == (20, 20)


def test_long_answers_go_through_the_head_that_holds_no_logits() -> None:
    rows = Rows.of(lengths=[100] * 4, answers=[90] * 4)
    assert made(rows).head_tokens == pytest.approx(0.9 * 4 * 100)
    # A batch that falls under half of the columns would hold that many.
    assert made(rows).peak_head_tokens == 4 * 100 / 2
    assert made(rows, train={"loss_on": "all"}).head_tokens == 4 * 100
    assert made(rows, train={"loss_on": "all"}).peak_head_tokens == 0


def test_lora_keeps_a_bf16_base_and_fp32_adapters() -> None:
    found = made()
    assert (found.linear_bytes, found.outer_bytes, found.quant) == (2, 2, None)
    assert (found.trained_bytes, found.gradient_bytes, found.optimizer_bytes) == (6, 4, 8)
    assert found.trained == 41_943_040
    assert found.checkpointing


def test_qlora_keeps_four_bits_and_an_fp32_rest() -> None:
    found = made(tuning="qlora")
    assert (found.quant, found.linear_bytes, found.outer_bytes) == ("nf4", NF4_DOUBLE_BYTES, 4)
    assert found.residual_bytes == 4
    assert pytest.approx(0.5159, abs=1e-4) == NF4_DOUBLE_BYTES
    assert pytest.approx(0.5625) == NF4_BYTES


def test_full_tuning_keeps_fp32_masters_unless_told_otherwise() -> None:
    found = made(tuning="full")
    assert (found.linear_bytes, found.cast_bytes, found.gradient_bytes, found.optimizer_bytes) == (4, 2, 4, 8)
    assert found.trained == LLAMA.params
    pure = made(tuning="full", model={"id": "a/b", "dtype": "bfloat16"})
    assert (pure.linear_bytes, pure.cast_bytes, pure.gradient_bytes, pure.optimizer_bytes) == (2, 0, 2, 4)


def test_dropout_makes_a_copy_of_every_adapters_input() -> None:
    with_dropout, without = made(), made(tuning={"kind": "lora", "dropout": 0})
    assert with_dropout.stack.adapter.kept > without.stack.adapter.kept


def test_checkpoints_run_a_block_again_up_to_its_last_adapter() -> None:
    assert made().recomputed == 1
    assert made(tuning={"kind": "lora", "targets": ["q_proj"]}).recomputed == pytest.approx(0.731, abs=0.001)
    assert made(train={"gradient_checkpointing": False}).recomputed == 0


def test_targets_are_the_matrices_of_a_block() -> None:
    found = modules_of(LLAMA, ("q_proj", "v_proj", "down_proj"))
    assert found is not None
    assert [(m.d_in, m.d_out) for m in found] == [(4096, 4096), (4096, 1024), (14336, 4096)]
    assert len(modules_of(LLAMA, "all-linear") or ()) == 7
    assert len(modules_of(known_shape("phi-2"), "all-linear") or ()) == 6


def test_a_job_that_train_entry_refuses_has_no_recipe() -> None:
    gpu = find_gpu("A100")
    assert recipe_of(job(train={"batch_size": 10}), LLAMA, gpu, ROWS, gpus=4) is None
    unknown = job(tuning={"kind": "lora", "targets": ["router"]})
    assert recipe_of(unknown, LLAMA, gpu, ROWS) is None


def test_several_gpus_share_a_batch_out() -> None:
    found = made(gpus=4, nodes=2, train={"batch_size": 16, "micro_batch": 4})
    assert (found.ranks, found.accumulation, found.tokens) == (8, 1, made(train={"micro_batch": 2}).tokens)


def test_dora_takes_longer_than_lora_in_a_wider_band_and_calibrates_apart() -> None:
    def made(**tuning: Any) -> Recipe:
        found = recipe_of(job(tuning=tuning), LLAMA, find_gpu("A100-80GB"), Rows.of((400,), (50,)))
        assert found is not None
        return found

    plain, dora = made(), made(dora=True)
    ours, theirs = micro_batch_s(plain), micro_batch_s(dora)
    assert isinstance(ours, Band) and isinstance(theirs, Band)
    assert theirs.expected > 1.3 * ours.expected
    assert theirs.high / theirs.low > 1.5 * ours.high / ours.low
    assert dora.stack.name != plain.stack.name
    assert dora.stack.buffers_gib == pytest.approx(1.64, abs=0.01)
    assert micro_batch_s(made(dora=True, dropout=0)).expected < theirs.expected  # type: ignore[union-attr]
