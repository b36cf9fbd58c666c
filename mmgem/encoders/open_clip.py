"""Checkpoints of open_clip (``open_clip_config.json`` and safetensors) as transformers' CLIPModel.

The two are the same function under other names where an image is the state at a class token and a text that
at its end; a configuration that says anything else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgem.errors import CheckpointError
from mmgem.utils.bounded_build import bounded_build, check_total
from mmgem.utils.hf_config import make_config
from mmgem.utils.model_files import read_json_object
from mmgem.utils.pretrained import build_model
from mmgem.utils.safetensors_files import load_safetensors, read_header

_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "model.safetensors")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IGNORED = {  # of training, of the tokenizer, or the same under the poolings that are read
    *("patch_dropout", "output_tokens", "pad_id", "eos_id", "final_ln_after_pool"),
    *("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "hf_model_pretrained"),
}
_SHAPES = {
    *("image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"),
    *("context_length", "vocab_size", "heads"),
}
_READ_AS = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",)}


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder says that open_clip wrote it."""
    return (folder / _CONFIG).exists()


def clip_config(folder: Path) -> Any:
    """The CLIPConfig that an ``open_clip_config.json`` describes. Raises ``CheckpointError`` for towers that
    are no CLIP of transformers."""
    path = folder / _CONFIG
    model = _table(read_json_object(path), "model_cfg", path)
    vision, text = (_table(model, name, path) for name in ("vision_cfg", "text_cfg"))
    for name, tower in (("vision_cfg", vision), ("text_cfg", text)):
        _check_tower(tower, f"{path}: model_cfg.{name}")
    if model.get("custom_text") or model.get("nonscalar_logit_scale"):
        raise CheckpointError(f"{path}: model_cfg: its text tower is none of CLIP's")
    try:
        dim, act = model["embed_dim"], "quick_gelu" if model.get("quick_gelu") else "gelu"
        width, wide = vision.get("width", 768), text.get("width", 512)
        config = {
            "projection_dim": dim,
            "vision_config": {
                "hidden_size": width,
                "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
                "num_hidden_layers": vision.get("layers", 12),
                "num_attention_heads": width // vision.get("head_width", 64),
                "image_size": vision.get("image_size", 224),
                "patch_size": vision.get("patch_size", 16),
                "projection_dim": dim,
                "hidden_act": act,
            },
            "text_config": {
                "hidden_size": wide,
                "intermediate_size": int(wide * text.get("mlp_ratio", 4.0)),
                "num_hidden_layers": text.get("layers", 12),
                "num_attention_heads": text.get("heads", 8),
                "max_position_embeddings": text.get("context_length", 77),
                "vocab_size": text.get("vocab_size", 49408),
                "projection_dim": dim,
                "hidden_act": act,
                "eos_token_id": 2,  # which transformers takes for: at the highest id, as open_clip does
            },
        }
        return make_config("clip", config, f"{path}: model_cfg")
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: model_cfg: describes no model ({error})") from error


def load_clip(folder: Path, config: Any) -> tuple[Any, Tensor | None]:
    """CLIPModel with the weights of a folder, float32, and its logit bias if it has one. Headers and shapes
    are checked before anything is allocated. Raises ``CheckpointError``."""
    from transformers import CLIPModel

    found = [folder / name for name in _WEIGHTS if (folder / name).exists()]
    if not found:
        raise CheckpointError(
            f"{folder / _WEIGHTS[0]}: missing; weights in other formats than safetensors are not read"
        )
    sizes = [math.prod(tensor.shape) for tensor in read_header(found[0]).tensors.values()]
    where = str(folder / _CONFIG)
    with bounded_build(sizes, where), torch.device("meta"), torch.random.fork_rng([]):
        outline = build_model(CLIPModel, config, where)
    check_total(outline, sizes, where)
    stored = {name: tensor.float() for name, tensor in load_safetensors(found[0]).items()}
    bias = stored.pop("logit_bias", None)
    try:
        weights = dict(_renamed(stored))
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{found[0]}: a tensor of no CLIP: {error}") from error
    model = build_model(CLIPModel, config, where)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    odd = expected.keys() ^ weights.keys() | {
        n for n in expected if n in weights and weights[n].shape != expected[n]
    }
    if odd:
        raise CheckpointError(f"{found[0]}: tensors do not fit the model: {', '.join(sorted(odd)[:5])}")
    model.load_state_dict(weights)
    return model, bias


def own_preprocessing(folder: Path) -> dict[str, Any]:
    """The fields of :class:`~mmgem.config.Preprocessing` that ``preprocess_cfg`` says; open_clip's defaults
    where it is silent. Raises ``CheckpointError`` for what is not done here."""
    path = folder / _CONFIG
    plain = read_json_object(path)
    told = _table(plain, "preprocess_cfg", path) if "preprocess_cfg" in plain else {}
    interpolation, resize = told.get("interpolation") or "bicubic", told.get("resize_mode") or "shortest"
    if interpolation not in ("bilinear", "bicubic") or resize not in ("shortest", "squash"):
        raise CheckpointError(f"{path}: preprocess_cfg: {interpolation}, {resize} is not done here")
    values = {}
    for name, usual in (("mean", _MEAN), ("std", _STD)):
        three = told.get(name) or list(usual)
        if (
            not isinstance(three, list)
            or len(three) != 3
            or not all(isinstance(v, int | float) for v in three)
        ):
            raise CheckpointError(f"{path}: preprocess_cfg.{name}: not three numbers")
        values[name] = tuple(map(float, three))
    size = clip_config(folder).vision_config.image_size
    return {"size": size, **values, "resize": resize, "interpolation": interpolation}


def _table(plain: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = plain.get(name)
    if not isinstance(table, dict):
        raise CheckpointError(f"{path}: {name}: missing, or no object")
    return table


def _check_tower(tower: dict[str, Any], where: str) -> None:
    """Refuse what makes another function of a tower than CLIP's."""
    for name, value in tower.items():
        if name in _IGNORED or value is None or value is False or value == {}:
            continue
        plain = type(value) in (int, float) if name in _SHAPES else value in _READ_AS.get(name, ())
        if not plain:
            raise CheckpointError(f"{where}.{name}: a tower with {str(value)[:60]!r} cannot be adopted")


def _renamed(stored: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by transformers' names. Raises ``KeyError`` for one that has none."""
    for name, value in stored.items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        rest = name.removeprefix("visual.")
        if rest in ("proj", "text_projection"):
            yield f"{'visual' if rest == 'proj' else 'text'}_projection.weight", value.T.contiguous()
        elif rest == "logit_scale":
            yield rest, value.reshape(())
        elif rest.startswith("transformer.resblocks."):
            number, _, part = rest.removeprefix("transformer.resblocks.").partition(".")
            inside = f"{tower}.encoder.layers.{number}"
            if part.startswith("attn.in_proj_"):
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    yield f"{inside}.self_attn.{letter}_proj.{part.removeprefix('attn.in_proj_')}", third
            else:
                module, _, kind = part.rpartition(".")
                yield f"{inside}.{_BLOCK[module]}.{kind}", value
        else:
            yield f"{tower}.{_OUTSIDE[rest]}", value


_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    **{f"ln_pre.{kind}": f"pre_layrnorm.{kind}" for kind in ("weight", "bias")},
    **{f"ln_post.{kind}": f"post_layernorm.{kind}" for kind in ("weight", "bias")},
    **{f"ln_final.{kind}": f"final_layer_norm.{kind}" for kind in ("weight", "bias")},
}
