"""A connector with one hidden layer, as LLaVA 1.5 has."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgem.errors import ConfigError
from mmgem.models.connectors.base import Connector


class MLPConnector(Connector):
    """Linear, GELU, linear. ``hidden``: the hidden layer's width, None: the LLM's."""

    def __init__(self, dim: int, width: int, tokens: int, hidden: int | None = None):
        super().__init__()
        if hidden is not None and hidden < 1:
            raise ConfigError(f"model.connector.config.hidden: {hidden} is not 1 or more")
        self.width = width
        self.up = nn.Linear(dim, hidden or width)
        self.down = nn.Linear(hidden or width, tokens * width)

    def forward(self, visual: Tensor) -> Tensor:
        """``(B, n, D)`` float32 -> ``(B, n * k, H)``."""
        return self.down(F.gelu(self.up(visual))).reshape(len(visual), -1, self.width)

    def init_weights(self, std: float) -> None:
        """Of an embedding whose numbers are about 1, make vectors of scale ``std``."""
        nn.init.normal_(self.up.weight, std=1 / math.sqrt(self.up.in_features))
        # The mean square of the GELU of a standard normal number is 0.425.
        nn.init.normal_(self.down.weight, std=std / math.sqrt(0.425 * self.down.in_features))
        for layer in (self.up, self.down):
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def rotate_input(self, rotation: Tensor) -> None:
        """Fold the inverse of ``rotation`` into the first layer."""
        self.up.weight.copy_(self.up.weight @ rotation)
