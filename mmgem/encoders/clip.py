"""The vision tower of a CLIP or SigLIP checkpoint with its own pooling: a whole image is what the checkpoint
says it is, a box is pooled from a map of patches that lie in the same space.

A whole image is CLIP's class token, or SigLIP's attention pooling; it travels with the map, packed behind the
patches' channels (:meth:`~mmgem.encoders.base.Encoder.split_map`). The map is one of two (``patch_map``):

    last    patches as the last block leaves them; in CLIP they have looked around so much that each says
            little of its own place
    value   of the last block only the value path: each patch attends to itself alone, as MaskCLIP does
            (Zhou et al. 2022, arXiv 2112.01071)

Patches then go through what the pooled image goes through: CLIP's last norm; SigLIP's pooling head, which
attends to a patch alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgem.config import EncoderConfig
from mmgem.encoders.base import (
    Alignment,
    BaseWeights,
    ConfiguredEncoder,
    pack_whole,
    refuse_contradictions,
    take_base_config,
)
from mmgem.encoders.dual_checkpoint import VISION_MODELS, dual_config, load_dual, own_preprocessing
from mmgem.errors import CheckpointError, ConfigError
from mmgem.utils.hf_config import export_config, make_config
from mmgem.utils.pretrained import build_model, local_folder

_WHERE = "model.encoder.config"
_PATCH_MAPS = ("last", "value")
_DEFAULT_PATCH_MAP = {"clip_vision_model": "value", "siglip_vision_model": "last"}


class CLIPEncoder(ConfiguredEncoder):
    """A vision tower that is aligned with texts, whole in ``frozen_stem``.

    ``config``: a transformers config of CLIP's or SigLIP's vision tower, ``model_type`` and its fields, and
    ``patch_map``: ``last`` or ``value``; by default the value path of CLIP, whose class token gathers the
    image in the last block, and the last map of SigLIP, whose pooling head does.
    """

    aligned = True

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config, patch_map = _read_config(config)
        self.reads_values = patch_map == "value"
        import transformers

        net = getattr(transformers, VISION_MODELS[self.config.model_type])
        self.net: Any = build_model(net, self.config, _WHERE)
        self.size, self.channels = self.config.image_size, self.config.hidden_size

    @classmethod
    def base_config(cls, source: str, config: EncoderConfig) -> EncoderConfig:
        """``config`` with the configuration of ``source``, unless it names its own ``model_type``."""

        def read() -> dict[str, Any]:
            return _vision_config(dual_config(local_folder(source, config_only=True)))

        return take_base_config(config, _WHERE, read)

    @classmethod
    def load_base(cls, source: str, config: EncoderConfig) -> BaseWeights:
        """The vision tower of a checkpoint folder or a hub id, and how its images lie in the checkpoint's
        space. Raises ``CheckpointError`` for what cannot be adopted, ``ConfigError`` for fields that the
        weights contradict."""
        try:
            dual = load_dual(local_folder(source))
        except CheckpointError as error:
            raise CheckpointError(f"init.encoder: {error}") from error
        own = _vision_config(dual.model.config)
        described = make_config(own["model_type"], own, _WHERE)
        refuse_contradictions(config, described, _WHERE, "patch_map")
        weights = {f"net.{name}": value for name, value in dual.vision.state_dict().items()}
        projection = dual.projection
        if projection is None:
            projection = torch.eye(dual.model.config.vision_config.hidden_size)
        alignment = Alignment(projection, dual.logit_scale, dual.logit_bias)
        return BaseWeights(weights, dataclasses.replace(config, config=own | config.config), alignment)

    @classmethod
    def own_space(cls, config: EncoderConfig) -> int:
        """D of the checkpoint's embeddings. Raises ``ConfigError`` where ``config`` does not say enough."""
        vision, _ = _read_config(config.config)
        return int(getattr(vision, "projection_dim", None) or vision.hidden_size)

    @classmethod
    def own_preprocessing(cls, source: str, config: EncoderConfig) -> dict[str, Any]:
        """What the checkpoint's images go through; of one that is not on this machine the side alone."""
        if not Path(source).is_dir():
            return {"size": _read_config(config.config)[0].image_size}
        try:
            return own_preprocessing(Path(source))
        except CheckpointError as error:
            raise ConfigError(f"init.encoder: {error}") from error

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """The whole tower: the map of patches, and the whole image packed behind it."""
        net = getattr(self.net, "vision_model", self.net)
        resized = pixels.shape[-1] != self.size
        states = net.embeddings(pixels, interpolate_pos_encoding=resized)
        if hasattr(net, "pre_layrnorm"):
            states = net.pre_layrnorm(states)
        *blocks, last = net.encoder.layers
        for block in blocks:
            states = block(states, attention_mask=None)
        gathered = net.post_layernorm(last(states, attention_mask=None))
        patches = net.post_layernorm(_attend_to_itself(last, states)) if self.reads_values else gathered
        if hasattr(net, "head"):
            whole, patches = net.head(gathered), _pool_alone(net.head, patches)
        else:
            whole, patches = gathered[:, 0], patches[:, 1:]
        side = pixels.shape[-1] // self.config.patch_size
        return pack_whole(patches.unflatten(1, (side, side)), whole)


def _read_config(config: dict[str, Any]) -> tuple[Any, str]:
    """The transformers config of a vision tower, and which map of it is read."""
    options = dict(config)
    model_type = options.pop("model_type", None)
    if model_type not in VISION_MODELS:
        known = ", ".join(VISION_MODELS)
        raise ConfigError(f"{_WHERE}: model_type: {str(model_type)[:60]!r} is none of {known}")
    patch_map = options.pop("patch_map", _DEFAULT_PATCH_MAP[model_type])
    if patch_map not in _PATCH_MAPS:
        raise ConfigError(f"{_WHERE}.patch_map: {patch_map!r} is not one of {', '.join(_PATCH_MAPS)}")
    return make_config(model_type, options, _WHERE), patch_map


def _vision_config(dual: Any) -> dict[str, Any]:
    """The config of the vision tower of two, with the width of their space."""
    plain = export_config(dual.vision_config)
    width = getattr(dual, "projection_dim", None)
    return plain if width is None else plain | {"projection_dim": width}


def _attend_to_itself(block: Any, states: Tensor) -> Tensor:
    """``block`` of a transformer where every token of ``states`` ``(B, N, C)`` looks at itself alone: then
    attention is its value path."""
    values = block.self_attn.v_proj(block.layer_norm1(states))
    states = states + block.self_attn.out_proj(values)
    return states + block.mlp(block.layer_norm2(states))


def _pool_alone(head: Any, states: Tensor) -> Tensor:
    """What SigLIP's pooling head makes of each token of ``states`` ``(B, N, C)`` if there is no other."""
    attention: nn.MultiheadAttention = head.attention
    third = attention.embed_dim * 2
    assert attention.in_proj_weight is not None and attention.in_proj_bias is not None
    values = F.linear(states, attention.in_proj_weight[third:], attention.in_proj_bias[third:])
    pooled = attention.out_proj(values)
    return pooled + head.mlp(head.layernorm(pooled))
