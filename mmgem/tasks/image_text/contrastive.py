"""Symmetric InfoNCE between images and texts (CLIP, arXiv 2103.00020; L_emb of MM-GEM, a sum of two).

Several texts may describe one image: they share the target mass. ``distill_weight`` moves part of it to
other pairs that a text teacher finds similar, because "two dogs run in snow" is not a wrong caption for
the next photo of dogs in snow. ``loss = "sigmoid"`` is SigLIP's pairwise loss (arXiv 2303.15343).

Over several processes every image and text has all others as negatives: embeddings are gathered, each process
computes the rows of its own, and the losses of all add up to that of a single one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.config import Recipe
from mmgem.data.batches import Batch
from mmgem.distributed.world import SINGLE_PROCESS, World
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.base import Terms
from mmgem.tasks.image_text.config import ContrastiveConfig
from mmgem.tasks.image_text.terms import EmbeddingTerm

# Far below any logit (at most 100), yet finite: a target of 0 times it is 0.
_MASKED = -1e4


@dataclass
class GatheredBatch:
    """The images and texts of all processes. ``images`` ``(V, D)``, ``texts`` ``(N, D)``, as given;
    ``owner`` ``(N,)``: the image of each text; ``photos``, ``keys``, ``teacher``: as in a batch. ``v``,
    ``n``: the images and texts of this process."""

    images: Tensor
    texts: Tensor
    owner: Tensor
    photos: Tensor | None
    keys: Tensor | None
    teacher: Tensor | None
    v: slice
    n: slice

    def positives(self, v: slice | None = None, n: slice | None = None) -> Tensor:
        """Whether the texts ``n`` (None: all) belong to the images ``v`` (None: those of this process):
        ``(len(v), len(n))`` bool."""
        v, n = v or self.v, n or slice(None)
        items = torch.arange(len(self.images), device=self.owner.device)
        return self.owner[None, n] == items[v, None]


class ContrastiveTerm(EmbeddingTerm):
    """Contrast images and texts."""

    def __init__(self, config: ContrastiveConfig, section: str):
        super().__init__(config, section)
        self.uses_logit_bias = config.loss == "sigmoid"

    def check(self, recipe: Recipe) -> None:
        """Raise ``ConfigError`` for a teacher that is missing or has no say, and for a batch of one."""
        config = self.config
        if config.distill_weight and config.loss == "sigmoid":
            raise ConfigError(
                f"{self.section}.distill_weight: excludes {self.section}.loss = 'sigmoid', which has no "
                "targets"
            )
        if config.distill_weight and config.teacher is None:
            raise ConfigError(f'{self.section}.teacher: distill_weight needs a teacher, e.g. "minilm"')
        if recipe.train.batch_size == 1:
            raise ConfigError(
                f"train.batch_size: 1 image has no other to be told from, as {self.section} asks"
            )

    def loss(self, network: MMGEMNetwork, images: Tensor, texts: Tensor, batch: Batch, world: World) -> Terms:
        """``{"contrastive_loss", "similarity_margin"}``, see :func:`contrastive_terms`."""
        return contrastive_terms(network, images, texts, batch, self.config, world)


def contrastive_terms(
    network: MMGEMNetwork,
    images: Tensor,
    texts: Tensor,
    batch: Batch,
    config: ContrastiveConfig,
    world: World = SINGLE_PROCESS,
) -> Terms:
    """``contrastive_loss`` of ``images`` ``(V, D)`` and ``texts`` ``(N, D)``, not normalised: this
    process's share of the mean over the images and over the texts of all processes. And
    ``similarity_margin``: how much nearer a text is to its own image than to the others (cosine)."""
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    gathered = gather_batch(images, texts, batch, world)
    all_v, all_n = slice(0, len(gathered.images)), slice(0, len(gathered.texts))
    scale = network.logit_scale.exp()
    i2t = scale * images @ gathered.texts.T
    positives = gathered.positives(gathered.v, all_n)
    margin = similarity_margin(i2t.detach() / scale.detach(), positives, all_v.stop, all_n.stop)
    if config.mask_false_negatives:
        i2t = _masked(i2t, positives, false_negative_mask(gathered, gathered.v, all_n))
    if config.loss == "sigmoid":
        signs = positives.to(i2t) * 2 - 1
        loss = -F.logsigmoid(signs * (i2t + network.logit_bias)).sum() / all_n.stop
        return {"contrastive_loss": loss, "similarity_margin": margin}
    t2i, text_positives = i2t.T, positives.T
    if world.size > 1:
        t2i = scale * texts @ gathered.images.T
        text_positives = gathered.positives(all_v, gathered.n).T
        if config.mask_false_negatives:
            same = false_negative_mask(gathered, all_v, gathered.n)
            t2i = _masked(t2i, text_positives, None if same is None else same.T)
    i2t_teacher: Tensor | None = None
    t2i_teacher: Tensor | None = None
    if config.distill_weight and gathered.teacher is not None:
        image_teacher = teacher_images(gathered.teacher, gathered.owner, all_v.stop)
        temperature = config.teacher_temperature
        i2t_teacher = image_teacher[gathered.v] @ gathered.teacher.T / temperature
        t2i_teacher = gathered.teacher[gathered.n] @ image_teacher.T / temperature
    loss = _cross_entropy(i2t, positives, i2t_teacher, config.distill_weight) / all_v.stop
    loss = loss + _cross_entropy(t2i, text_positives, t2i_teacher, config.distill_weight) / all_n.stop
    return {"contrastive_loss": loss, "similarity_margin": margin}


def _cross_entropy(
    logits: Tensor, positives: Tensor, teacher_logits: Tensor | None, soft_target_weight: float
) -> Tensor:
    """Sum over the rows, each against its own columns in equal parts (and what the teacher finds similar)."""
    target = positives.to(logits)
    target = target / target.sum(1, keepdim=True)
    if teacher_logits is not None:
        teacher_logits = teacher_logits.masked_fill(logits == _MASKED, -torch.inf)
        target = torch.lerp(target, teacher_logits.softmax(1), soft_target_weight)
    return -(target * logits.log_softmax(1)).sum()


def _masked(logits: Tensor, positives: Tensor, false_negatives: Tensor | None) -> Tensor:
    return logits if false_negatives is None else logits.masked_fill(false_negatives & ~positives, _MASKED)


def similarity_margin(cosines: Tensor, positives: Tensor, images: int, texts: int) -> Tensor:
    """This process's share of the mean cosine of ``positives`` less that of all other pairs of so many
    ``images`` and ``texts``; ``cosines`` and ``positives`` ``(v, texts)``."""
    others = max(1, images * texts - texts)
    return cosines[positives].sum() / texts - cosines[~positives].sum() / others


def gather_batch(images: Tensor, texts: Tensor, batch: Batch, world: World) -> GatheredBatch:
    """Gather what the loss needs of all processes; gradients flow back into ``images`` and ``texts``."""
    device = images.device
    owner = batch.text_owner.to(device)
    photos, keys, teacher = (
        None if x is None else x.to(device) for x in (batch.photos, batch.text_keys, batch.teacher_texts)
    )
    v, n = world.all_gather_sizes(len(images)), world.all_gather_sizes(len(texts))
    before_v, before_n = sum(v[: world.rank]), sum(n[: world.rank])
    return GatheredBatch(
        images=world.all_gather(images, v),
        texts=world.all_gather(texts, n),
        owner=world.all_gather(owner + before_v, n),
        photos=None if photos is None else world.all_gather(photos, v),
        keys=None if keys is None else world.all_gather(keys, n),
        teacher=None if teacher is None else world.all_gather(teacher, n),
        v=slice(before_v, before_v + len(images)),
        n=slice(before_n, before_n + len(texts)),
    )


def false_negative_mask(gathered: GatheredBatch, v: slice, n: slice) -> Tensor | None:
    """Whether image and text belong to one photo, or the image has a text of the same words: of the images
    ``v`` and the texts ``n``, ``(len(v), len(n))`` bool."""
    if gathered.photos is None or gathered.keys is None:
        return None
    same_photo = gathered.photos[v, None] == gathered.photos[gathered.owner[n]][None]
    # Which of these keys each image has: images x distinct texts, not texts x texts.
    distinct_keys, column = gathered.keys[n].unique(return_inverse=True)
    key_index = torch.searchsorted(distinct_keys, gathered.keys).clamp(max=len(distinct_keys) - 1)
    match = (
        (distinct_keys[key_index] == gathered.keys) & (gathered.owner >= v.start) & (gathered.owner < v.stop)
    )
    image_has_key = torch.zeros(
        len(same_photo), len(distinct_keys), dtype=torch.bool, device=same_photo.device
    )
    image_has_key[gathered.owner[match] - v.start, key_index[match]] = True
    return same_photo | image_has_key[:, column]


def teacher_images(teacher_texts: Tensor, owner: Tensor, count: int) -> Tensor:
    """The teacher's view of each of ``count`` images: the unit mean of its texts ``(N, E)`` -> ``(V, E)``."""
    total = teacher_texts.new_zeros(count, teacher_texts.shape[1])
    return F.normalize(total.index_add(0, owner, teacher_texts), dim=-1)
