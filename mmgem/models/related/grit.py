"""GRIT (Muennighoff et al. 2024, arXiv 2402.09906): the same weights embed both ways and write causally.

A text to embed stands behind a marker, every token sees every other, and its embedding is the mean over its
own tokens. Captions are causal, as in MM-GEM. The temperature is a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmgem.config import ModelConfig
from mmgem.models.network import MMGEMNetwork
from mmgem.models.packing import PackedOutput, Segment
from mmgem.models.related.base import options


class GRIT(MMGEMNetwork):
    """``[EMB]`` is the marker before a text; it is not pooled."""

    regions = False
    plain_embedding = False

    def __init__(self, config: ModelConfig):
        options(config, {})
        super().__init__(config)

    def trains(self, name: str) -> bool:
        """All but the temperature and the bias of another loss."""
        return name not in ("logit_scale", "logit_bias")

    def text_segments(self, ids: Sequence[Tensor]) -> list[Segment]:
        """The marker and the text, seen both ways."""
        return [Segment(tokens, self.emb_token[None], causal=False) for tokens in ids]

    def read(
        self, texts: Sequence[Tensor], captions: Sequence[Tensor] = (), visual: Tensor | None = None
    ) -> PackedOutput:
        """As in MM-GEM, with means over the tokens of texts as embeddings."""
        output = super().read(texts, captions, visual)
        counts = torch.tensor([len(tokens) for tokens in texts], dtype=torch.long)
        owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
        states = output.hidden_states
        at = output.token_indices[: len(owner)].to(states.device)
        sums = states.new_zeros(len(counts), states.shape[-1]).index_add(0, owner.to(at.device), states[at])
        return replace(output, embeddings=self.text_projection(sums / counts[:, None].to(states)))
