"""A connector of one's own: each input vector of the LLM is a linear map of the embedding times a gate of it.

    mmgem --plugin examples/connector_gated.py train recipes/tiny.toml data.train=my/captions.jsonl \
        'model.connector={kind = "gated"}'
"""

import math

import torch
from torch import Tensor, nn

from mmgem.models.connectors import CONNECTORS
from mmgem.models.connectors.base import Connector


@CONNECTORS.register("gated")
class Gated(Connector):
    """``dim``, ``width`` and ``tokens`` are given; what follows are fields of ``model.connector.config``."""

    def __init__(self, dim: int, width: int, tokens: int, bias: float = 1.0):
        super().__init__()
        self.width, self.start = width, bias
        self.value, self.gate = nn.Linear(dim, tokens * width), nn.Linear(dim, tokens * width)

    def forward(self, visual: Tensor) -> Tensor:
        vectors = self.value(visual) * torch.sigmoid(self.gate(visual))
        return vectors.reshape(len(visual), -1, self.width)  # (B, n, D) -> (B, n * tokens, H)

    def init_weights(self, std: float) -> None:
        for layer, scale in ((self.value, std), (self.gate, 0.1)):
            nn.init.normal_(layer.weight, std=scale / math.sqrt(layer.in_features))
        nn.init.zeros_(self.value.bias)
        nn.init.constant_(self.gate.bias, self.start)

    @torch.no_grad()
    def rotate_input(self, rotation: Tensor) -> None:  # mmgem export --pca-rotate; without it that is refused
        for layer in (self.value, self.gate):
            layer.weight.copy_(layer.weight @ rotation)
