"""The shape of a model is right when its parameters add up to the published number, to the last one."""

from __future__ import annotations

from typing import Any

import pytest

from cost.shapes import KNOWN_MODELS, ModelShape, known_shape, shape_from_config
from launcher.errors import ConfigError

PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-chat-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B-Instruct": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "codellama/CodeLlama-7b-hf": 6_738_546_688,
    "codellama/CodeLlama-34b-Instruct-hf": 33_743_970_304,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Instruct-2407": 12_247_782_400,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "mistralai/Mistral-Large-Instruct-2407": 122_610_069_504,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b-it": 8_537_680_896,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b-it": 27_227_128_320,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-3-4b-pt": 3_880_263_168,
    "google/gemma-3-12b-it": 11_766_034_176,
    "google/gemma-3-27b-it": 27_009_346_304,
    "microsoft/phi-1_5": 1_418_270_720,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3-medium-128k-instruct": 13_960_238_080,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-xl": 1_557_611_200,
    "tiiuae/falcon-40b": 41_303_293_952,
}
"""As the hub states them (tied heads once, gemma-3's language part alone), or as transformers 5.23 counts them."""

CONFIGS: list[tuple[dict[str, Any], int]] = [
    (
        {
            "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
            "vocab_size": 65024, "multi_query": True,
        },
        6_921_720_704,
    ),
    ({"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "vocab_size": 50432}, 6_649_286_656),
    (
        {
            "model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24,
            "num_attention_heads": 32, "vocab_size": 50272, "max_position_embeddings": 2048,
        },
        1_315_758_080,
    ),
    (
        {
            "model_type": "gpt_neox", "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
            "num_attention_heads": 64, "vocab_size": 50432, "tie_word_embeddings": False,
        },
        20_554_567_680,
    ),
    (
        {
            "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632, "vocab_size": 151936,
            "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4,
        },
        14_315_784_192,
    ),
    (
        {
            "model_type": "starcoder2", "hidden_size": 3072, "intermediate_size": 12288, "vocab_size": 49152,
            "num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2,
        },
        3_030_371_328,
    ),
]  # fmt: skip
"""config.json's of other architectures, against transformers' own count of their parameters (5.23)."""


@pytest.mark.parametrize(("model_id", "params"), PUBLISHED.items())
def test_a_common_model_has_its_published_parameters(model_id: str, params: int) -> None:
    assert known_shape(model_id).params == params


def test_every_built_in_model_is_checked_against_a_published_number() -> None:
    checked = {known_shape(model_id).params for model_id in PUBLISHED}
    assert {known_shape(name).params for name in KNOWN_MODELS} <= checked


@pytest.mark.parametrize(("config", "params"), CONFIGS, ids=[str(c["model_type"]) for c, _ in CONFIGS])
def test_a_config_has_the_parameters_that_transformers_counts(config: dict[str, Any], params: int) -> None:
    assert shape_from_config(config).params == params


def test_the_docstrings_example() -> None:
    shape = known_shape("llama-3.1-8b")
    assert (shape.block_params, shape.embedding_params, shape.vectors) == (6_979_321_856, 525_336_576, 266_240)


def test_a_mixture_computes_with_its_active_experts_only() -> None:
    shape = known_shape("Qwen/Qwen3-30B-A3B")
    active = shape.active_block_params + 2 * shape.embedding_params
    assert active == pytest.approx(3.35e9, rel=0.01)  # "3.3B activated"
    assert shape.block_params > 9 * shape.active_block_params


def test_a_model_that_also_sees_counts_its_language_part() -> None:
    text = {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
    }  # fmt: skip
    assert shape_from_config({"model_type": "gemma3", "text_config": text}).params == 3_880_263_168


@pytest.mark.parametrize(
    ("wrong", "right"), [("Qwen/Qwen2.5-8B", "qwen2.5-7b"), ("meta-llama/Lama-3.1-8B", "llama-3.1-8b")]
)
def test_an_unknown_model_gets_a_guess(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        known_shape(wrong)
    assert wrong in caught.value.message
    assert f"did you mean {right}?" in (caught.value.hint or "")


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(ConfigError) as caught:
        shape_from_config({"model_type": "mamba2", "hidden_size": 1}, "some/model")
    assert "'mamba2' of some/model" in caught.value.message


def test_a_config_without_a_size_names_it() -> None:
    with pytest.raises(ConfigError) as caught:
        shape_from_config({"model_type": "llama", "hidden_size": 64}, "some/model")
    assert "some/model has no num_hidden_layers" in caught.value.message


def test_the_last_matrix_is_a_third_of_a_plain_block_and_less_of_a_gated_one() -> None:
    plain = ModelShape(
        name="x", layers=2, hidden=64, ffn=256, heads=4, kv_heads=4, head_dim=16, vocab=10, gated=False
    )
    assert plain.down_share == pytest.approx(1 / 3)
    assert known_shape("llama-3.1-8b").down_share == pytest.approx(0.269, abs=0.001)
