"""The conditions that fields of a recipe share; each gives its words where it does not hold."""

from __future__ import annotations

from typing import Any

from mmgem.config.encoders import ENCODERS
from mmgem.config.fields import Need
from mmgem.config.tasks import TASKS
from mmgem.utils.shard_paths import is_shards

IMAGES = Need(
    "data.train",
    lambda recipe: recipe.data.train is not None,
    "counts for images; there is no data.train",
)


TEXTS = Need(
    "data.train, or a task that learns from texts alone",
    lambda recipe: (
        recipe.data.train is not None or any(task.data_key == "data.texts" for task in _tasks(recipe))
    ),
    "counts for images, and for tasks that learn from texts alone; there is no data.train",
)


def _shards(recipe: Any) -> bool:
    return recipe.data.train is not None and is_shards(recipe.data.train)


SHARDS = Need("shards as data.train", _shards, "counts for shards; data.train is loose files")
LOOSE_FILES = Need(
    "loose files as data.train",
    lambda recipe: not _shards(recipe),
    "needs loose files: of shards the words are not known before",
)
REGIONS = Need(
    "data.region_share above 0",
    lambda recipe: recipe.data.region_share > 0,
    "counts only if data.region_share is above 0",
)
STAGES = Need(
    "an encoder with stages, such as EfficientNet",
    lambda recipe: ENCODERS[recipe.model.encoder.kind].can_freeze_stages,
    "counts for EfficientNet and others with stages only",
)
BASE_WEIGHTS = Need(
    "no init.checkpoint",
    lambda recipe: recipe.init.checkpoint is None,
    "init.checkpoint excludes it, and brings its own",
)
FROM_CHECKPOINT = Need(
    "init.checkpoint",
    lambda recipe: recipe.init.checkpoint is not None,
    "counts only with init.checkpoint",
)
AVERAGED = Need(
    "optim.ema_decay above 0",
    lambda recipe: recipe.optim.ema_decay > 0,
    "counts only with optim.ema_decay above 0",
)
NO_LAYERS = Need("no init.layers", lambda recipe: recipe.init.layers is None, "excludes init.layers")
NO_LORA = Need(
    "optim.lora_rank = 0",
    lambda recipe: recipe.optim.lora_rank <= 0,
    "optim.lora_rank trains adapters of the LLM, and nothing else of it",
)
FROZEN_EMBEDDINGS = Need(
    "optim.lr_embeddings = 0",
    lambda recipe: recipe.optim.lr_embeddings <= 0,
    "undone by optim.lr_embeddings, which trains the table on",
)


def _tasks(recipe: Any) -> list[Any]:
    return [TASKS[name](config, recipe) for name, config in recipe.tasks.items()]


BIASED_LOSS = Need(
    'a loss with a bias (image_text.contrastive.loss = "sigmoid")',
    lambda recipe: any(task.uses_logit_bias for task in _tasks(recipe)),
    "counts for losses with a bias only (image_text.contrastive.loss = 'sigmoid')",
)
HELD_OUT = Need(
    "data.dev, data.dev_split or self_retrieval.dev",
    lambda recipe: any(task.holds_out for task in _tasks(recipe)),
    "nothing to evaluate on: no data.dev, data.dev_split or self_retrieval.dev; set it to 0",
)
