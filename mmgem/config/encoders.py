"""Encoder classes by ``model.encoder.kind`` (:class:`mmgem.encoders.base.Encoder`)."""

from __future__ import annotations

from typing import Any

from mmgem.utils.registry import Registry

ENCODERS: Registry[Any] = Registry(
    "encoder",
    {
        "efficientnet_lite0": "mmgem.encoders.efficientnet:EfficientNetLite0",
        "efficientnet_lite1": "mmgem.encoders.efficientnet:EfficientNetLite1",
        "efficientnet_lite2": "mmgem.encoders.efficientnet:EfficientNetLite2",
        "transformers": "mmgem.encoders.transformers_vision:TransformersEncoder",
        "clip": "mmgem.encoders.clip:CLIPEncoder",
        "audio": "mmgem.encoders.transformers_audio:SpectrogramEncoder",
        "none": "mmgem.encoders.none:NoEncoder",
    },
    "mmgem.encoders",
)
