"""CLIP (Radford et al. 2021, arXiv 2103.00020) and SigLIP (Zhai et al. 2023, arXiv 2303.15343): two encoders.

The text transformer is one of its own that starts at random, whatever ``model.llm.config`` describes (CLIP's
is GPT-2's: norms first, learned positions), and it only embeds: the state at the end token, projected.
SigLIP's looks both ways (``model.attention``); the two differ in their loss.
"""

from __future__ import annotations

from mmgem.config import ModelConfig
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.models.related.base import options


class DualEncoder(MMGEMNetwork):
    """Image and text embeddings, and nothing else."""

    captions = False
    regions = False
    own_text = True

    def __init__(self, config: ModelConfig):
        options(config, {})
        if "model_type" not in config.llm.config:
            raise ConfigError(f"model.llm.config: missing; {config.kind!r} has a text transformer of its own")
        super().__init__(config)

    def trains(self, name: str) -> bool:
        """All but the marker of captions."""
        return name != "cap_token"
