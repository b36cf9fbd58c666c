"""A task of one's own: SigLIP's loss with a margin, and captions beside it, over the usual images and texts.

    mmgem --plugin examples/task_siglip_margin.py train recipes/tiny.toml \
        data.train=my/captions.jsonl siglip_margin.margin.margin=0.1

with ``[siglip_margin]`` in the place of ``[image_text]``. Chunks, several processes, resuming and
``mmgem plan`` work as for any task, because its loss is a term over embeddings.
"""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from mmgem import TASKS, CaptionConfig, CaptionTerm, EmbeddingTerm, ImageTextTask, gather_batch


@dataclass
class MarginConfig:
    """The table ``[siglip_margin.margin]``."""

    weight: float = 1.0
    margin: float = 0.2  # how much nearer than needed a text has to be to its image, as a cosine


@dataclass
class SigLIPMarginConfig:
    """The section ``[siglip_margin]``: a table a term."""

    margin: MarginConfig = field(default_factory=MarginConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)


class MarginTerm(EmbeddingTerm):
    """Every pair is told right or wrong by itself (arXiv 2303.15343); a right one has to beat the margin."""

    Config = MarginConfig

    def loss(self, network, images: Tensor, texts: Tensor, batch, world) -> dict[str, Tensor]:
        images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        gathered = gather_batch(images, texts, batch, world)  # the texts of all processes
        positives = gathered.positives(gathered.v, slice(None))
        cosines = images @ gathered.texts.T - self.config.margin * positives
        logits = network.logit_scale.exp() * cosines + network.logit_bias
        loss = -F.logsigmoid(logits * (positives.float() * 2 - 1)).sum() / len(gathered.texts)
        return {"margin_loss": self.config.weight * loss}


@TASKS.register("siglip_margin")
class SigLIPMarginTask(ImageTextTask):
    """Images and texts, learned by other terms."""

    name = "siglip_margin"
    Config = SigLIPMarginConfig
    terms = {"margin": MarginTerm, "caption": CaptionTerm}  # noqa: RUF012
