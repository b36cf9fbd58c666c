"""An image encoder of one's own: mean and spread of the colours in a grid, and a small network on them.

    mmgem --plugin examples/encoder_color_grid.py train recipes/tiny.toml data.train=my/captions.jsonl \
        model.encoder.kind=color_grid 'model.encoder.config={cells = 14}' optim.lr_encoder=1e-3

The colours never change, so they are computed once and cached; the network above them trains all the same.
There are no base weights: it starts as it is built.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgem.encoders import ENCODERS
from mmgem.encoders.base import Encoder
from mmgem.errors import ConfigError


@ENCODERS.register("color_grid")
class ColorGrid(Encoder):
    """The arguments are the fields of ``model.encoder.config``."""

    def __init__(self, size: int = 224, cells: int = 7, channels: int = 64):
        super().__init__()
        if cells < 1 or size % cells:
            raise ConfigError(f"model.encoder.config.cells: {cells} does not divide the size {size}")
        self.size, self.cells, self.channels = size, cells, channels
        self.mix = nn.Sequential(
            nn.Conv2d(6, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, channels, 1)
        )

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        mean = F.adaptive_avg_pool2d(pixels, self.cells)
        square = F.adaptive_avg_pool2d(pixels.square(), self.cells)
        spread = (square - mean.square()).clamp(min=0).sqrt()
        return torch.cat([mean, spread], 1).permute(0, 2, 3, 1)  # (B, cells, cells, 6)

    def trainable_head(self, features: Tensor) -> Tensor:
        return self.mix(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, cells, cells, channels)

    def frozen_parameters(self) -> list[nn.Parameter]:
        return []
