"""A frozen image classifier: an encoder as its base weights are, and a linear map of its pooled map to
classes.

Whatever an encoder becomes while it trains, the classifier keeps saying what the base weights said: a soft
label over its classes for any image, or any box of one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmgem.config import EncoderConfig
from mmgem.encoders import encoder_class
from mmgem.encoders.base import Encoder
from mmgem.encoders.feature_cache import encoder_fingerprint
from mmgem.errors import ConfigError
from mmgem.models.pooling import pool_boxes, pool_full


class Classifier(nn.Module):
    """``names``: of the classes, None if its weights do not say."""

    def __init__(self, encoder: Encoder, weight: Tensor, bias: Tensor, names: list[str] | None = None):
        super().__init__()
        if weight.ndim != 2 or weight.shape[1] != encoder.channels or bias.shape != weight.shape[:1]:
            raise ConfigError(
                f"the classifier's weights are {tuple(weight.shape)} and {tuple(bias.shape)}; its encoder "
                f"gives {encoder.channels} channels"
            )
        self.encoder, self.names = encoder, names
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, source: str, config: EncoderConfig) -> Classifier:
        """The classifier that the base weights ``source`` (a folder or a hub id) are, with the encoder of
        ``config``. Raises ``ConfigError`` if they have none, ``CheckpointError`` for damaged weights."""
        kind = encoder_class(config)
        base = kind.load_base(source, config)
        encoder = kind.build(base.config)
        encoder.load_state_dict(base.tensors)
        weight, bias, names = kind.load_classifier(source)
        return cls(encoder.eval(), weight, bias, names)

    def check_features(self, encoder: Encoder) -> None:
        """Raise ``ConfigError`` unless its encoder's frozen stem is that of ``encoder``, whose features it is
        to read."""
        if encoder_fingerprint(self.encoder) != encoder_fingerprint(encoder):
            raise ConfigError(
                "the frozen stem of model.encoder is not that of the classifier, which cannot read its "
                "cached features; set data.cached = false"
            )

    @torch.no_grad()
    def forward(self, features: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Probabilities of the classes, float32: of whole images ``(B, classes)``, or of ``boxes``
        ``(B, K, 4)`` in pixels of the encoder's input ``(B, K, classes)``. ``features``: of the encoder's
        frozen stem, ``(B, h, w, c)``."""
        maps = self.encoder.trainable_head(features).float()
        if boxes is None:
            pooled = pool_full(maps)[:, 0]
        else:
            side = float(self.encoder.size)
            pooled = pool_boxes(maps, boxes, (side, side))[:, :, 0]
        logits = nn.functional.linear(pooled, self.weight, self.bias)
        return logits.softmax(-1)
