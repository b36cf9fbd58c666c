"""What a recipe asks for that cannot work, or would not come, found before anything is read.

Ranges and needs stand at the fields (:mod:`mmgem.config.checks`); here is what several fields tell together.
A field that says how a part works may be set while that part is switched off by a field of its own
(``weight = 0``, ``distill_weight = 0``): a recipe is easily tried without it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import sys
from typing import Any

from mmgem.config import Recipe
from mmgem.config.checks import check_needs, check_ranges
from mmgem.distributed.world import World
from mmgem.encoders import encoder_class
from mmgem.errors import ConfigError
from mmgem.models.connectors import connector_class
from mmgem.models.networks import network_class
from mmgem.tasks.base import Task, tasks_of


def check(recipe: Recipe, world: World) -> list[Task[Any]]:
    """The tasks of ``recipe``. Raises ``ConfigError`` naming the field if it cannot train in ``world``."""
    check_ranges(recipe)
    tasks = tasks_of(recipe)
    encoder_class(recipe.model.encoder)
    connector_class(recipe.model.connector)
    _check_network(recipe, world)
    check_needs(recipe)
    train = recipe.train
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
            package = "'mmgem[train]'" if tracker == "tensorboard" else tracker
            raise ConfigError(f"train.trackers: {tracker!r} is not installed: pip install {package}")
    if recipe.optim.lora_rank and importlib.util.find_spec("peft") is None:
        raise ConfigError("optim.lora_rank: needs peft: pip install 'mmgem[train]'")
    return tasks


def _check_network(recipe: Recipe, world: World) -> None:
    """What a network of this kind cannot be trained with."""
    kind, optim, train = recipe.model.kind, recipe.optim, recipe.train
    network = network_class(recipe.model)
    for group in network.frozen:
        if getattr(optim, f"lr_{group}"):
            raise ConfigError(f"optim.lr_{group}: frozen in a network of kind {kind!r}; set it to 0")
    between = (
        ("train.compile", train.compile),
        ("train.checkpoint_activations", train.checkpoint_activations),
        ("optim.lora_rank", optim.lora_rank),
        ("train.strategy", world.size > 1 and train.strategy != "ddp"),
    )
    for field, value in between:
        if value and not network.plain_blocks:
            raise ConfigError(f"{field}: a network of kind {kind!r} has layers of its own between the LLM's")


def check_compiler() -> None:
    """Raise ``ConfigError`` if there is no compiler of what ``train.compile`` makes for CPUs."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"train.compile: needs a C++ compiler, and there is no {compiler} ($CXX)")


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
