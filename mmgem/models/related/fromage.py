"""FROMAGe (Koh et al. 2023, arXiv 2301.13823): tower and LLM frozen, three linear maps and one token.

    captions   LLM(W_c f, x)                 W_c: visual_connector, f: the image's feature
    images     v = W_i f                     W_i: visual_projection
    texts      t = W_t LLM(x, [RET])_[RET]   W_t: text_projection, [RET]: emb_token

``[RET]`` is a token of the vocabulary too: its logit is the product with its own vector, so that the LLM
learns where to say it (:mod:`mmgem.tasks.related.fromage`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmgem.config import ModelConfig
from mmgem.models.network import MMGEMNetwork
from mmgem.models.related.base import options


class FROMAGe(MMGEMNetwork):
    """Trains ``visual_projection``, ``text_projection``, ``visual_connector``, ``emb_token`` and the
    temperature."""

    regions = False
    captions_from_embedding = False
    keeps_features = True
    plain_embedding = False
    frozen = ("llm", "embeddings", "encoder")

    def __init__(self, config: ModelConfig):
        options(config, {})
        super().__init__(config)

    def trains(self, name: str) -> bool:
        """All but the marker of captions and the bias of another loss."""
        return name not in ("cap_token", "logit_bias")

    def caption_start(self, prefixes: Tensor) -> Tensor:
        """The prefix alone."""
        return prefixes

    def logits_with_ret(self, states: Tensor) -> Tensor:
        """Logits ``(T, vocabulary + 1)`` of hidden ``states`` ``(T, H)``, the last of ``[RET]``."""
        return torch.cat([self.llm.logits(states), (states @ self.emb_token)[:, None]], 1)
