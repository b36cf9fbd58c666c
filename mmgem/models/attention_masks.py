"""The attention masks of a language model, a layer type each, by the window that its own config states.

transformers makes such masks itself for one text a row. Rows here hold several texts, or have holes, so the
window is counted in the positions of a text, not in the places of its row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALL_LAYERS = ""
"""The layer type of models whose layers are all alike: they take one mask, not a dict."""


@dataclass(frozen=True)
class AttentionSpan:
    """How far a layer looks: ``sliding``: the token itself and those before it, so many together (and as many
    after it where attention is not causal); ``chunk``: only within its own chunk of so many positions. None:
    no limit."""

    sliding: int | None = None
    chunk: int | None = None

    def may_matter(self, length: int) -> bool:
        """Whether anything is out of reach in ``length`` positions that begin at 0."""
        limits = [limit for limit in (self.sliding, self.chunk) if limit is not None]
        return bool(limits) and (torch.compiler.is_exporting() or length > min(limits))

    def within(self, queries: Tensor, keys: Tensor) -> Tensor:
        """``(B, L, S)`` bool: are positions ``keys`` ``(B, S)`` in reach of ``queries`` ``(B, L)``."""
        q, k = queries[:, :, None], keys[:, None, :]
        if self.sliding is not None:
            return (q - k).abs() < self.sliding
        assert self.chunk is not None
        return q // self.chunk == k // self.chunk


def attention_spans(config: Any) -> dict[str, AttentionSpan]:
    """How far the layers of each type look, for a transformers ``config``; the key :data:`ALL_LAYERS` where
    types are not told apart. As ``transformers.masking_utils.create_masks_for_generate`` decides it."""
    sliding = AttentionSpan(sliding=getattr(config, "sliding_window", None))
    chunked = AttentionSpan(chunk=getattr(config, "attention_chunk_size", None))
    if types := getattr(config, "layer_types", None):
        limited = {"sliding_attention": sliding, "chunked_attention": chunked}
        return {name: limited.get(name, AttentionSpan()) for name in sorted(set(types))}
    return {ALL_LAYERS: sliding if sliding.sliding is not None else chunked}


def layer_masks(
    config: Any, allowed: Tensor, positions: Tensor, key_positions: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """What a transformers model takes as ``attention_mask``: ``(B, 1, L, S)`` of ``dtype``, added to the
    scores; a dict of them by layer type where windows limit some layers.

    ``allowed``: ``(B, L, S)`` bool, what may be looked at but for windows. ``positions`` ``(B, L)`` and
    ``key_positions`` ``(B, S)`` int64: the place of each token in its own text.
    """

    def additive(visible: Tensor) -> Tensor:
        lowest = torch.finfo(dtype).min
        return visible.new_zeros(visible.shape, dtype=dtype).masked_fill_(~visible, lowest)[:, None]

    spans = attention_spans(config)
    if not any(span.may_matter(allowed.shape[-1]) for span in spans.values()):
        return additive(allowed)
    masks = {
        name: additive(
            allowed & span.within(positions, key_positions) if span.may_matter(allowed.shape[-1]) else allowed
        )
        for name, span in spans.items()
    }
    return masks.get(ALL_LAYERS, masks)
