"""MM-GEM's loss, L = L_emb + L_gen, with both modes packed into one pass of the LLM."""

from __future__ import annotations

from torch import Tensor

from mmgem.config import ObjectiveConfig
from mmgem.data.batches import Batch
from mmgem.distributed.world import SINGLE_PROCESS, World
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.image_text.captioning import caption_loss
from mmgem.tasks.image_text.contrastive import contrastive_terms, embed_items


def joint(
    network: MMGEMNetwork, batch: Batch, config: ObjectiveConfig, world: World = SINGLE_PROCESS
) -> dict[str, Tensor]:
    """Return ``{"contrastive_loss", "caption_loss"}``, each times its configured weight, and
    ``"similarity_gap"``."""
    visual = embed_items(network, batch)
    prefixes = network.project_visual_prefix(visual[batch.caption_owner])
    texts, states = network.run(texts=batch.texts, captions=batch.captions, prefixes=prefixes)
    (total,) = world.all_reduce_sum(len(batch.caption_targets))
    generation = caption_loss(network, states, batch, config, total)
    return {
        **contrastive_terms(network, visual[:, 0], texts, batch, config, world),
        "caption_loss": config.caption_weight * generation,
    }
