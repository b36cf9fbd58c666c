"""BLIP's losses (Li et al. 2022, arXiv 2201.12086): ITC + ITM + LM, of equal weight.

ITC is halved InfoNCE. ITM tells pairs that belong together from others: beside each pair, its image with
another text and its text with another image, drawn among those of the batch by how near they are. There is
no momentum encoder: no queue, and no soft labels.
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
from mmgem.distributed.world import World
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.models.related.blip import BLIP
from mmgem.tasks.base import Terms
from mmgem.tasks.image_text.captioning import CaptionTerm
from mmgem.tasks.image_text.config import CaptionConfig, ContrastiveConfig
from mmgem.tasks.image_text.contrastive import ContrastiveTerm
from mmgem.tasks.image_text.task import ImageTextTask
from mmgem.tasks.image_text.terms import PairTerm, Term
from mmgem.tasks.related.kinds import check_kind


@dataclass
class MatchingConfig:
    """Whether an image and a text belong together, read together."""

    weight: float = setting(1.0, help="Of the loss; 0: left out.", low=0)


@dataclass
class BLIPConfig:
    """BLIP's losses, added up: ITC (half of both directions), ITM, LM."""

    contrastive: ContrastiveConfig = setting(default_factory=lambda: ContrastiveConfig(weight=0.5))
    matching: MatchingConfig = setting(default_factory=MatchingConfig)
    caption: CaptionConfig = setting(default_factory=CaptionConfig)


class MatchingTerm(PairTerm):
    """ITM with hard negatives of this process's part of the batch."""

    uses_logit_bias = False

    def check(self, recipe: Recipe) -> None:
        """Raise ``ConfigError`` for a network without a head for it, and for a batch of one."""
        check_kind(self.section, recipe.model, BLIP, "blip", "whose head it trains")
        if recipe.train.batch_size == 1:
            raise ConfigError(f"train.batch_size: 1 image has no other, as {self.section} asks")

    def loss(
        self,
        network: MMGEMNetwork,
        visual: Tensor,
        images: Tensor,
        texts: Tensor,
        batch: Batch,
        world: World,
    ) -> Terms:
        """``{"matching_loss", "matching_accuracy"}``: this process's share of the mean cross-entropy over the
        pairs of a step, three a text."""
        assert isinstance(network, BLIP)
        owner = batch.text_owner.to(images.device)
        with torch.no_grad():
            cosines = F.normalize(texts.float(), dim=-1) @ F.normalize(images.float(), dim=-1).T
            other_image, other_text = hard_negatives(network.logit_scale.exp() * cosines, owner)
        ids = batch.texts
        paired = [*ids, *(ids[int(n)] for n in other_text.tolist()), *ids]
        seen = torch.cat([owner, owner, other_image])
        logits = network.match(visual, paired, [int(n) for n in seen.tolist()]).float()
        labels = torch.zeros(len(paired), dtype=torch.long, device=logits.device)
        labels[: len(ids)] = 1
        (count,) = world.all_reduce_sum(len(paired))
        right = (logits.detach().argmax(1) == labels).sum()
        return {
            "matching_loss": F.cross_entropy(logits, labels, reduction="sum") / count,
            "matching_accuracy": right / count,
        }


def hard_negatives(logits: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """For each of N texts, whose images are ``owner`` ``(N,)``: an image that is not its own, and a text of
    another image for its image, ``(N,)`` int64 both, drawn with the softmax of ``logits`` ``(N, V)``.

    Where a process has a single image, there is none: a text is then paired with its own again."""
    images = torch.arange(logits.shape[1], device=owner.device)
    own = owner[:, None] == images
    same = owner[:, None] == owner

    def draw(values: Tensor, excluded: Tensor) -> Tensor:
        weights = values.masked_fill(excluded, -torch.inf).softmax(1)
        # Far ones must stay possible where all others are excluded and near ones underflow.
        weights = torch.where(excluded, 0.0, weights.nan_to_num(0.0) + 1e-6)
        return torch.multinomial(weights + excluded.all(1, keepdim=True), 1)[:, 0]

    return draw(logits, own), draw(logits.T[owner], same)


class BLIPTask(ImageTextTask):
    """Images and texts as BLIP learns them."""

    name = "blip"
    Config: ClassVar[type[Any]] = BLIPConfig
    terms: ClassVar[Mapping[str, type[Term]]] = {
        "contrastive": ContrastiveTerm,
        "matching": MatchingTerm,
        "caption": CaptionTerm,
    }
