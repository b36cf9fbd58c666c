"""The default connector, of the paper: one linear map."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgem.models.connectors.base import Connector


class LinearConnector(Connector, nn.Linear):
    """One matrix from an embedding to all of its k input vectors."""

    def __init__(self, dim: int, width: int, tokens: int):
        nn.Linear.__init__(self, dim, tokens * width)
        self.width = width

    def forward(self, visual: Tensor) -> Tensor:
        """``(B, n, D)`` float32 -> ``(B, n * k, H)``."""
        vectors = F.linear(visual, self.weight, self.bias)
        return vectors.reshape(len(visual), -1, self.width)

    def init_weights(self, std: float) -> None:
        """Of an embedding whose numbers are about 1, make vectors of scale ``std``."""
        nn.init.normal_(self.weight, std=std / math.sqrt(self.in_features))
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def rotate_input(self, rotation: Tensor) -> None:
        """Fold the inverse of ``rotation`` into the weights."""
        self.weight.copy_(self.weight @ rotation)
