"""Families of vision models in transformers: what is known to work, and what cannot.

tests/test_vision_families.py runs every one, and docs/models.md shows the tables. A family that is in neither
works if its shapes are those of a map (see :mod:`mmgem.encoders.transformers_vision`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Family:
    """A ``model_type``, a ``config`` of a few thousand parameters, and whether it reads ``any_size`` (of
    which a patch, or the stride of its last map, is a divisor), or only the side it was made for."""

    model_type: str
    config: dict[str, Any]
    any_size: bool = True


_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
_STAGES = {"hidden_sizes": [4, 4, 8, 16], "depths": [1, 1, 1, 1], "image_size": 64}
_HEADS = _STAGES | {"num_attention_heads": [1, 1, 2, 2]}
_SWIN = {
    "embed_dim": 4,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
    "image_size": 64,
}
_SAM = {"output_channels": 8, "mlp_dim": 16, "window_size": 2, "global_attn_indexes": [1]}
_CVT = {"embed_dim": [4, 8, 16], "depth": [1, 2, 3], "num_heads": [1, 1, 2]}
_NARROW = {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25}
_LEVIT = {"hidden_sizes": [8, 16, 16], "depths": [1, 1, 1], "key_dim": [4, 4, 4]}
_MOBILEVIT = {"hidden_sizes": [8, 8, 16], "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16]}

FAMILIES = (
    *(
        Family(name, _VIT)
        for name in [
            "altclip_vision_model",
            "beit",
            "blip_2_vision_model",
            "blip_vision_model",
            "chinese_clip_vision_model",
            "clip_vision_model",
            "clipseg_vision_model",
            "data2vec-vision",
            "deit",
            "dinov2",
            "dpt",
            "git_vision_model",
            "ijepa",
            "instructblip_vision_model",
            "internvl_vision",
            "janus_vision_model",
            "metaclip_2_vision_model",
            "mlcd_vision_model",
            "owlv2_vision_model",
            "owlvit_vision_model",
            "pixtral",
            "siglip_vision_model",
            "tipsv2_vision_model",
            "vit",
            "vit_mae",
            "vit_msn",
            "vitdet",
        ]
    ),
    Family("dinov2_with_registers", _VIT | {"num_register_tokens": 2}),
    Family("dinov3_vit", _VIT | {"num_register_tokens": 2}),
    Family(
        "siglip2_vision_model", {k: v for k, v in _VIT.items() if k != "image_size"} | {"num_patches": 16}
    ),
    Family("aimv2_vision_model", _VIT, any_size=False),
    Family("sam_vision_model", _VIT | _SAM, any_size=False),
    Family("sam_hq_vision_model", _VIT | _SAM, any_size=False),
    *(Family(name, _SWIN) for name in "donut-swin maskformer-swin swin swinv2".split()),  # noqa: SIM905
    *(Family(name, _STAGES) for name in "convnext convnextv2 dinov3_convnext poolformer".split()),  # noqa: SIM905
    *(Family(name, _HEADS) for name in "glpn pvt_v2 segformer".split()),  # noqa: SIM905
    Family("pvt", _HEADS, any_size=False),
    Family("resnet", _STAGES | {"embedding_size": 4, "layer_type": "basic"}),
    Family("regnet", _STAGES | {"embedding_size": 4, "groups_width": 4}),
    Family("bit", _STAGES | {"embedding_size": 4, "num_groups": 1}),
    Family("focalnet", _STAGES | {"embed_dim": 4}),
    Family("hiera", _SWIN | {"image_size": [64, 64]}),
    Family("cvt", _CVT | {"image_size": 64}),
    Family("levit", _LEVIT | {"image_size": 256, "num_attention_heads": [1, 1, 2]}, any_size=False),
    Family("mobilenet_v1", {"image_size": 64, "depth_multiplier": 0.25}),
    Family("mobilenet_v2", {"image_size": 64, "depth_multiplier": 0.25, "finegrained_output": False}),
    Family("mobilevit", _MOBILEVIT | {"image_size": 64, "num_attention_heads": 2}),
    Family("mobilevitv2", {"image_size": 64, "width_multiplier": 0.25}),
    Family("efficientnet", _NARROW | {"hidden_dim": 320}),
    Family("align_vision_model", _NARROW),
)
"""What is tested: maps of each image alone, in reading order, with gradients."""

REFUSED = {
    "groupvit_vision_model": "gathers the image's tokens into groups, which are no map",
    "idefics3_vision": "finds positions by the values of a mask",
    "llama4_vision_model": "reads tiles of an image",
    "mllama_vision_model": "reads tiles of an image",
    "phi4_multimodal_vision": "finds positions by the values of a mask",
    "pix2struct_vision_model": "reads patches of a text's rendering",
    "smolvlm_vision": "finds positions by the values of a mask",
    "timesformer": "reads videos",
    "videomae": "reads videos",
    "vivit": "reads videos",
    "xclip_vision_model": "reads videos",
    "yolos": "puts its detection tokens behind those of the image",
}
"""What cannot work, and why; each follows its name in a message."""


def forced_config(model_type: str) -> dict[str, Any]:
    """Fields that a model has to have to give a map."""
    return {"mask_ratio": 0.0} if model_type == "vit_mae" else {}


def model_inputs(model_type: str, hf_config: Any, pixels: Tensor) -> dict[str, Any]:
    """What the forward of a model takes for ``pixels`` ``(B, 3, S, S)``."""
    count, _, side, _ = pixels.shape
    if model_type == "vit_mae":
        # It sorts the patches by this noise before it drops a share of them, which is none.
        order = torch.arange((side // hf_config.patch_size) ** 2, device=pixels.device)
        return {"pixel_values": pixels, "noise": order.expand(count, -1)}
    if model_type == "siglip2_vision_model":
        patch = hf_config.patch_size
        grid = side // patch
        cells = pixels[..., : grid * patch, : grid * patch].unflatten(3, (grid, patch))
        cells = cells.unflatten(2, (grid, patch)).permute(
            0, 2, 4, 3, 5, 1
        )  # (B, grid, grid, patch, patch, 3)
        return {
            "pixel_values": cells.flatten(3).flatten(1, 2),
            "pixel_attention_mask": None,
            "spatial_shapes": torch.tensor([[grid, grid]] * count, device="cpu"),
        }
    return {"pixel_values": pixels}
