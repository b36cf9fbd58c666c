"""A task of one's own: SigLIP's loss with a margin, and captions beside it, over the usual images and texts.

    mmgem --plugin examples/task_siglip_margin.py train my.toml siglip_margin.margin.margin=0.1

where ``my.toml`` is a recipe with ``[siglip_margin]`` in the place of ``[image_text]``. Chunks, several
processes, resuming and ``mmgem plan`` work as for any task, because its loss is a term over embeddings.
"""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from mmgem import TASKS, CaptionConfig, CaptionTerm, EmbeddingTerm, ImageTextTask, gather_batch, setting


@dataclass
class MarginConfig:
    """The table ``[siglip_margin.margin]``."""

    weight: float = setting(1.0, help="Of the loss; 0: left out.", low=0)
    margin: float = setting(0.2, help="Cosine by which a right pair has to be nearer than needed.", low=0)


@dataclass
class SigLIPMarginConfig:
    """The section ``[siglip_margin]``: a table for each of the task's terms, by the same names."""

    margin: MarginConfig = field(default_factory=MarginConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)


class MarginTerm(EmbeddingTerm):
    """Every pair is told right or wrong by itself (arXiv 2303.15343); a right one has to beat the margin."""

    def loss(self, network, images: Tensor, texts: Tensor, batch, world) -> dict[str, Tensor]:
        images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        gathered = gather_batch(images, texts, batch, world)  # of all processes
        positives = gathered.positives()  # (images of this process, all texts) bool
        cosines = images @ gathered.texts.T - self.config.margin * positives
        logits = network.logit_scale.exp() * cosines + network.logit_bias
        loss = -F.logsigmoid(logits * (positives.float() * 2 - 1)).sum() / len(gathered.texts)
        return {"margin_loss": loss}


@TASKS.register("siglip_margin")
class SigLIPMarginTask(ImageTextTask):
    """Images and texts, learned by other terms."""

    Config = SigLIPMarginConfig
    terms = {"margin": MarginTerm, "caption": CaptionTerm}  # noqa: RUF012
