"""MiniGPT-4 (Zhu et al. 2023, arXiv 2304.10592): one linear layer from image tokens to a frozen LLM.

The tokens are the ``visual_grid`` x ``visual_grid`` tiles of the map, in the place of a Q-Former's outputs.
"""

from __future__ import annotations

from torch import Tensor

from mmgem.models.related.base import PrefixCaptioner


class MiniGPT4(PrefixCaptioner):
    """Nothing trains but ``visual_connector``, linear."""

    frozen = ("llm", "embeddings", "encoder")

    @property
    def prefix_length(self) -> int:
        """``visual_tokens`` a tile."""
        return self.config.visual_tokens * self.config.visual_grid**2

    def project_visual_prefix(self, visual: Tensor) -> Tensor:
        """The tiles ``(B, g * g, C)``, or the mean where g is 1 -> ``(B, P, H)``."""
        return self.visual_connector(visual[:, 1:] if visual.shape[1] > 1 else visual)
