"""No encoder: a model of texts only, which embeds, searches and answers, and sees nothing."""

from __future__ import annotations

from torch import Tensor

from mmgem.encoders.base import Encoder
from mmgem.errors import UsageError


class NoEncoder(Encoder):
    """In the place of an encoder in a model of texts only: it has no parameters and refuses images."""

    channels = 0
    sees_images = False

    def __init__(self, size: int = 224):
        super().__init__()
        self.size = size

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """Raise ``UsageError``."""
        raise UsageError("this model reads texts only: it has no vision encoder")
