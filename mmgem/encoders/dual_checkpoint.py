"""Checkpoints of two towers that share a space: transformers' CLIP and SigLIP (of both generations), and
open_clip's. Whatever wrote one, it is read as the transformers model it equals.

What cannot be read so is refused in a line: towers of other kinds, and images of any shape (NaFlex).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmgem.encoders import open_clip
from mmgem.errors import CheckpointError
from mmgem.utils.model_files import read_json_object
from mmgem.utils.pretrained import load_config, load_pretrained, refuse_missing

MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""Classes of transformers by the ``model_type`` of a checkpoint of two towers."""

VISION_MODELS = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}
"""Those of their vision towers."""

_REFUSED = {"siglip2": "reads images of any shape (NaFlex); a SigLIP 2 checkpoint of one resolution can be"}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass
class DualCheckpoint:
    """``model``: transformers' CLIPModel or SiglipModel, float32. ``projection``: ``(D, C)`` from the pooled
    image to the shared space, None where it is that space. Logits are ``cosines * exp(logit_scale) +
    logit_bias``, all scalars."""

    model: Any
    projection: Tensor | None
    logit_scale: Tensor
    logit_bias: Tensor

    @property
    def vision(self) -> nn.Module:
        """The vision tower, of a class in :data:`VISION_MODELS`."""
        tower: nn.Module = self.model.vision_model
        return tower

    @property
    def max_tokens(self) -> int:
        """How many tokens a text may have, special ones included."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def pads_texts(self) -> bool:
        """Whether a text has to be as long as it may be: its embedding is the state at the last place."""
        return self.projection is None

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Text embeddings ``(B, D)``, not normalised, of padded token ids ``(B, L)`` int64."""
        pooled: Tensor = self.model.text_model(input_ids=ids).pooler_output
        return pooled if self.projection is None else self.model.text_projection(pooled)


def is_dual(folder: Path) -> bool:
    """Whether a folder holds two towers that can be read here, as far as its configuration says."""
    return _is_open_clip(folder) or _model_type(folder) in MODELS


def dual_config(folder: Path) -> Any:
    """The transformers config (``CLIPConfig`` or ``SiglipConfig``) of a checkpoint folder. Raises
    ``CheckpointError`` for one that cannot be read here."""
    if _is_open_clip(folder):
        return open_clip.clip_config(folder)
    model_type = _model_type(folder)
    if model_type not in MODELS:
        why = _REFUSED.get(model_type, "is no CLIP or SigLIP")
        raise CheckpointError(f"{folder}: {model_type or 'a folder without config.json'} {why}")
    config = load_config(folder)
    if not getattr(config.vision_config, "vision_use_head", True):
        raise CheckpointError(f"{folder}: its vision tower has no pooling head (vision_use_head)")
    return config


def load_dual(folder: Path) -> DualCheckpoint:
    """Both towers of a checkpoint folder. Raises ``CheckpointError`` for what cannot be read here, and for
    weights that are damaged or incomplete."""
    import transformers

    config = dual_config(folder)
    if _is_open_clip(folder):
        model, bias = open_clip.load_clip(folder, config)
    else:
        model, found = load_pretrained(getattr(transformers, MODELS[config.model_type]), folder)
        refuse_missing(found, str(folder))
        bias = getattr(model, "logit_bias", None)
    model.eval()
    scalar = torch.zeros(()) if bias is None else bias.detach().reshape(())
    head = getattr(model, "visual_projection", None)
    projection = None if head is None else head.weight.detach()
    return DualCheckpoint(model, projection, model.logit_scale.detach().reshape(()), scalar)


def own_preprocessing(folder: Path) -> dict[str, Any]:
    """The fields of :class:`~mmgem.config.Preprocessing` that a checkpoint's images went through. Raises
    ``CheckpointError`` where the folder does not say, or says what is not done here."""
    if _is_open_clip(folder):
        return open_clip.own_preprocessing(folder)
    path = folder / "preprocessor_config.json"
    plain = read_json_object(path)
    size, crop = _side(plain.get("size")), _side(plain.get("crop_size"))
    crops = bool(plain.get("do_center_crop", crop is not None))
    side = crop if crops else size
    if side is None or (crops and size != crop):
        raise CheckpointError(f"{path}: images are not made one square: size {plain.get('size')!r}")
    resample = plain.get("resample", 3)
    mean, std = plain.get("image_mean"), plain.get("image_std")
    if resample not in _INTERPOLATIONS or not (_three(mean) and _three(std)):
        raise CheckpointError(f"{path}: resample, image_mean or image_std are not those of a photo")
    return {
        "size": side,
        "mean": tuple(map(float, mean)),  # type: ignore[arg-type]
        "std": tuple(map(float, std)),  # type: ignore[arg-type]
        "resize": "shortest" if crops else "squash",
        "interpolation": _INTERPOLATIONS[resample],
    }


def _is_open_clip(folder: Path) -> bool:
    """Many repositories hold both forms of the same weights; then transformers' is read."""
    return not (_model_type(folder) in MODELS and _has_weights(folder)) and open_clip.is_checkpoint(folder)


def _has_weights(folder: Path) -> bool:
    return any((folder / f"model.safetensors{end}").exists() for end in ("", ".index.json"))


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    return str(read_json_object(path).get("model_type", ""))[:60] if path.exists() else ""


def _side(size: Any) -> int | None:
    """One side in pixels of the sizes that processors of transformers have."""
    if isinstance(size, dict):
        sides = {size.get("shortest_edge", size.get("height")), size.get("shortest_edge", size.get("width"))}
        size = sides.pop() if len(sides) == 1 else None
    return size if type(size) is int else None


def _three(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values)
