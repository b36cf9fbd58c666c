"""Autoregressive captioning: -log P(x_i | V_in, [CAP], x_<i), mean over caption and end-of-text tokens.

The output head runs only where a caption token is predicted. ``sampled_softmax`` > 0 estimates the full
softmax from the tokens that occur in the training captions plus a random sample of all others, weighted
by the inverse of its rate (sampled softmax, Jean et al. 2015, arXiv 1412.2007); 0 is the exact loss.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.data.batches import Batch
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.base import Terms
from mmgem.tasks.image_text.config import CaptionConfig
from mmgem.tasks.image_text.terms import TokenTerm


class CaptionTerm(TokenTerm):
    """Predict every caption from its image."""

    uses_logit_bias = False

    def loss(self, network: MMGEMNetwork, states: Tensor, batch: Batch, total: float) -> Terms:
        """``{"caption_loss"}``, see :func:`caption_loss`."""
        return {"caption_loss": caption_loss(network, states, batch, self.config, total)}


def caption_loss(
    network: MMGEMNetwork, states: Tensor, batch: Batch, config: CaptionConfig, total: float | None = None
) -> Tensor:
    """Sum of the cross-entropies of ``states`` ``(T, H)`` against the batch's caption tokens, over ``total``
    tokens (None: its own, so that it is their mean)."""
    targets = batch.caption_targets.to(states.device)
    total = total or len(targets) or 1  # no caption in the batch: no loss
    sampled = config.sampled_softmax and batch.vocabulary is not None
    vocabulary = batch.vocabulary if sampled else None
    loss = token_cross_entropy(
        network, states, targets, vocabulary, config.sampled_softmax, config.label_smoothing
    )
    return loss / total


def token_cross_entropy(
    network: MMGEMNetwork,
    states: Tensor,
    targets: Tensor,
    vocabulary: Tensor | None = None,
    sampled: int = 0,
    smoothing: float = 0.0,
) -> Tensor:
    """Sum of the cross-entropies of ``states`` ``(T, H)`` against ``targets`` ``(T,)``, tokens of
    ``vocabulary`` (None: any, exact): the softmax is over these and ``sampled`` random ones. ``smoothing``:
    share of the target that is spread over the vocabulary."""
    if vocabulary is None:
        logits = network.llm.logits(states).float()
        return F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    used_ids, targets = vocabulary.to(states.device), targets.to(states.device)
    vocabulary_size = network.llm.vocabulary
    # Sampled tokens that are in use are counted already: their copies get no mass.
    position = torch.full((vocabulary_size,), -1, device=used_ids.device)
    position[used_ids] = torch.arange(len(used_ids), device=used_ids.device)
    chosen, weights = used_ids, torch.zeros(len(used_ids), device=used_ids.device)
    if sampled:
        sample = torch.randint(vocabulary_size, (sampled,), device=used_ids.device)
        log_inverse_rate = math.log(vocabulary_size / sampled)
        sample_weights = torch.where(position[sample] >= 0, -torch.inf, log_inverse_rate)
        chosen, weights = torch.cat([used_ids, sample]), torch.cat([weights, sample_weights])
    logits, places = network.llm.logits_of(states, chosen).float(), position[targets]
    losses = F.cross_entropy(logits + weights, places, reduction="none")
    if not smoothing:
        return losses.sum()
    log_norm = losses + logits.gather(1, places[:, None])[:, 0]
    mean_logit = (logits @ weights.exp()) / vocabulary_size
    return (1 - smoothing) * losses.sum() + smoothing * (log_norm - mean_logit).sum()
