"""CoCa (Yu et al. 2022, arXiv 2205.01917): one decoder, cut in the middle.

The first half of the LLM's blocks reads a text alone, with ``[EMB]`` at its end: what it says there, normed
and projected, is the text's embedding. Behind each block of the second half lies cross-attention to image
tokens that learned queries pool of the map; it predicts the text. An image's embedding is pooled by one query
more. A text that is embedded and predicted goes through once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mmgem.config import ModelConfig
from mmgem.errors import ConfigError
from mmgem.models.cross_attention import (
    AttentionPool,
    CrossAttention,
    ImageLayers,
    showing,
    shown_in,
    with_states,
)
from mmgem.models.packing import PackedOutput, Packing, Segment
from mmgem.models.related.base import ImageReader, options


@dataclass
class _Middle:
    """What the first half of the blocks gives; ``only``: nothing behind it is wanted."""

    only: bool
    states: Tensor | None = None


_MIDDLE: ContextVar[_Middle | None] = ContextVar("middle", default=None)


class _Enough(Exception):
    """Ends a pass of the LLM in the middle."""


@contextmanager
def _middle(only: bool) -> Iterator[_Middle]:
    middle = _Middle(only)
    token = _MIDDLE.set(middle)
    try:
        yield middle
    except _Enough:
        pass
    finally:
        _MIDDLE.reset(token)


def _tap(block: nn.Module, inputs: Any, output: Any) -> Any:
    middle = _MIDDLE.get()
    if middle is None:
        return output

    def take(states: Tensor) -> Tensor:
        middle.states = states
        return states

    output = with_states(output, take)
    if middle.only:
        raise _Enough
    return output


class CoCa(ImageReader):
    """``model.config``: ``queries`` that pool image tokens, ``heads`` of all attention to images."""

    def __init__(self, config: ModelConfig):
        chosen = options(config, {"queries": 64, "heads": 8})
        super().__init__(config)
        blocks, width, heads = self.llm.blocks, self.llm.width, chosen["heads"]
        if len(blocks) < 2:
            raise ConfigError("model.llm.config: CoCa needs two blocks or more, to be halved")
        half, channels = len(blocks) // 2, self.encoder.channels
        self.visual_projection = nn.Sequential(
            AttentionPool(1, config.dim, channels, heads), nn.Linear(config.dim, config.dim, bias=False)
        )
        self.caption_pool = AttentionPool(chosen["queries"], width, channels, heads)
        self.text_norm = nn.LayerNorm(width)
        self.image_layers = ImageLayers(range(half, len(blocks)), lambda: CrossAttention(width, width, heads))
        blocks[half - 1].register_forward_hook(_tap)
        self.image_layers.attach(blocks)

    def trains(self, name: str) -> bool:
        """All but the bias of another loss."""
        return name != "logit_bias"

    def image_embeddings(self, visual: Tensor) -> Tensor:
        """What one query pools of the map's tiles, projected: ``(B, D)``."""
        return self.visual_projection(self.tiles(visual))[:, 0]

    def project_visual_prefix(self, visual: Tensor) -> Tensor:
        """Image tokens ``(B, queries, H)``."""
        return self.caption_pool(self.tiles(visual))

    def text_segments(self, ids: Sequence[Tensor]) -> list[Segment]:
        """``[CAP]``, which begins every text, the text, and ``[EMB]``."""
        return [Segment(tokens, self.cap_token[None], pool=True) for tokens in ids]

    def read(
        self, texts: Sequence[Tensor], captions: Sequence[Tensor] = (), visual: Tensor | None = None
    ) -> PackedOutput:
        """Once where the texts are the captions."""
        same = len(texts) == len(captions) and all(t is c for t, c in zip(texts, captions, strict=True))
        if visual is None or not texts or not same:
            return super().read(texts, captions, visual)
        segments = self.caption_segments(captions, self.project_visual_prefix(visual))
        return self.forward_packed([replace(segment, pool=True) for segment in segments])

    def run_packed(
        self, inputs: Tensor, packing: Packing, allowed: Tensor, segments: Sequence[Segment]
    ) -> tuple[Tensor, Tensor]:
        """Embeddings are of the middle; where nobody is shown an image, the pass ends there."""
        shown = shown_in(packing, segments, inputs.device)
        states = None
        with _middle(only=shown is None) as middle, showing(shown):
            states = self.llm(inputs, packing.positions.to(inputs.device), allowed).flatten(0, 1)
        assert middle.states is not None
        embedded = self.text_norm(middle.states.to(inputs.dtype).flatten(0, 1))
        return (embedded if states is None else states), embedded
