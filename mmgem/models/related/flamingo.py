"""Flamingo (Alayrac et al. 2022, arXiv 2204.14198): a frozen LLM that looks at images between its blocks.

A perceiver resampler makes a few latents of the map; before every block lies gated cross-attention to them,
with a feed-forward layer. The gates start at 0: the model begins as its LLM. It writes and does not embed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmgem.config import ModelConfig
from mmgem.models.cross_attention import CrossAttention, ImageLayers, MultiHeadAttention, feed_forward
from mmgem.models.related.base import ImageReader, options


class Resampler(nn.Module):
    """``latents`` learned vectors that look, ``layers`` times, at the image and at each other."""

    def __init__(self, latents: int, width: int, context: int, layers: int, heads: int):
        super().__init__()
        self.project = nn.Linear(context, width)
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.attention = nn.ModuleList(MultiHeadAttention(width, width, heads) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.dense = nn.ModuleList(feed_forward(width) for _ in range(layers))
        self.out_norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, M, C)`` -> ``(B, latents, width)``."""
        images = self.project(images)
        latents = self.latents.expand(len(images), -1, -1)
        for n, (attention, dense) in enumerate(zip(self.attention, self.dense, strict=True)):
            queries = self.norms[2 * n](latents)
            latents = latents + attention(queries, torch.cat([self.norms[2 * n + 1](images), queries], 1))
            latents = latents + dense(latents)
        return self.out_norm(latents)


class Flamingo(ImageReader):
    """``model.config``: ``latents`` and ``layers`` of the resampler, ``heads``; ``every``: gated layers lie
    before each so-manieth block."""

    embeds = False
    frozen = ("llm", "embeddings", "encoder")

    def __init__(self, config: ModelConfig):
        chosen = options(config, {"latents": 64, "layers": 2, "heads": 8, "every": 1})
        super().__init__(config)
        width, heads, blocks = self.llm.width, chosen["heads"], self.llm.blocks
        self.resampler = Resampler(chosen["latents"], width, self.encoder.channels, chosen["layers"], heads)
        self.image_layers = ImageLayers(
            range(0, len(blocks), chosen["every"]), lambda: CrossAttention(width, width, heads, gated=True)
        )
        self.image_layers.attach(blocks, before=True)

    def trains(self, name: str) -> bool:
        """The resampler, the gated layers, and the token that begins a caption."""
        return name.startswith(("resampler.", "image_layers.")) or name == "cap_token"

    def project_visual_prefix(self, visual: Tensor) -> Tensor:
        """Latents ``(B, latents, H)``."""
        return self.resampler(self.tiles(visual))
