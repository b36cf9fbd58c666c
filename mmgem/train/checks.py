"""What a recipe asks for that cannot work, found before anything is read."""

from __future__ import annotations

import importlib.util

from mmgem.config import Recipe, TowerConfig
from mmgem.errors import ConfigError
from mmgem.ranks import Ranks


def check(recipe: Recipe, ranks: Ranks) -> None:
    """Raise ``ConfigError`` naming the field if ``recipe`` cannot train on ``ranks``."""
    data, train, objective, optim = recipe.data, recipe.train, recipe.objective, recipe.optim
    images = data.train is not None
    if not images and recipe.corpus.passages is None:
        raise ConfigError("data.train: missing (and so is corpus.passages)")
    if images and recipe.model.tower.kind == "none":
        raise ConfigError('data.train: a model with model.tower.kind = "none" reads no images')
    for name in ("batch", "log_every", "checkpoint_every", "keep"):
        if getattr(train, name) < 1:
            raise ConfigError(f"train.{name}: {getattr(train, name)} is less than 1")
    for name in ("chunk", "evaluate_every"):
        if getattr(train, name) < 0:
            raise ConfigError(f"train.{name}: {getattr(train, name)} is less than 0")
    if train.chunk and not images:
        raise ConfigError("train.chunk: counts for batches of images; there is no data.train")
    if train.compile and train.checkpoint_activations:
        raise ConfigError("train.compile: excludes train.checkpoint_activations")
    if ranks.size > 1:
        whole = train.batch - round(train.batch * data.region_share)
        boxed = -(-round(train.batch * data.region_share) // data.boxes_per_image)
        for count, what in ((whole, "images"), (boxed, "images to take boxes from")):
            if images and 0 < count < ranks.size:
                raise ConfigError(
                    f"train.batch: {count} {what} a step, fewer than the {ranks.size} processes"
                )
        if recipe.corpus.passages and recipe.corpus.batch < ranks.size:
            raise ConfigError(f"corpus.batch: {recipe.corpus.batch} is too small for {ranks.size} processes")
    if objective.soft_targets and objective.loss == "sigmoid":
        raise ConfigError("objective.soft_targets: excludes objective.loss = 'sigmoid', which has no targets")
    if optim.lora_rank and optim.lr_llm <= 0:
        raise ConfigError("optim.lora_rank: nothing of the LLM trains with optim.lr_llm = 0")
    for tracker in train.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"train.trackers: {tracker!r} is not installed: pip install {tracker}")


def check_tower(recipe: Recipe, tower: TowerConfig) -> None:
    """Raise ``ConfigError`` if a tower is to train of which ``recipe`` caches the last map."""
    whole = tower.kind == "transformers" or tower.cut is None
    if recipe.optim.lr_tower > 0 and recipe.data.cached and whole:
        raise ConfigError(
            "optim.lr_tower: a cached tower trains only above model.tower.cut (EfficientNet); set that, or "
            "data.cached = false"
        )
