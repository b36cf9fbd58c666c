"""A connector that sees no more of an embedding than its direction, which is what images and texts of a
contrastive model share; so it may learn from texts what it says of images.

With ``memory`` an image's embedding is replaced by the mean of those of texts in it, weighted by a softmax of
their cosines to it: what the captioner reads then looks like what it has learned from (DeCap, Li et al. 2023,
arXiv 2303.03032).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.errors import ConfigError
from mmgem.models.connectors.mlp import MLPConnector


class UnitMLPConnector(MLPConnector):
    """:class:`MLPConnector` of an embedding of unit length. ``memory``: how many embeddings of texts stand
    for an image's, 0: none do; ``temperature``: of their weights."""

    memory: Tensor

    def __init__(
        self,
        dim: int,
        width: int,
        tokens: int,
        hidden: int | None = None,
        memory: int = 0,
        temperature: float = 0.01,
    ):
        super().__init__(dim, width, tokens, hidden)
        if type(memory) is not int or memory < 0:
            raise ConfigError(f"model.connector.config.memory: {memory!r} is not 0 or more")
        if not 0 < temperature < math.inf:
            raise ConfigError(f"model.connector.config.temperature: {temperature!r} is not above 0")
        self.temperature = temperature
        self.register_buffer("memory", torch.zeros(memory, dim))

    @property
    def memory_size(self) -> int:
        """How many embeddings of texts it keeps."""
        return len(self.memory)

    @torch.no_grad()
    def remember(self, texts: Tensor) -> None:
        """Keep unit embeddings ``(memory, D)``."""
        self.memory.copy_(texts)

    def forward(self, visual: Tensor) -> Tensor:
        """``(B, n, D)`` float32 -> ``(B, n * k, H)``."""
        visual = F.normalize(visual, dim=-1)
        if len(self.memory):
            visual = (visual @ self.memory.T / self.temperature).softmax(-1) @ self.memory
        return self.from_text(visual)

    def from_text(self, texts: Tensor) -> Tensor:
        """As :meth:`forward`, of embeddings of texts: without the memory."""
        numbers = F.normalize(texts, dim=-1) * math.sqrt(texts.shape[-1])  # of about 1, as they start for
        return super().forward(numbers)

    @torch.no_grad()
    def rotate_input(self, rotation: Tensor) -> None:
        """Fold the inverse of ``rotation`` into the first layer, and rotate the memory."""
        super().rotate_input(rotation)
        self.memory.copy_(self.memory @ rotation)
