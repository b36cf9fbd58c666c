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


def contrastive(network: MMGEMNetwork, batch: Batch, config: ObjectiveConfig) -> dict[str, Tensor]:
    """Embed images and texts, return ``{"contrastive_loss"}``."""
    visual = network.visual(network.tower.upper(batch.features))
    texts, _ = network.run(texts=batch.texts)
    return {"contrastive_loss": contrastive_loss(network, visual[:, 0], texts, batch, config)}


def contrastive_loss(
    network: MMGEMNetwork, images: Tensor, texts: Tensor, batch: Batch, config: ObjectiveConfig
) -> Tensor:
    """Scalar loss of ``images`` ``(B, D)`` and ``texts`` ``(N, D)``, not normalised."""
    images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    logits = network.logit_scale.exp() * images @ texts.T
    own = batch.text_owner[None, :] == torch.arange(len(images), device=logits.device)[:, None]
    if config.loss == "sigmoid":
        signs = own.to(logits) * 2 - 1
        return -F.logsigmoid(signs * (logits + network.logit_bias)).sum() / len(texts)
    i2t, t2i = own.to(logits), own.T.to(logits)
    i2t = i2t / i2t.sum(1, keepdim=True)
    if config.soft_targets and batch.teacher_texts is not None:
        similar = teacher_images(batch.teacher_texts, own) @ batch.teacher_texts.T
        similar = similar / config.teacher_temperature
        i2t = torch.lerp(i2t, similar.softmax(1), config.soft_targets)
        t2i = torch.lerp(t2i, similar.T.softmax(1), config.soft_targets)
    loss_i2t = -(i2t * logits.log_softmax(1)).sum(1).mean()
    loss_t2i = -(t2i * logits.T.log_softmax(1)).sum(1).mean()
    return loss_i2t + loss_t2i


def teacher_images(teacher_texts: Tensor, own: Tensor) -> Tensor:
    """The teacher's view of each image: the unit mean of its texts. ``(N, E)``, ``(B, N)`` -> ``(B, E)``."""
    return F.normalize(own.to(teacher_texts) @ teacher_texts, dim=-1)
