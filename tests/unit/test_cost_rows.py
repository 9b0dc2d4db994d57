"""The accuracy benchmark takes any row: a figure, or a reason why there is none; never a crash."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cost_accuracy import main, predictions
from bench.cost_rows import NoCase, Row, case_of, is_hf, time_truth

COLUMNS = [
    "source", "url_or_repo_path", "date", "model", "params_b", "method", "gpu", "n_gpus", "seq_len",
    "global_batch", "precision", "packing_or_avg_tokens", "tokens_per_s_per_gpu", "peak_mem_gib_per_gpu",
    "hours", "notes", "micro_batch", "sec_per_microbatch", "grad_ckpt", "stack", "mem_metric",
    "peak_tokens_per_micro", "arch", "lora_params", "opt", "quant", "score_time", "score_mem", "group",
]  # fmt: skip
WORDS = [
    "", "0", "1", "2", "8", "64", "512", "4096", "-1", "1e300", "nan", "inf", "abc", "lora", "qlora", "full",
    "grpo", "lora-dpo", "A100-80GB", "H100-SXM", "TPU v5e", "(unstated)", "r16:all", "r8:101110", "r8:", "nf4",
    "nf4dq", "gptq4", "int8", "eager", "eager_fa", "optimized", "megatron_fp8", "other", "fp8", "bf16",
    "adamw_bf16", "llama3-8b", "qwen-14b", "mamba", "litgpt_A10G", "qwen_lora", "mlperf_B200_v5.1",
    "published \"G\"", "max_reserved", "unpacked Alpaca", "packed 4096", "unpacked, 209.9 tok/sample avg",
]  # fmt: skip


def row(**fields: str) -> Row:
    """A LoRA run of Llama 3 8B with plain transformers on one A100."""
    given_ = {
        "model": "Llama 3 8B", "method": "lora", "gpu": "A100-80GB", "n_gpus": "1", "seq_len": "1024",
        "micro_batch": "2", "global_batch": "2", "arch": "llama3-8b", "lora_params": "r16:all", "stack": "eager",
        "opt": "adamw_fp32lora", "grad_ckpt": "1", "score_time": "1", "score_mem": "1", "group": "trl",
        "sec_per_microbatch": "0.5", "peak_mem_gib_per_gpu": "20", "date": "2025-01-01", **fields,
    }  # fmt: skip
    return {name: given_.get(name, "") for name in COLUMNS}


@given(st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(WORDS), max_size=8))
def test_any_row_is_answered(changed: dict[str, str]) -> None:
    for prediction in predictions([{**row(), **changed, "score_time": "1", "score_mem": "1"}]):
        assert (prediction.band is None) == bool(prediction.why)
        if prediction.band:
            assert 0 <= prediction.band.low <= prediction.band.expected <= prediction.band.high


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"gpu": "TPU v5e"}, "TPU v5e"),
        ({"gpu": ""}, "not stated"),
        ({"arch": "mamba", "model": "Mamba 2"}, "Mamba 2"),
        ({"micro_batch": ""}, "not given"),
    ],
)
def test_what_is_unknown_is_refused_with_a_reason(fields: dict[str, str], why: str) -> None:
    with pytest.raises(NoCase, match=why):
        case_of(row(**fields))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"gpu": "CPU"}, "CPU"),
        ({"quant": "awq-int3"}, "awq-int3"),
        ({"quant": "int8"}, "int8"),
        ({"gpu": "NVIDIA Mystery 9000"}, "Mystery"),
    ],
)
def test_odd_rows_are_null_and_say_why(fields: dict[str, str], why: str) -> None:
    found = list(predictions([row(**fields)]))
    assert [one.as_json()["expected"] for one in found] == [None, None]
    assert all(why in (one.why or "") for one in found)


def test_columns_that_are_missing_cut_off_or_unknown_are_no_crash() -> None:
    short: dict[str, object] = {"gpu": "L4", "score_time": "1", "score_mem": "1.0"}
    assert [one.band for one in predictions([short])] == [None, None]
    cut = {**row(), "notes": None, "group": None, "quant": None}  # as csv.DictReader reads a short line
    more = {**row(), None: ["beside"], "tokens": 3}
    for odd in (cut, more):
        assert all(one.band for one in predictions([odd]))


@pytest.mark.parametrize(
    ("usual", "other"),
    [
        ({"stack": "eager"}, {"stack": "Eager "}), ({"stack": "optimized"}, {"stack": "compiled"}),
        ({"quant": "nf4dq", "method": "qlora"}, {"quant": "NF4-DQ", "method": "qlora"}),
        ({"quant": ""}, {"quant": "none"}),
    ],
)  # fmt: skip
def test_another_spelling_is_the_same_run(usual: dict[str, str], other: dict[str, str]) -> None:
    first, second = ([one.band for one in predictions([row(**fields)])] for fields in (usual, other))
    assert first == second and all(first)


def test_an_unknown_stack_has_a_wide_band() -> None:
    known, unknown = (next(iter(predictions([row(stack=stack)]))).band for stack in ("eager", "mystery"))
    assert known and unknown
    assert unknown.high / unknown.low > 1.5 * known.high / known.low


def test_reinforcement_learning_is_refused() -> None:
    assert [p.band for p in predictions([row(method="grpo")])] == [None, None]


def test_the_truth_is_the_time_of_a_micro_batch() -> None:
    assert time_truth(row()) == 0.5
    by_rate = row(sec_per_microbatch="", tokens_per_s_per_gpu="4096", micro_batch="2", seq_len="1024")
    assert time_truth(by_rate) == 0.5


def test_unpacked_rows_are_shorter_than_the_limit() -> None:
    stated = case_of(row(packing_or_avg_tokens="unpacked, 209.9 tok/sample avg", micro_batch="1")).recipe
    assert stated.tokens == pytest.approx(209.9)
    assert stated.mixed_lengths
    assert case_of(row(packing_or_avg_tokens="packed to seq_len")).recipe.tokens == 2048


def test_frameworks_built_on_transformers_are_judged_apart() -> None:
    assert is_hf(row(group="torchtune", stack="optimized"))
    assert not is_hf(row(group="llmfoundry_a100_80gb", stack="optimized"))


def test_json_is_one_object_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows([row(), row(gpu="TPU v5e", score_mem="0")])
    assert main([str(file), "--json"]) == 0
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(f["row"], f["what"]) for f in figures] == [(0, "time"), (0, "memory"), (1, "time")]
    assert set(figures[0]) == {"row", "what", "group", "low", "expected", "high", "truth"}
    assert figures[2]["expected"] is None
    assert figures[2]["truth"] == 0.5
    assert main([str(file)]) == 0
    assert "1 refused" in capsys.readouterr().out
