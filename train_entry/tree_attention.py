"""Attention of rows that are laid out as a tree, segment by segment: what a mask would hide is not computed.

On a CPU, where most of a dense attention's time goes into pairs of tokens that do not see each other. A GPU would
be kept waiting by so many small pieces: there the mask is used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

TREES = "trees"
"""Key of a batch, and argument of the model, for the trees of its sequences."""
SMALL = 128**2
"""Pairs of tokens up to which plain matrices are faster than flash attention, whose backward is slow on a CPU."""


@dataclass(frozen=True)
class Tree:
    """A sequence's segments: their lengths, in order, and for each those that it sees, itself the last."""

    sizes: tuple[int, ...]
    above: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """Of every segment: its tokens, and those in the segments that it sees."""
        each = zip(self.sizes, self.above, strict=True)
        return [(size, sum(self.sizes[number] for number in above)) for size, above in each]

    @property
    def pairs(self) -> int:
        """Pairs of a token and one in a segment that it sees."""
        return sum(own * seen for own, seen in self.shapes)


def by_segments(device: torch.device | str) -> bool:
    """Is attention computed so on this device?"""
    kind: str = torch.device(device).type
    return kind == "cpu"


def attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    *, trees: Sequence[Tree] | None = None, dropout: float = 0.0, scaling: float | None = None, **rest: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """transformers' own sdpa attention; for a batch with trees on a CPU, the same without the mask."""
    if trees is None or not by_segments(query.device):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **rest
        )
        return found
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    each = zip(trees, *(part.split(1) for part in (query, key, value)), strict=True)
    out = [_of_one(tree, q, k, v, dropout, scaling) for tree, q, k, v in each]
    return torch.cat(out).transpose(1, 2).contiguous(), None


def _of_one(
    tree: Tree, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    most = max(own * seen for own, seen in tree.shapes)
    with sdpa_kernel(SDPBackend.MATH) if most <= SMALL else contextlib.nullcontext():
        return _by_segments(tree, query, key, value, dropout, scaling)


def _by_segments(
    tree: Tree, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    # Split, not sliced: the gradient of a slice is as large as the whole.
    queries, keys, values = (part.split(tree.sizes, dim=2) for part in (query, key, value))
    out = []
    for own, above in zip(queries, tree.above, strict=True):
        seen = [torch.cat([parts[number] for number in above], dim=2) for parts in (keys, values)]
        alone = len(above) == 1
        mask = None if alone else _mask(own.shape[2], seen[0].shape[2])
        out.append(
            torch.nn.functional.scaled_dot_product_attention(
                own, *seen, attn_mask=mask, dropout_p=dropout, is_causal=alone, scale=scaling
            )
        )
    return torch.cat(out, dim=2)


@functools.lru_cache(maxsize=256)
def _mask(own: int, seen: int) -> torch.Tensor:
    """A segment's tokens see all that is above it, and of itself what stands before them."""
    with torch.inference_mode(False):  # it is kept for training
        return torch.ones(own, seen, dtype=torch.bool).tril(seen - own)


AttentionInterface.register("sdpa", attention)
