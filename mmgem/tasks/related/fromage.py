"""FROMAGe's losses (Koh et al. 2023, arXiv 2301.13823): captions, retrieval by ``[RET]``, saying it.

L = CE(captions) + CE(texts, [RET]) + (InfoNCE_i2t + InfoNCE_t2i) / 2
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.config import Recipe
from mmgem.config.fields import setting
from mmgem.data.batches import Batch
from mmgem.models.network import MMGEMNetwork
from mmgem.models.related.fromage import FROMAGe
from mmgem.tasks.base import Terms
from mmgem.tasks.image_text.captioning import CaptionTerm
from mmgem.tasks.image_text.config import CaptionConfig, ContrastiveConfig
from mmgem.tasks.image_text.contrastive import ContrastiveTerm
from mmgem.tasks.image_text.task import ImageTextTask
from mmgem.tasks.image_text.terms import Term, TextTokenTerm
from mmgem.tasks.related.kinds import check_kind


@dataclass
class SayRetConfig:
    """Texts that are embedded, predicted token by token, and ``[RET]`` at their end."""

    weight: float = setting(1.0, help="Of the loss; 0: left out.", low=0)


@dataclass
class FROMAGeConfig:
    """FROMAGe's losses, added up: captions, retrieval (half of both directions), and saying `[RET]`."""

    contrastive: ContrastiveConfig = setting(default_factory=lambda: ContrastiveConfig(weight=0.5))
    caption: CaptionConfig = setting(default_factory=CaptionConfig)
    say_ret: SayRetConfig = setting(default_factory=SayRetConfig)


class SayRetTerm(TextTokenTerm):
    """Predict every token of a text but its first, and ``[RET]`` behind its last."""

    uses_logit_bias = False

    def check(self, recipe: Recipe) -> None:
        """Raise ``ConfigError`` for a network without ``[RET]`` in its vocabulary."""
        check_kind(self.section, recipe.model, FROMAGe, "fromage", "whose [RET] it learns to say")

    def loss(self, network: MMGEMNetwork, states: Tensor, batch: Batch, total: float) -> Terms:
        """``{"say_ret_loss"}``: cross-entropy over the vocabulary and ``[RET]``, a mean over all tokens."""
        assert isinstance(network, FROMAGe)
        ret = torch.tensor([network.llm.vocabulary])
        targets = torch.cat([part for ids in batch.texts for part in (ids[1:], ret)]).to(states.device)
        logits = network.logits_with_ret(states).float()
        return {"say_ret_loss": F.cross_entropy(logits, targets, reduction="sum") / total}


class FROMAGeTask(ImageTextTask):
    """Images and texts as FROMAGe learns them."""

    name = "fromage"
    Config: ClassVar[type[Any]] = FROMAGeConfig
    terms: ClassVar[Mapping[str, type[Term]]] = {
        "contrastive": ContrastiveTerm,
        "caption": CaptionTerm,
        "say_ret": SayRetTerm,
    }
