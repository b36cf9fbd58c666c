"""What several of the related systems have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmgem.config import ModelConfig
from mmgem.errors import ConfigError
from mmgem.models.cross_attention import showing, shown_in, shown_rows
from mmgem.models.network import MMGEMNetwork
from mmgem.models.packing import Packing, Segment


def options(config: ModelConfig, defaults: dict[str, Any]) -> dict[str, Any]:
    """``model.config`` over ``defaults``, whole numbers of 1 or more all. Raises ``ConfigError`` for a field
    that is none of them."""
    for name, value in config.config.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ConfigError(f"model.config.{name}: unknown field of {config.kind!r} (known: {known})")
        if type(value) is not int or value < 1:
            raise ConfigError(f"model.config.{name}: {value!r} is not a whole number of 1 or more")
    return defaults | config.config


class PrefixCaptioner(MMGEMNetwork):
    """Captions behind input vectors made of an image's features, and nothing else between: no embeddings, no
    markers."""

    embeds = False
    regions = False
    captions_from_embedding = False
    keeps_features = True
    plain_embedding = False

    def __init__(self, config: ModelConfig):
        options(config, {})
        super().__init__(config)

    def caption_start(self, prefixes: Tensor) -> Tensor:
        """The prefix alone."""
        return prefixes

    def trains(self, name: str) -> bool:
        """The mapper, and the LLM if its group trains."""
        return name.startswith(("visual_connector.", "llm.", "encoder."))


class ImageReader(MMGEMNetwork):
    """Captions by cross-attention from layers of the LLM to vectors of an image
    (:meth:`project_visual_prefix`)."""

    regions = False
    captions_from_embedding = False
    keeps_features = True
    plain_blocks = False
    plain_embedding = False

    @property
    def connects(self) -> bool:
        """Nothing is put before the LLM."""
        return False

    @property
    def prefix_length(self) -> int:
        """An image takes no positions of the LLM."""
        return 0

    def tiles(self, visual: Tensor) -> Tensor:
        """The vectors ``(B, n, C)`` of the map's tiles in what is kept of an image; the mean where
        ``visual_grid`` is 1."""
        return visual[:, 1:] if visual.shape[1] > 1 else visual

    def caption_start(self, prefixes: Tensor) -> Tensor:
        """``[CAP]`` alone, ``(B, 1, H)``: it begins a text."""
        return self.cap_token.expand(len(prefixes), 1, -1)

    def caption_segments(self, ids: Sequence[Tensor], prefixes: Tensor) -> list[Segment]:
        """As in MM-GEM; ``prefixes`` ``(M, n, W)`` are what cross-attention shows."""
        segments = super().caption_segments(ids, prefixes)
        return [replace(segment, image=(prefixes, n)) for n, segment in enumerate(segments)]

    def caption_states(
        self,
        inputs: Tensor,
        positions: Tensor,
        allowed: Tensor | None,
        cache: Any,
        prefixes: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Show each row its image."""
        with showing(shown_rows(prefixes, rows, cache)):
            return self.llm(inputs, positions, allowed, cache)

    def run_packed(
        self, inputs: Tensor, packing: Packing, allowed: Tensor, segments: Sequence[Segment]
    ) -> tuple[Tensor, Tensor]:
        """Show each segment its image, if it has one."""
        with showing(shown_in(packing, segments, inputs.device)):
            return super().run_packed(inputs, packing, allowed, segments)


def starts(ids: Sequence[Tensor]) -> Tensor:
    """Where, in ``prediction_states`` of segments with these tokens, each begins: ``(n,)`` int64."""
    counts = torch.tensor([len(tokens) + 1 for tokens in ids])
    return counts.cumsum(0) - counts
