"""ClipCap (Mokady et al. 2021, arXiv 2111.09734): an image's one feature becomes a prefix of the LLM.

Two forms. The mapper is an MLP and the LLM is tuned with it; or it is a transformer with a learned query for
each vector of the prefix, and the LLM is frozen (``optim.lr_llm = 0``). The feature is the mean of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmgem.errors import ConfigError
from mmgem.models.connectors.base import Connector
from mmgem.models.related.base import PrefixCaptioner


class ClipCap(PrefixCaptioner):
    """``model.connector.kind``: ``clipcap_mlp`` or ``clipcap_transformer``; ``model.visual_tokens``: the
    prefix length."""


class MLPMapper(Connector):
    """Linear to half of the prefix's numbers, tanh, linear."""

    def __init__(self, dim: int, width: int, tokens: int):
        super().__init__()
        self.width = width
        self.up = nn.Linear(dim, width * tokens // 2)
        self.down = nn.Linear(width * tokens // 2, width * tokens)

    def forward(self, visual: Tensor) -> Tensor:
        """``(B, n, C)`` float32 -> ``(B, n * k, H)``."""
        return self.down(self.up(visual).tanh()).reshape(len(visual), -1, self.width)


class TransformerMapper(Connector):
    """``clip_tokens`` vectors made of the feature and ``tokens`` learned ones behind them, read by ``layers``
    layers of ``heads`` heads; what becomes of the learned ones is the prefix."""

    def __init__(
        self, dim: int, width: int, tokens: int, clip_tokens: int = 10, layers: int = 8, heads: int = 8
    ):
        super().__init__()
        for name, value in (("clip_tokens", clip_tokens), ("layers", layers), ("heads", heads)):
            if type(value) is not int or value < 1:
                raise ConfigError(f"model.connector.config.{name}: {value!r} is not 1 or more")
        if width % heads:
            raise ConfigError(
                f"model.connector.config.heads: {heads} does not divide {width}, the LLM's width"
            )
        self.width, self.clip_tokens = width, clip_tokens
        self.linear = nn.Linear(dim, clip_tokens * width)
        self.queries = nn.Parameter(torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="relu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, visual: Tensor) -> Tensor:
        """``(B, n, C)`` float32 -> ``(B, n * k, H)``."""
        made = self.linear(visual.flatten(0, 1)).unflatten(-1, (self.clip_tokens, self.width))
        read = self.layers(torch.cat([made, self.queries.expand(len(made), -1, -1)], 1))
        return read[:, self.clip_tokens :].reshape(len(visual), -1, self.width)
