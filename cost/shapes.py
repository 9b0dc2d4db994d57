"""The shape of a language model: what its config.json says about its matrices, and a table of common models."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from launcher.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder-only transformer.

    Example (Llama 3.1 8B): 32 x (2 x 4096 x 4096 + 2 x 4096 x 1024 + 3 x 4096 x 14336) = 6,979,321,856 in the
    blocks, 128,256 x 4096 = 525,336,576 twice for embedding and head, 65 x 4096 = 266,240 in norms: 8,030,261,248.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    """Width of the feed-forward part; of one expert in a mixture."""
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    """Does the head share the embedding's matrix?"""
    gated: bool = True
    """Three feed-forward matrices (SwiGLU, GeGLU) or two."""
    experts: int = 1
    active_experts: int = 1
    """Experts that a token passes through."""
    shared_ffn: int = 0
    """Width of the expert that every token passes through."""
    block: str = "llama"
    """Whose kernels run: llama, qwen3 (norms on queries and keys), gemma (four fp32 norms), plain (no gate)."""
    vectors: int = 0
    """Parameters outside of the matrices: norms, biases, learned positions."""
    takes_mask: bool = False
    """Do its layers take a mask of one's own, so that what rows begin with is computed once? False: not as far as
    is known here (train_entry/packing.py, obstacle)."""

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all key heads together; values have the same."""
        return self.kv_heads * self.head_dim

    @property
    def attention_params(self) -> int:
        return 2 * self.hidden * (self.query + self.kv)

    @property
    def expert_params(self) -> int:
        return (3 if self.gated else 2) * self.hidden * self.ffn

    @property
    def _shared_params(self) -> int:
        router = self.hidden * self.experts if self.experts > 1 else 0
        return router + (3 * self.hidden * self.shared_ffn + self.hidden if self.shared_ffn else 0)

    @property
    def block_params(self) -> int:
        """Matrices of all layers: what NF4 quantises and LoRA can adapt."""
        return self.layers * (self.attention_params + self.experts * self.expert_params + self._shared_params)

    @property
    def active_block_params(self) -> int:
        """The part of `block_params` that one token is multiplied with."""
        used = self.active_experts * self.expert_params
        return self.layers * (self.attention_params + used + self._shared_params)

    @property
    def embedding_params(self) -> int:
        """One matrix of vocab x hidden."""
        return self.vocab * self.hidden

    @property
    def outer_params(self) -> int:
        """Embedding and head."""
        return self.embedding_params * (1 if self.tied else 2)

    @property
    def params(self) -> int:
        return self.block_params + self.outer_params + self.vectors

    @property
    def down_share(self) -> float:
        """Share of a block's arithmetic in its last matrix, whose output no backward pass needs."""
        return self.active_experts * self.hidden * self.ffn * self.layers / self.active_block_params


@dataclass(frozen=True, kw_only=True)
class _Family:
    """How a model type in transformers builds its blocks, where that is not in config.json."""

    gated: bool = True
    norms: int = 2
    final_norm_bias: bool = False
    norm_bias: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    head_bias: bool = False
    positions: bool = False
    position_offset: int = 0
    tied: bool = False
    """What transformers assumes when the config does not say."""
    block: str = "llama"


_BIASED = _Family(
    gated=False, norm_bias=True, final_norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, tied=True,
    block="plain",
)  # fmt: skip
_PLAIN = _Family(gated=False, tied=True, block="plain")
_FAMILIES: dict[str, _Family] = {
    "llama": _Family(), "mistral": _Family(), "mixtral": _Family(), "smollm3": _Family(tied=True),
    "granite": _Family(), "phi3": _Family(), "qwen2": _Family(qkv_bias=True), "qwen2_moe": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm=True, block="qwen3"), "qwen3_moe": _Family(qk_norm=True, block="qwen3"),
    "gemma": _Family(tied=True), "gemma2": _Family(norms=4, tied=True, block="gemma"),
    "gemma3_text": _Family(norms=4, qk_norm=True, tied=True, block="gemma"),
    "stablelm": _Family(norm_bias=True, final_norm_bias=True),
    "phi": replace(_BIASED, norms=1, head_bias=True, tied=False),
    "gpt2": replace(_BIASED, positions=True), "gpt_neox": replace(_BIASED, tied=False),
    "opt": replace(_BIASED, positions=True, position_offset=2), "starcoder2": _BIASED,
    "mpt": _PLAIN, "falcon": replace(_PLAIN, norms=1, norm_bias=True, final_norm_bias=True),
}  # fmt: skip
"""transformers model_type -> family (transformers 5.23 modelling code, read 2026-11-25)."""

EXACT = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "granite", "olmo2", "smollm3", "starcoder2")
"""model_type of those that take a mask of one's own: train_entry/packing.py's list (a test compares them)."""

_KEYS: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocab": ("vocab_size",),
}
"""What a size is called, by the age of the model."""


def shape_from_config(config: Mapping[str, Any], name: str = "") -> ModelShape:
    """The shape that a config.json describes.

    Raises ConfigError for an architecture that is not known here: a guess would be wrong without saying so.
    """
    inner = config.get("text_config")
    if isinstance(inner, Mapping):  # a model that also sees: only its language part is trained here
        config = {**inner, "model_type": inner.get("model_type", config.get("model_type"))}
    kind = str(config.get("model_type"))
    family = _FAMILIES.get(kind)
    if family is None:
        raise _unknown_architecture(kind, name)
    try:
        hidden, layers, heads, vocab = (_first(config, _KEYS[k]) for k in ("hidden", "layers", "heads", "vocab"))
    except KeyError as exc:
        raise ConfigError(
            f"config.json of {name or kind} has no {exc.args[0]}", "name a folder with a whole config.json"
        ) from exc
    experts = int(config.get("num_local_experts") or config.get("num_experts") or 1)
    shape = ModelShape(
        name=name or kind, layers=layers, hidden=hidden, ffn=_ffn(config, hidden, experts), heads=heads,
        kv_heads=_kv_heads(config, kind, heads), head_dim=int(config.get("head_dim") or hidden // heads),
        vocab=vocab, tied=bool(config.get("tie_word_embeddings", family.tied)), gated=family.gated,
        experts=experts, active_experts=int(config.get("num_experts_per_tok") or 1) if experts > 1 else 1,
        shared_ffn=int(config.get("shared_expert_intermediate_size") or 0), block=family.block,
        takes_mask=kind in EXACT and _whole_attention(config),
    )  # fmt: skip
    return replace(shape, vectors=_vectors(shape, family, config))


def _whole_attention(config: Mapping[str, Any]) -> bool:
    """Does every layer see the whole row? As train_entry/packing.py, obstacle, asks it of the loaded model."""
    layers = set(config.get("layer_types") or ["full_attention"])
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return layers == {"full_attention"} and window is None


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    for key in keys:
        if config.get(key):
            return int(config[key])
    raise KeyError(keys[0])


def _ffn(config: Mapping[str, Any], hidden: int, experts: int) -> int:
    if experts > 1 and config.get("moe_intermediate_size"):
        return int(config["moe_intermediate_size"])
    for key in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"):
        if config.get(key):
            return int(config[key])
    return int(config.get("expansion_ratio") or 4) * hidden


def _kv_heads(config: Mapping[str, Any], kind: str, heads: int) -> int:
    if kind == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    return int(config.get("num_key_value_heads") or config.get("num_kv_heads") or heads)


def _vectors(shape: ModelShape, family: _Family, config: Mapping[str, Any]) -> int:
    """Norms, biases and learned positions of the whole model."""
    qkv_bias = family.qkv_bias or bool(config.get("attention_bias"))
    out_bias = family.out_bias or bool(config.get("attention_bias"))
    mlp_bias = family.mlp_bias or bool(config.get("mlp_bias"))
    norm = shape.hidden * (2 if family.norm_bias else 1)
    layer = (2 if config.get("new_decoder_architecture") else family.norms) * norm
    layer += (shape.query + 2 * shape.kv) * qkv_bias + shape.hidden * out_bias
    layer += 2 * shape.head_dim * family.qk_norm
    layer += (shape.ffn * (2 if shape.gated else 1) + shape.hidden) * mlp_bias
    final = shape.hidden * (2 if family.final_norm_bias else 1) + shape.vocab * family.head_bias
    if family.positions:
        length = int(config.get("n_positions") or config.get("max_position_embeddings") or 0)
        final += (length + family.position_offset) * shape.hidden
    return shape.layers * layer + final


def _unknown_architecture(kind: str, name: str) -> ConfigError:
    close = difflib.get_close_matches(kind, _FAMILIES, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return ConfigError(
        f"the architecture {kind!r}{f' of {name}' if name else ''} is not known to the estimate",
        f"{guess}known: {', '.join(sorted(_FAMILIES))}",
    )


# name: model_type, layers, hidden, ffn, heads, kv heads, vocab, and what else config.json says
_Row = tuple[str, int, int, int, int, int, int, dict[str, Any]]
_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_HEAD_128: dict[str, Any] = {"head_dim": 128}
_COMMON: dict[str, _Row] = {
    "llama-2-7b": ("llama", 32, 4096, 11008, 32, 32, 32000, {}),
    "llama-2-13b": ("llama", 40, 5120, 13824, 40, 40, 32000, {}),
    "llama-2-70b": ("llama", 80, 8192, 28672, 64, 8, 32000, {}),
    "llama-3-8b": ("llama", 32, 4096, 14336, 32, 8, 128256, {}),
    "llama-3-70b": ("llama", 80, 8192, 28672, 64, 8, 128256, {}),
    "llama-3.1-8b": ("llama", 32, 4096, 14336, 32, 8, 128256, {}),
    "llama-3.1-70b": ("llama", 80, 8192, 28672, 64, 8, 128256, {}),
    "llama-3.1-405b": ("llama", 126, 16384, 53248, 128, 8, 128256, {}),
    "llama-3.2-1b": ("llama", 16, 2048, 8192, 32, 8, 128256, _TIED),
    "llama-3.2-3b": ("llama", 28, 3072, 8192, 24, 8, 128256, _TIED),
    "llama-3.3-70b": ("llama", 80, 8192, 28672, 64, 8, 128256, {}),
    "codellama-7b": ("llama", 32, 4096, 11008, 32, 32, 32016, {}),
    "codellama-34b": ("llama", 48, 8192, 22016, 64, 8, 32000, {}),
    "tinyllama-1.1b": ("llama", 22, 2048, 5632, 32, 4, 32000, {}),
    "smollm-135m": ("llama", 30, 576, 1536, 9, 3, 49152, _TIED),
    "smollm2-135m": ("llama", 30, 576, 1536, 9, 3, 49152, _TIED),
    "smollm2-360m": ("llama", 32, 960, 2560, 15, 5, 49152, _TIED),
    "smollm2-1.7b": ("llama", 24, 2048, 8192, 32, 32, 49152, _TIED),
    "smollm3-3b": ("smollm3", 36, 2048, 11008, 16, 4, 128256, {}),
    "mistral-7b": ("mistral", 32, 4096, 14336, 32, 8, 32000, {"sliding_window": 4096}),
    "mistral-7b-v0.3": ("mistral", 32, 4096, 14336, 32, 8, 32768, {}),
    "mistral-nemo": ("mistral", 40, 5120, 14336, 32, 8, 131072, _HEAD_128),
    "mistral-small-24b": ("mistral", 40, 5120, 32768, 32, 8, 131072, _HEAD_128),
    "mistral-large": ("mistral", 88, 12288, 28672, 96, 8, 32768, {}),
    "mixtral-8x7b": (
        "mixtral", 32, 4096, 14336, 32, 8, 32000, {"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "mixtral-8x22b": (
        "mixtral", 56, 6144, 16384, 48, 8, 32768, {"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    "qwen2.5-0.5b": ("qwen2", 24, 896, 4864, 14, 2, 151936, _TIED),
    "qwen2.5-1.5b": ("qwen2", 28, 1536, 8960, 12, 2, 151936, _TIED),
    "qwen2.5-3b": ("qwen2", 36, 2048, 11008, 16, 2, 151936, _TIED),
    "qwen2.5-7b": ("qwen2", 28, 3584, 18944, 28, 4, 152064, {}),
    "qwen2.5-14b": ("qwen2", 48, 5120, 13824, 40, 8, 152064, {}),
    "qwen2.5-32b": ("qwen2", 64, 5120, 27648, 40, 8, 152064, {}),
    "qwen2.5-72b": ("qwen2", 80, 8192, 29568, 64, 8, 152064, {}),
    "qwen3-0.6b": ("qwen3", 28, 1024, 3072, 16, 8, 151936, {**_TIED, **_HEAD_128}),
    "qwen3-1.7b": ("qwen3", 28, 2048, 6144, 16, 8, 151936, {**_TIED, **_HEAD_128}),
    "qwen3-4b": ("qwen3", 36, 2560, 9728, 32, 8, 151936, {**_TIED, **_HEAD_128}),
    "qwen3-8b": ("qwen3", 36, 4096, 12288, 32, 8, 151936, _HEAD_128),
    "qwen3-14b": ("qwen3", 40, 5120, 17408, 40, 8, 151936, _HEAD_128),
    "qwen3-32b": ("qwen3", 64, 5120, 25600, 64, 8, 151936, _HEAD_128),
    "qwen3-30b-a3b": (
        "qwen3_moe", 48, 2048, 6144, 32, 4, 151936,
        {**_HEAD_128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    ),
    "gemma-2b": ("gemma", 18, 2048, 16384, 8, 1, 256000, {"head_dim": 256}),
    "gemma-7b": ("gemma", 28, 3072, 24576, 16, 16, 256000, {"head_dim": 256}),
    "gemma-2-2b": ("gemma2", 26, 2304, 9216, 8, 4, 256000, {"head_dim": 256}),
    "gemma-2-9b": ("gemma2", 42, 3584, 14336, 16, 8, 256000, {"head_dim": 256}),
    "gemma-2-27b": ("gemma2", 46, 4608, 36864, 32, 16, 256000, _HEAD_128),
    "gemma-3-1b": ("gemma3_text", 26, 1152, 6912, 4, 1, 262144, {"head_dim": 256}),
    "gemma-3-4b": ("gemma3_text", 34, 2560, 10240, 8, 4, 262208, {"head_dim": 256}),
    "gemma-3-12b": ("gemma3_text", 48, 3840, 15360, 16, 8, 262208, {"head_dim": 256}),
    "gemma-3-27b": ("gemma3_text", 62, 5376, 21504, 32, 16, 262208, _HEAD_128),
    "phi-1.5": ("phi", 24, 2048, 8192, 32, 32, 51200, {}),
    "phi-2": ("phi", 32, 2560, 10240, 32, 32, 51200, {}),
    "phi-3-mini": ("phi3", 32, 3072, 8192, 32, 32, 32064, {"sliding_window": 2047}),
    "phi-3-medium": ("phi3", 40, 5120, 17920, 40, 10, 32064, {"sliding_window": 2047}),
    "phi-4": ("phi3", 40, 5120, 17920, 40, 10, 100352, {}),
    "phi-4-mini": ("phi3", 32, 3072, 8192, 24, 8, 200064, {**_TIED, "sliding_window": 262144}),
    "gpt2": ("gpt2", 12, 768, 3072, 12, 12, 50257, {"n_positions": 1024}),
    "gpt2-xl": ("gpt2", 48, 1600, 6400, 25, 25, 50257, {"n_positions": 1024}),
    "falcon-40b": ("falcon", 60, 8192, 32768, 128, 8, 65024, {"new_decoder_architecture": True}),
}  # fmt: skip
"""Common models as their config.json on the hub describes them (read 2026-11-25)."""


def known_shape(model_id: str) -> ModelShape:
    """The shape of a common model: a hub id (meta-llama/Llama-3.1-8B-Instruct) or its name alone.

    Raises ConfigError with a did-you-mean: the caller then needs the model's config.json.
    """
    text = _bare(model_id)
    while (found := _BY_NAME.get(_plain(text))) is None and _DECORATION.search(text):
        text = _DECORATION.sub("", text, count=1)
    if found is not None:
        return replace(found, name=model_id)
    close = difflib.get_close_matches(_plain(text), _BY_NAME, n=1, cutoff=0.6)
    guess = f"did you mean {_BY_NAME[close[0]].name}? " if close else ""
    raise ConfigError(
        f"the shape of {model_id} is not in the built-in table",
        f"{guess}its config.json, from the hub or a local folder, has it",
    )


_DECORATION = re.compile(
    r"-(instruct|it|pt|chat|base|hf|bnb-4bit|unsloth|v\d\.\d|\d+k|\d{4}|intermediate-step-\w+-\w+)(?=-|$)"
)
"""Parts of an id that say how a model was tuned, quantised or dated, not what shape it has."""


def _bare(model_id: str) -> str:
    text = model_id.removeprefix("embedded:").rsplit("/", 1)[-1].lower().replace("_", "-")
    return re.sub(r"^(meta|nvidia)-(?=llama)", "", text)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _built_in() -> dict[str, ModelShape]:
    shapes = {}
    for name, (kind, layers, hidden, ffn, heads, kv_heads, vocab, rest) in _COMMON.items():
        config = {
            "model_type": kind, "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": ffn,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab, **rest,
        }  # fmt: skip
        shapes[_plain(name)] = shape_from_config(config, name)
    return shapes


_BY_NAME = _built_in()
KNOWN_MODELS: tuple[str, ...] = tuple(_COMMON)
"""Names in the built-in table."""
