"""What a recipe asks for that cannot work, or would not come, found before anything is read.

A field that says how a part works may be set while that part is switched off by a field of its own
(``objective.name``, ``soft_targets = 0``): a recipe is easily tried without it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from mmgem.config import Recipe, TrainConfig, to_dict
from mmgem.config.compare import difference
from mmgem.config.ranges import check_ranges
from mmgem.data.shards import is_shards
from mmgem.distributed.world import World
from mmgem.encoders import encoder_class
from mmgem.errors import ConfigError
from mmgem.models.connectors import connector_class
from mmgem.tasks.base import Task, tasks_of


def check(recipe: Recipe, world: World) -> list[Task[Any]]:
    """The tasks of ``recipe``. Raises ``ConfigError`` naming the field if it cannot train in ``world``."""
    check_ranges(recipe)
    tasks = tasks_of(recipe)
    encoder_class(recipe.model.encoder)
    connector_class(recipe.model.connector)
    train = recipe.train
    changed = difference(to_dict(Recipe(TrainConfig(train.out))), to_dict(recipe))
    for idle, fields, why in _idle(recipe, tasks):
        for name in changed if idle else ():
            if f"{name}.".startswith(tuple(f"{field}." for field in fields.split())):
                raise ConfigError(f"{name}: {why}")
    if train.out.is_file():
        raise ConfigError(f"train.out: {train.out} is a file, not a folder")
    for task in tasks:
        task.check(world)
        if train.grad_cache_chunk_size and task.grad_cache is None:
            raise ConfigError(
                f"train.grad_cache_chunk_size: the losses of {task.name} are not over embeddings that can be "
                "cached; set it to 0"
            )
    if recipe.data.train is not None and not any(task.data_key == "data.train" for task in tasks):
        raise ConfigError("data.train: no task of the recipe reads it; add [image_text]")
    _check_learning(recipe)
    if train.compile and train.checkpoint_activations:
        raise ConfigError("train.compile: excludes train.checkpoint_activations")
    for tracker in train.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"train.trackers: {tracker!r} is not installed: pip install {tracker}")
    return tasks


def check_compiler() -> None:
    """Raise ``ConfigError`` if there is no compiler of what ``train.compile`` makes for CPUs."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"train.compile: needs a C++ compiler, and there is no {compiler} ($CXX)")


def _idle(recipe: Recipe, tasks: Sequence[Task[Any]]) -> Iterator[tuple[bool, str, str]]:
    """Whether these fields (or sections), if changed, would do nothing; and why."""
    data, init = recipe.data, recipe.init
    images = data.train is not None
    shards = data.train is not None and is_shards(data.train)
    of_images = (
        "data.dev data.region_share data.mosaics data.region_size data.joined_caption_prob data.workers "
        "optim.lr_encoder"
    )
    yield not images, of_images, "counts for images; there is no data.train"
    yield not shards, "data.workers data.window", "counts for shards; data.train is loose files"
    boxes = "data.mosaics data.region_size"
    yield not data.region_share, boxes, "counts only if data.region_share is above 0"
    stages = encoder_class(recipe.model.encoder).can_freeze_stages
    yield not stages, "model.encoder.freeze_until", "counts for EfficientNet and others with stages only"
    parts = "init.encoder init.llm init.layers init.keep_layers init.quantize_embeddings"
    yield init.checkpoint is not None, parts, "init.checkpoint excludes it, and brings its own"
    yield init.layers is not None, "init.keep_layers", "excludes init.layers"
    lora = "optim.lora_rank trains adapters of the LLM, and nothing else of it"
    yield recipe.optim.lora_rank > 0, "optim.lr_embeddings", lora
    rounded = "undone by optim.lr_embeddings, which trains the table on"
    yield recipe.optim.lr_embeddings > 0, "init.quantize_embeddings", rounded
    biased = any(task.uses_logit_bias for task in tasks)
    yield not biased, "model.logit_bias", "counts for image_text.contrastive.loss = 'sigmoid' only"
    held_out = any(task.holds_out for task in tasks)
    nothing = "nothing to evaluate on: no data.dev, data.dev_split or self_retrieval.dev; set it to 0"
    yield not held_out, "train.evaluate_every", nothing


def _check_learning(recipe: Recipe) -> None:
    """There has to be something that trains."""
    optim = recipe.optim
    if not any((optim.lr_heads, optim.lr_llm, optim.lr_encoder, optim.lr_embeddings)):
        raise ConfigError("optim.lr_heads: nothing trains, every rate is 0")
    if optim.lora_rank and not optim.lr_llm:
        raise ConfigError("optim.lora_rank: nothing of the LLM trains with optim.lr_llm = 0")
    if math.log(recipe.model.logit_scale) > optim.max_logit_scale_log:
        raise ConfigError(
            f"model.logit_scale: {recipe.model.logit_scale:g} is above "
            f"{math.exp(optim.max_logit_scale_log):g}, the limit by optim.max_logit_scale_log"
        )
