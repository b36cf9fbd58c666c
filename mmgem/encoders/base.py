"""Vision encoders: pixels in, a feature map ``(B, H, W, C)`` out.

Every encoder is cut in two: ``frozen_stem`` (pixels to features that never change while it is frozen, so
they are
computed once and cached) and ``trainable_head`` (the rest, which may train). ``upper(lower(x))`` is the
encoder.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from mmgem.encoders.efficientnet_lite import EfficientNetLite
from mmgem.errors import ConfigError, UsageError


class Encoder(nn.Module):
    """A vision encoder cut in two. ``channels`` is C of the map, ``size`` its input side in pixels."""

    channels: int
    size: int
    training_dtype = torch.float32
    """What it computes in while it trains; its weights and its map stay in float32."""

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """``(B, 3, S, S)`` float, normalised -> features ``(B, h, w, c)``, the part that can be cached."""
        raise NotImplementedError

    def trainable_head(self, features: Tensor) -> Tensor:
        """Features of :meth:`frozen_stem` -> map ``(B, H, W, C)``."""
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, S, S)`` float -> ``(B, H, W, C)`` float32, whatever the weights are in."""
        dtype = next((p.dtype for p in self.parameters()), pixels.dtype)
        return self.trainable_head(self.frozen_stem(pixels.to(dtype))).float()

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Parameters used by :meth:`frozen_stem`; frozen whenever its output is cached."""
        return list(self.parameters())


class NoEncoder(Encoder):
    """In the place of an encoder in a model of texts only: it has no parameters and refuses images."""

    channels = 0

    def __init__(self, size: int = 224):
        super().__init__()
        self.size = size

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """Raise ``UsageError``."""
        raise UsageError("this model reads texts only: it has no vision encoder")


class EfficientNetLiteEncoder(Encoder):
    """EfficientNet-Lite0. ``freeze_until``: how many of its 16 blocks belong to ``frozen_stem`` (None: the
    whole net)."""

    def __init__(self, freeze_until: int | None = None, size: int = 224, stem: int = 32, head: int = 1280):
        super().__init__()
        self.net = EfficientNetLite(stem=stem, head=head)
        if freeze_until is not None and not 0 <= freeze_until <= len(self.net.blocks):
            raise ConfigError(
                f"model.encoder.freeze_until: {freeze_until} is not between 0 and {len(self.net.blocks)}"
            )
        self.freeze_until, self.size, self.channels = freeze_until, size, head

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """Stem and the first ``freeze_until`` blocks."""
        x = self.net.stem.relu6(pixels.contiguous(memory_format=torch.channels_last))
        for block in self.net.blocks[: self.freeze_until]:
            x = block(x)
        if self.freeze_until is None:
            x = self.net.head.relu6(x)
        return x.permute(0, 2, 3, 1)

    def trainable_head(self, features: Tensor) -> Tensor:
        """The remaining blocks and the 1280-channel head."""
        if self.freeze_until is None:
            return features
        x = features.permute(0, 3, 1, 2)
        for block in self.net.blocks[self.freeze_until :]:
            x = block(x)
        return self.net.head.relu6(x).permute(0, 2, 3, 1)

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Parameters of the stem and the first ``freeze_until`` blocks."""
        if self.freeze_until is None:
            return list(self.parameters())
        return [*self.net.stem.parameters(), *self.net.blocks[: self.freeze_until].parameters()]


class TransformersEncoder(Encoder):
    """Any transformers vision model with a patch grid (CLIP, SigLIP, DINOv2/v3, ViT) or a feature map
    (ConvNeXt, ResNet). Class and register tokens are dropped: they come first in all of them.

    ``config``: the model's own, and optionally ``size``, the input side where it is not ``image_size``."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        from transformers import AutoConfig, AutoModel

        options = dict(config)
        model_type = options.pop("model_type", None)
        if model_type is None:
            raise ConfigError("model.encoder.config: model_type is missing")
        size = options.pop("size", None)
        try:
            hf_config = AutoConfig.for_model(model_type, **options)
            self.net = AutoModel.from_config(hf_config)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"model.encoder.config: {error}") from error
        native = getattr(hf_config, "image_size", 224)
        native = native if isinstance(native, int) else max(native)
        self.size = size or native
        self.native = native
        # Some models resize their position table by themselves, others only if told to.
        self.told = "interpolate_pos_encoding" in inspect.signature(self.net.forward).parameters
        self.channels = getattr(hf_config, "hidden_size", None) or hf_config.hidden_sizes[-1]
        patch = getattr(hf_config, "patch_size", None)
        self.patch = patch if isinstance(patch, int) else None

    def train(self, mode: bool = True) -> TransformersEncoder:
        """As every module; but batch norm keeps its statistics, which no rank and no resumed run could
        share."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """The whole model; its last hidden state as a map."""
        options = {"interpolate_pos_encoding": True} if self.told and pixels.shape[-1] != self.native else {}
        states = self.net(pixel_values=pixels, **options).last_hidden_state
        if states.ndim == 4:
            return states.permute(0, 2, 3, 1)
        if self.patch is None:
            raise ConfigError("model.encoder.config: patch_size is missing, so tokens cannot become a map")
        height, width = pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch
        return states[:, states.shape[1] - height * width :].unflatten(1, (height, width))
