"""Vision models of transformers: those with a patch grid (CLIP, SigLIP, DINOv2/v3, ViT) and those with a
feature map (ConvNeXt, Swin, ResNet). Which families work is a table in :mod:`mmgem.encoders.families`.

What a model gives is found by its shapes, on the meta device, when it is built: a map, or tokens in reading
order after class, distillation and register tokens. Anything else is refused then.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from mmgem.config import EncoderConfig
from mmgem.encoders.base import BaseWeights, ConfiguredEncoder, refuse_contradictions, take_base_config
from mmgem.encoders.families import REFUSED, forced_config, model_inputs
from mmgem.errors import CheckpointError, ConfigError
from mmgem.utils.hf_config import export_config, make_config
from mmgem.utils.pretrained import build_model, load_config, load_pretrained, local_folder, refuse_missing

_WHERE = "model.encoder.config"


class TransformersEncoder(ConfiguredEncoder):
    """A vision model of transformers, whole in ``frozen_stem``.

    ``config``: the model's own, and optionally ``size``, the input side where it is not ``image_size``.
    Raises ``ConfigError`` for one that gives no square map per image.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        options = dict(config)
        self.model_type = options.pop("model_type", None)
        if self.model_type is None:
            raise ConfigError(f"{_WHERE}: model_type is missing")
        if self.model_type in REFUSED:
            raise ConfigError(f"{_WHERE}: {self.model_type} {REFUSED[self.model_type]}")
        size = options.pop("size", None)
        hf_config = _hf_config(self.model_type, options)
        self.net = self._net(hf_config)
        self.native_size = _native_size(hf_config)
        self.size = size or self.native_size
        # Some models resize their position table by themselves, others only if told to.
        self.interpolates_if_told = (
            "interpolate_pos_encoding" in inspect.signature(self.net.forward).parameters
        )
        self.prefix_tokens, self.channels = self._layout(hf_config)

    @classmethod
    def base_config(cls, source: str, config: EncoderConfig) -> EncoderConfig:
        """``config`` with the configuration of ``source``, unless it names its own ``model_type``."""

        def read() -> dict[str, Any]:
            full = load_config(local_folder(source, config_only=True))
            return export_config(getattr(full, "vision_config", full))

        return take_base_config(config, _WHERE, read)

    @classmethod
    def load_base(cls, source: str, config: EncoderConfig) -> BaseWeights:
        """Weights of a transformers folder or a hub id; of a model of images and texts, its vision part.

        Raises ``CheckpointError`` for weights that are incomplete, ``ConfigError`` for fields that they
        contradict."""
        try:
            folder = local_folder(source)
            full = load_config(folder)
            vision = getattr(full, "vision_config", full)
            net, found = load_pretrained(_model_class(vision), folder, vision)
        except CheckpointError as error:
            raise CheckpointError(f"init.encoder: {error}") from error
        refuse_missing(found, f"init.encoder: {source}", spare="pooler")  # which is not part of the map
        refuse_contradictions(config, net.config, _WHERE, "size")
        size = {"size": config.config["size"]} if "size" in config.config else {}
        weights = {f"net.{name}": value for name, value in net.state_dict().items()}
        return BaseWeights(weights, dataclasses.replace(config, config=export_config(net.config) | size))

    @classmethod
    def load_classifier(cls, source: str) -> tuple[Tensor, Tensor, list[str] | None]:
        """Of an image classification model of transformers that reads the mean of its map, as ResNet, Swin
        and RegNet do; its ``id2label`` has the names."""
        from transformers import AutoModelForImageClassification

        try:
            model, found = load_pretrained(AutoModelForImageClassification, local_folder(source))
        except CheckpointError as error:
            raise ConfigError(f"{source}: no image classifier: {_line(error)}") from error
        head = getattr(model, "classifier", nn.Identity())
        linear = [m for m in head.modules() if isinstance(m, nn.Linear)]
        if found["missing_keys"] or len(linear) != 1 or linear[0].bias is None:
            raise ConfigError(f"{source}: no image classifier with one linear map")
        if not _reads_mean(model.eval(), linear[0]):
            raise ConfigError(f"{source}: its classifier reads something else than the mean of the map")
        names = [str(model.config.id2label[n]) for n in range(linear[0].out_features)]
        return linear[0].weight.detach(), linear[0].bias.detach(), names

    def train(self, mode: bool = True) -> Self:
        """As every module; but batch norm keeps its statistics, which no rank and no resumed run could
        share."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """The whole model; its last hidden state as a map."""
        side = pixels.shape[-1]
        try:
            states = self._states(self.net, pixels)
        except (ValueError, RuntimeError) as error:
            if side == self.size or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ConfigError(
                f"{_WHERE}: {self.model_type} reads {self.size} pixels a side, not {side}: {_line(error)}"
            ) from error
        if states.ndim == 4:
            return states.permute(0, 2, 3, 1)
        grid = math.isqrt(states.shape[1] - self.prefix_tokens)
        if self.prefix_tokens + grid * grid != states.shape[1]:
            raise ConfigError(f"{_WHERE}: {self.model_type} gives no square map of {side} pixels a side")
        return states[:, self.prefix_tokens :].unflatten(1, (grid, grid))

    def _states(self, net: nn.Module, pixels: Tensor) -> Tensor:
        """Last hidden state: a map ``(B, C, H, W)`` or tokens ``(B, N, C)``."""
        options = model_inputs(self.model_type, net.config, pixels)
        if self.interpolates_if_told and pixels.shape[-1] != self.native_size:
            options["interpolate_pos_encoding"] = True
        out = net(**options)
        states = out.feature_maps[-1] if "feature_maps" in out else out.last_hidden_state
        if states.ndim == 3 and len(states) == 1:  # the tokens of all images in one row
            return states.view(len(pixels), -1, states.shape[-1])
        return states

    def _net(self, hf_config: Any) -> Any:
        try:
            return build_model(_model_class(hf_config), hf_config, _WHERE)
        except ConfigError as error:
            raise ConfigError(_line(error)) from error

    def _layout(self, hf_config: Any) -> tuple[int, int]:
        """How many tokens come before those of the map, and the width of both; found on the meta device."""
        try:
            with torch.device("meta"), torch.no_grad(), torch.random.fork_rng(devices=[]):
                net = self._net(hf_config).eval()
                states = self._states(net, torch.empty(2, 3, self.size, self.size))
        except CheckpointError:  # larger than its weights
            raise
        except Exception as error:
            raise ConfigError(f"{_WHERE}: {self.model_type} cannot read images: {_line(error)}") from error
        if states.ndim == 4 and len(states) == 2 and states.shape[2] == states.shape[3]:
            return 0, states.shape[1]
        if states.ndim == 3 and len(states) == 2:
            count, channels = states.shape[1:]
            registers = getattr(hf_config, "num_register_tokens", 0) or 0
            known = {0, 1, 2, registers, 1 + registers}  # class, distillation and register tokens
            patch = getattr(hf_config, "patch_size", None)
            grids = [self.size // patch] if isinstance(patch, int) else []
            for grid in (*grids, math.isqrt(count)):
                if count - grid * grid in known:
                    return count - grid * grid, channels
        raise ConfigError(
            f"{_WHERE}: {self.model_type} gives {tuple(states.shape)} for two images of {self.size} pixels, "
            "which is no square map each"
        )


@torch.no_grad()
def _reads_mean(model: Any, linear: nn.Linear) -> bool:
    """Whether ``linear`` of the mean of the map (or of all tokens) is what the classifier ``model`` says."""
    side = _native_size(model.config)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    states = model.base_model(pixels).last_hidden_state
    pooled = states.mean((2, 3)) if states.ndim == 4 else states.mean(1)
    if pooled.shape[1] != linear.in_features:
        return False
    return torch.allclose(model(pixels).logits, linear(pooled), rtol=1e-3, atol=1e-4)


def _hf_config(model_type: str, options: dict[str, Any]) -> Any:
    return make_config(model_type, options | forced_config(model_type), _WHERE)


def _model_class(hf_config: Any) -> Any:
    """The vision model of a configuration: its own class where ``AutoModel`` knows none. Raises
    ``ConfigError`` if there is none."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = MODEL_MAPPING_NAMES.get(hf_config.model_type)
    name = names if isinstance(names, str) else type(hf_config).__name__.removesuffix("Config") + "Model"
    try:
        return getattr(transformers, name)
    except AttributeError as error:
        raise ConfigError(f"{_WHERE}: {hf_config.model_type} has no vision model of its own") from error


def _native_size(hf_config: Any) -> int:
    """The input side a model was made for."""
    side = getattr(hf_config, "image_size", None)
    if side is None and getattr(hf_config, "num_patches", None) is not None:
        return math.isqrt(hf_config.num_patches) * hf_config.patch_size
    side = side or 224
    return side if isinstance(side, int) else max(side)


def _line(error: Exception) -> str:
    """What an error says, on one line, and not at length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
