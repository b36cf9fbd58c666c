"""Encoders: what turns media into feature maps. One file a kind, found by name in :data:`ENCODERS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmgem.config import EncoderConfig
from mmgem.config.encoders import ENCODERS
from mmgem.errors import ConfigError

if TYPE_CHECKING:
    from mmgem.encoders.base import Encoder

__all__ = ["ENCODERS", "encoder_class"]


def encoder_class(config: EncoderConfig) -> type[Encoder]:
    """The class of ``config.kind``. Raises ``ConfigError`` for a kind that nobody registered."""
    try:
        return ENCODERS[config.kind]
    except ConfigError as error:
        raise ConfigError(f"model.encoder.kind: {error}") from error
