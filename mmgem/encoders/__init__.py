"""Encoders: what turns media into feature maps. One file a kind, found by name in :data:`ENCODERS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmgem.config import EncoderConfig
from mmgem.errors import ConfigError
from mmgem.utils.registry import Registry

if TYPE_CHECKING:
    from mmgem.encoders.base import Encoder

ENCODERS: Registry[type[Encoder]] = Registry(
    "encoder",
    {
        "efficientnet_lite0": "mmgem.encoders.efficientnet:EfficientNetLiteEncoder",
        "transformers": "mmgem.encoders.transformers_vision:TransformersEncoder",
        "none": "mmgem.encoders.none:NoEncoder",
    },
    "mmgem.encoders",
)
"""Encoder classes by ``model.encoder.kind``."""


def encoder_class(config: EncoderConfig) -> type[Encoder]:
    """The class of ``config.kind``. Raises ``ConfigError`` for a kind that nobody registered."""
    try:
        return ENCODERS[config.kind]
    except ConfigError as error:
        raise ConfigError(f"model.encoder.kind: {error}") from error
