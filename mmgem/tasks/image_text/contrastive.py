"""Symmetric InfoNCE between images and texts (CLIP, arXiv 2103.00020; L_emb of MM-GEM, a sum of two).

Several texts may describe one image: they share the target mass. ``soft_targets`` moves part of it to
other pairs that a text teacher finds similar, because "two dogs run in snow" is not a wrong caption for
the next photo of dogs in snow. ``loss = "sigmoid"`` is SigLIP's pairwise loss (arXiv 2303.15343).

Over several ranks every image and text has all others as negatives: embeddings are gathered, each rank
computes the rows of its own, and the losses of all ranks add up to that of one process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.config import ObjectiveConfig
from mmgem.data.batches import Batch
from mmgem.distributed.world import SINGLE_PROCESS, World
from mmgem.models.llm import autocast
from mmgem.models.network import MMGEMNetwork

# Far below any logit (at most 100), yet finite: a target of 0 times it is 0.
_MASKED = -1e4


@dataclass
class GatheredBatch:
    """The images and texts of all ranks. ``images`` ``(V, D)``, ``texts`` ``(N, D)``: unit rows; ``owner``
    ``(N,)``: the image of each text; ``photos``, ``keys``, ``teacher``: as in a batch. ``v``, ``n``: the
    images and texts of this rank."""

    images: Tensor
    texts: Tensor
    owner: Tensor
    photos: Tensor | None
    keys: Tensor | None
    teacher: Tensor | None
    v: slice
    n: slice


def contrastive(
    network: MMGEMNetwork, batch: Batch, config: ObjectiveConfig, world: World = SINGLE_PROCESS
) -> dict[str, Tensor]:
    """Embed images and texts, return ``{"contrastive_loss", "similarity_gap"}``."""
    visual = embed_items(network, batch)
    texts, _ = network.run(texts=batch.texts)
    return contrastive_terms(network, visual[:, 0], texts, batch, config, world)


def contrastive_terms(
    network: MMGEMNetwork,
    images: Tensor,
    texts: Tensor,
    batch: Batch,
    config: ObjectiveConfig,
    world: World = SINGLE_PROCESS,
) -> dict[str, Tensor]:
    """``contrastive_loss`` of ``images`` ``(V, D)`` and ``texts`` ``(N, D)``, not normalised, times its
    configured weight: this rank's share of the mean over the images and over the texts of all ranks. And
    ``similarity_gap``: how much nearer a text is to its own image than to the others (cosine)."""
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    every = gather_batch(images, texts, batch, world)
    total_v, total_n = len(every.images), len(every.texts)
    scale = network.logit_scale.exp()
    i2t = scale * images @ every.texts.T
    own = every.owner[None] == torch.arange(total_v, device=i2t.device)[every.v, None]
    gap = _similarity_margin(i2t.detach() / scale.detach(), own, total_v, total_n)
    if config.mask_same and (same := false_negative_mask(every, every.v, slice(0, total_n))) is not None:
        i2t = i2t.masked_fill(same & ~own, _MASKED)
    if config.loss == "sigmoid":
        signs = own.to(i2t) * 2 - 1
        loss = -F.logsigmoid(signs * (i2t + network.logit_bias)).sum() / total_n
        return {"contrastive_loss": config.contrastive_weight * loss, "similarity_gap": gap}
    t2i, owned = i2t.T, own.T
    if world.size > 1:
        t2i = scale * texts @ every.images.T
        owned = every.owner[every.n, None] == torch.arange(total_v, device=t2i.device)[None]
        if config.mask_same and (same := false_negative_mask(every, slice(0, total_v), every.n)) is not None:
            t2i = t2i.masked_fill(same.T & ~owned, _MASKED)
    similar: tuple[Tensor | None, Tensor | None] = None, None
    if config.soft_targets and every.teacher is not None:
        seen = teacher_images(every.teacher, every.owner, total_v)
        heat = config.teacher_temperature
        similar = seen[every.v] @ every.teacher.T / heat, every.teacher[every.n] @ seen.T / heat
    share = config.soft_targets
    loss = _cross_entropy(i2t, own, similar[0], share) / total_v
    loss = loss + _cross_entropy(t2i, owned, similar[1], share) / total_n
    return {"contrastive_loss": config.contrastive_weight * loss, "similarity_gap": gap}


def _cross_entropy(logits: Tensor, own: Tensor, similar: Tensor | None, share: float) -> Tensor:
    """Sum over the rows, each against its own columns in equal parts (and what the teacher finds similar)."""
    target = own.to(logits)
    target = target / target.sum(1, keepdim=True)
    if similar is not None:
        similar = similar.masked_fill(logits == _MASKED, -torch.inf)
        target = torch.lerp(target, similar.softmax(1), share)
    return -(target * logits.log_softmax(1)).sum()


def _similarity_margin(cosines: Tensor, own: Tensor, total_v: int, total_n: int) -> Tensor:
    others = max(1, total_v * total_n - total_n)
    return cosines[own].sum() / total_n - cosines[~own].sum() / others


def gather_batch(images: Tensor, texts: Tensor, batch: Batch, world: World) -> GatheredBatch:
    """Gather what the loss needs of all ranks; gradients flow back into ``images`` and ``texts``."""
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


def embed_items(network: MMGEMNetwork, batch: Batch) -> Tensor:
    """Visual embeddings ``(V, 1 + tiles, D)`` of the batch's whole images, then of its boxes."""
    items = []
    if len(batch.features) or batch.pixels is not None:
        items.append(network.encode_image(_maps(network, batch.features, batch.pixels)))
    seen = batch.box_features is not None or batch.box_pixels is not None
    if seen and batch.boxes is not None and batch.box_valid is not None:
        maps = _maps(network, batch.box_features, batch.box_pixels)
        boxes, valid = batch.boxes.to(maps.device), batch.box_valid.to(maps.device)
        items.append(network.encode_image(maps, boxes)[valid])
    return torch.cat(items)


def _maps(network: MMGEMNetwork, features: Tensor | None, pixels: Tensor | None) -> Tensor:
    encoder, given = network.encoder, features if pixels is None else pixels
    assert given is not None
    with autocast(given, encoder.training_dtype if encoder.training else torch.float32):
        return encoder.trainable_head(given if pixels is None else encoder.frozen_stem(pixels)).float()


def false_negative_mask(every: GatheredBatch, v: slice, n: slice) -> Tensor | None:
    """Whether image and text belong to one photo, or the image has a text of the same words: of the images
    ``v`` and the texts ``n``, ``(len(v), len(n))`` bool."""
    if every.photos is None or every.keys is None:
        return None
    photo = every.photos[v, None] == every.photos[every.owner[n]][None]
    # Which of the wanted words each image has: images x distinct texts, not texts x texts.
    wanted, column = every.keys[n].unique(return_inverse=True)
    place = torch.searchsorted(wanted, every.keys).clamp(max=len(wanted) - 1)
    hit = (wanted[place] == every.keys) & (every.owner >= v.start) & (every.owner < v.stop)
    has = torch.zeros(len(photo), len(wanted), dtype=torch.bool, device=photo.device)
    has[every.owner[hit] - v.start, place[hit]] = True
    return photo | has[:, column]


def teacher_images(teacher_texts: Tensor, owner: Tensor, count: int) -> Tensor:
    """The teacher's view of each of ``count`` images: the unit mean of its texts ``(N, E)`` -> ``(V, E)``."""
    total = teacher_texts.new_zeros(count, teacher_texts.shape[1])
    return F.normalize(total.index_add(0, owner, teacher_texts), dim=-1)
