"""The range of every number of a recipe, for those that are finite but impossible, and those that are not."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmgem.config import Recipe
from mmgem.errors import ConfigError

_LARGEST = sys.float_info.max  # what is infinite, or no number, is above it


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, called ``said``; ``above``, ``below``: without the end itself."""

    said: str
    low: float = -_LARGEST
    high: float = _LARGEST
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)


_RANGES = {
    Range("1 or more", 1): (
        "data.cached_augmentations data.captions_per_image data.boxes_per_image data.mosaic_augmentations "
        "data.window "
        "model.dim "
        "model.visual_tokens model.visual_grid preprocessing.max_text_tokens train.batch_size "
        "train.checkpoint_every train.log_every train.keep_checkpoints train.evaluate_images init.layers"
    ),
    Range("0 or more", 0): (
        "data.mosaics data.region_size data.workers "
        "model.encoder.freeze_until "
        ""
        "optim.lr_heads optim.lr_llm optim.lr_encoder "
        "optim.lr_embeddings optim.weight_decay optim.warmup_steps optim.final_lr_ratio optim.lora_rank "
        "train.evaluate_every train.threads train.grad_cache_chunk_size init.keep_layers"
    ),
    Range("above 0", 0, above=True): ("model.logit_scale preprocessing.std train.epochs"),
    Range("above 0", 0, math.inf, above=True): "optim.max_grad_norm",
    Range("from 0 to 1", 0, 1): "data.joined_caption_prob data.region_share ",
    Range("above 0, at most 1", 0, 1, above=True): "data.crop_scale",
    Range("from 0 to below 1", 0, 1, below=True): ("model.dropout optim.betas optim.ema_decay"),
    Range("a side of 1 to 4096 pixels", 1, 4096): (
        "preprocessing.size preprocessing.scales preprocessing.region_scales"
    ),
    Range("from 0 to 2^63 - 1", 0, 2**63 - 1): "train.seed",
    Range("a finite number"): ("model.logit_bias preprocessing.mean optim.max_logit_scale_log"),
}
RANGES = {name: allowed for allowed, names in _RANGES.items() for name in names.split()}


def check_ranges(recipe: Recipe) -> None:
    """Raise ``ConfigError`` naming the first number of ``recipe`` that is out of its range."""
    for name, value in numbers(recipe):
        if value not in RANGES[name]:
            said = RANGES[name].said if math.isfinite(value) else "a finite number"
            raise ConfigError(f"{name}: {value} is not {said}")


def numbers(config: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Field and value of every number in a config dataclass, those of lists one by one."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{where}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{name}.")
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, int | float) and not isinstance(item, bool):
                yield name, item
