"""Symmetric InfoNCE between images and texts (CLIP, arXiv 2103.00020; L_emb of MM-GEM, a sum of two).

Several texts may describe one image: they share the target mass. ``soft_targets`` moves part of it to
other pairs that a text teacher finds similar, because "two dogs run in snow" is not a wrong caption for
the next photo of dogs in snow. ``loss = "sigmoid"`` is SigLIP's pairwise loss (arXiv 2303.15343).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.config import ObjectiveConfig
from mmgem.data.batches import Batch
from mmgem.models.network import MMGEMNetwork

# Far below any logit (at most 100), yet finite: a target of 0 times it is 0.
_MASKED = -1e4


def contrastive(network: MMGEMNetwork, batch: Batch, config: ObjectiveConfig) -> dict[str, Tensor]:
    """Embed images and texts, return ``{"contrastive_loss"}``."""
    visual = embed_items(network, batch)
    texts, _ = network.run(texts=batch.texts)
    return {"contrastive_loss": contrastive_loss(network, visual[:, 0], texts, batch, config)}


def contrastive_loss(
    network: MMGEMNetwork, images: Tensor, texts: Tensor, batch: Batch, config: ObjectiveConfig
) -> Tensor:
    """Scalar loss of ``images`` ``(B, D)`` and ``texts`` ``(N, D)``, not normalised."""
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    logits = network.logit_scale.exp() * images @ texts.T
    own = batch.text_owner[None, :] == torch.arange(len(images), device=logits.device)[:, None]
    if config.mask_same and (same := same_things(batch, own)) is not None:
        logits = logits.masked_fill(same & ~own, _MASKED)
    if config.loss == "sigmoid":
        signs = own.to(logits) * 2 - 1
        return -F.logsigmoid(signs * (logits + network.logit_bias)).sum() / len(texts)
    i2t, t2i = own.to(logits), own.T.to(logits)
    i2t = i2t / i2t.sum(1, keepdim=True)
    if config.soft_targets and batch.teacher_texts is not None:
        similar = teacher_images(batch.teacher_texts, own) @ batch.teacher_texts.T
        similar = (similar / config.teacher_temperature).masked_fill(logits == _MASKED, -torch.inf)
        i2t = torch.lerp(i2t, similar.softmax(1), config.soft_targets)
        t2i = torch.lerp(t2i, similar.T.softmax(1), config.soft_targets)
    loss_i2t = -(i2t * logits.log_softmax(1)).sum(1).mean()
    loss_t2i = -(t2i * logits.T.log_softmax(1)).sum(1).mean()
    return loss_i2t + loss_t2i


def embed_items(network: MMGEMNetwork, batch: Batch) -> Tensor:
    """Visual embeddings ``(V, 1 + tiles, D)`` of the batch's whole images, then of its boxes."""
    items = []
    if len(batch.features):
        items.append(network.visual(network.tower.upper(batch.features)))
    if batch.boxes is not None and batch.box_features is not None and batch.box_valid is not None:
        maps = network.tower.upper(batch.box_features)
        boxes, valid = batch.boxes.to(maps.device), batch.box_valid.to(maps.device)
        items.append(network.visual(maps, boxes)[valid])
    return torch.cat(items)


def same_things(batch: Batch, own: Tensor) -> Tensor | None:
    """``(V, N)``: whether item and text belong to one photo, or the item has a text of the same words."""
    if batch.photos is None or batch.text_keys is None:
        return None
    photo = batch.photos[:, None] == batch.photos[batch.text_owner][None]
    words = batch.text_keys[:, None] == batch.text_keys[None]
    return photo.to(own.device) | (own.float() @ words.float().to(own.device) > 0)


def teacher_images(teacher_texts: Tensor, own: Tensor) -> Tensor:
    """The teacher's view of each image: the unit mean of its texts. ``(N, E)``, ``(B, N)`` -> ``(B, E)``."""
    return F.normalize(own.to(teacher_texts) @ teacher_texts, dim=-1)
