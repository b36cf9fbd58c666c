"""Encoder classes by ``model.encoder.kind`` (:class:`mmgem.encoders.base.Encoder`)."""

from __future__ import annotations

from typing import Any

from mmgem.utils.registry import Registry

ENCODERS: Registry[Any] = Registry(
    "encoder",
    {
        "efficientnet_lite0": "mmgem.encoders.efficientnet:EfficientNetLiteEncoder",
        "transformers": "mmgem.encoders.transformers_vision:TransformersEncoder",
        "none": "mmgem.encoders.none:NoEncoder",
    },
    "mmgem.encoders",
)
