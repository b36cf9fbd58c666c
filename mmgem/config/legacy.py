"""Names of earlier versions and what they are called now: recipe keys, fields of model folders, tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

V = TypeVar("V")

RECIPE_KEYS = {
    "start": "init",
    "start.tower": "init.encoder",
    "data.views": "data.cached_augmentations",
    "data.mosaic_views": "data.mosaic_augmentations",
    "data.long_texts": "data.joined_caption_prob",
    "model.tower": "model.encoder",
    "model.tower.cut": "model.encoder.freeze_until",
    "optim.lr_new": "optim.lr_heads",
    "optim.lr_tower": "optim.lr_encoder",
    "optim.warmup": "optim.warmup_steps",
    "optim.final_lr": "optim.final_lr_ratio",
    "optim.clip": "optim.max_grad_norm",
    "optim.ema": "optim.ema_decay",
    "train.batch": "train.batch_size",
    "train.keep": "train.keep_checkpoints",
    "train.chunk": "train.grad_cache_chunk_size",
}
"""A section stands for all of its fields that have no line of their own."""

_TENSORS = {
    "tower": "encoder",
    "h1": "visual_projection",
    "h2": "text_projection",
    "h3": "visual_connector",
    "emb": "emb_token",
    "cap": "cap_token",
}


def current_key(key: str) -> str:
    """What the dotted ``key`` of a recipe is called now; the same where nothing changed."""
    if key in RECIPE_KEYS:
        return RECIPE_KEYS[key]
    section, dot, name = key.rpartition(".")
    return f"{current_key(section)}.{name}" if dot else key


def current_tensors(tensors: Mapping[str, V]) -> dict[str, V]:
    """``tensors`` of a model by the names they have now."""
    return {_current_tensor(name): value for name, value in tensors.items()}


def _current_tensor(name: str) -> str:
    part, dot, rest = name.partition(".")
    return f"{_TENSORS.get(part, part)}{dot}{rest}"


def current_config(data: Any, section: str = "") -> tuple[Any, dict[str, str]]:
    """Plain config ``data`` of any version with today's keys, and the old keys that were met with their new
    names. ``section``: where in a recipe ``data`` stands. Values are not looked at."""
    if not isinstance(data, dict):
        return data, {}
    renamed: dict[str, str] = {}
    upgraded: dict[str, Any] = {}
    for name, value in data.items():
        key = f"{section}.{name}" if section else str(name)
        value, inner = current_config(value, key)
        new = current_key(key)
        if new != key and not inner:
            renamed[key] = new
        renamed |= inner
        _, _, last = new.rpartition(".")
        upgraded[last] = value
    return upgraded, renamed
