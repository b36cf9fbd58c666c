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
from collections.abc import Iterator
from pathlib import Path

from mmgem.config import EncoderConfig, Recipe, TrainConfig, to_dict
from mmgem.config.ranges import check_ranges
from mmgem.data.shards import is_shards
from mmgem.data.turns import check_enough
from mmgem.distributed.world import World
from mmgem.encoders import encoder_class
from mmgem.errors import ConfigError
from mmgem.models.connectors import connector_class
from mmgem.train.state import difference


def check(recipe: Recipe, world: World) -> None:
    """Raise ``ConfigError`` naming the field if ``recipe`` cannot train on ``ranks``."""
    check_ranges(recipe)
    data, train, objective = recipe.data, recipe.train, recipe.objective
    images, corpus = data.train is not None, recipe.corpus.passages is not None
    if not images and not corpus:
        raise ConfigError("data.train: missing (and so is corpus.passages)")
    encoder = encoder_class(recipe.model.encoder)
    connector_class(recipe.model.connector)
    if images and not encoder.sees_images:
        kind = recipe.model.encoder.kind
        raise ConfigError(f'data.train: a model with model.encoder.kind = "{kind}" reads no images')
    changed = difference(to_dict(Recipe(TrainConfig(train.out))), to_dict(recipe))
    for idle, fields, why in _idle(recipe):
        for name in changed if idle else ():
            if f"{name}.".startswith(tuple(f"{field}." for field in fields.split())):
                raise ConfigError(f"{name}: {why}")
    if 0 < data.region_size < 32:
        raise ConfigError(f"data.region_size: {data.region_size} is neither 0 nor 32 pixels or more")
    if train.out.is_file():
        raise ConfigError(f"train.out: {train.out} is a file, not a folder")
    _check_shares(recipe, world)
    _check_learning(recipe)
    if train.compile and train.checkpoint_activations:
        raise ConfigError("train.compile: excludes train.checkpoint_activations")
    if objective.taught and objective.loss == "sigmoid":
        raise ConfigError("objective.soft_targets: excludes objective.loss = 'sigmoid', which has no targets")
    if objective.taught and objective.teacher is None:
        raise ConfigError('objective.teacher: soft_targets needs a teacher, e.g. "minilm"')
    for tracker in train.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"train.trackers: {tracker!r} is not installed: pip install {tracker}")


def check_compiler() -> None:
    """Raise ``ConfigError`` if there is no compiler of what ``train.compile`` makes for CPUs."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"train.compile: needs a C++ compiler, and there is no {compiler} ($CXX)")


def check_encoder(recipe: Recipe, encoder: EncoderConfig) -> None:
    """Raise ``ConfigError`` if an encoder is to train of which ``recipe`` caches the last map."""
    kind = encoder_class(encoder)
    if recipe.optim.lr_encoder > 0 and recipe.data.cached and not kind.trains_when_cached(encoder):
        raise ConfigError(
            "optim.lr_encoder: a cached encoder trains only above model.encoder.freeze_until (EfficientNet); "
            "set that, or data.cached = false"
        )


def _idle(recipe: Recipe) -> Iterator[tuple[bool, str, str]]:
    """Whether these fields (or sections), if changed, would do nothing; and why."""
    data, init, corpus = recipe.data, recipe.init, recipe.corpus
    images = data.train is not None
    shards = data.train is not None and is_shards(data.train)
    of_images = (
        "data.dev data.region_share data.mosaics data.region_size data.joined_caption_prob data.workers "
        "objective.name objective.loss objective.soft_targets objective.mask_same "
        "objective.label_smoothing objective.vocabulary_sample optim.lr_encoder train.grad_cache_chunk_size"
    )
    yield not images, of_images, "counts for images; there is no data.train"
    yield corpus.passages is None, "corpus", "counts for a corpus; there is no corpus.passages"
    yield not shards, "data.workers data.window", "counts for shards; data.train is loose files"
    yield shards, "objective.vocabulary_sample", "needs loose files: of shards the words are not known before"
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
    yield recipe.objective.loss == "softmax", "model.logit_bias", "counts for objective.loss = 'sigmoid' only"
    held_out = data.dev is not None or (images and data.dev_split) or corpus.dev not in (None, Path())
    nothing = "nothing to evaluate on: no data.dev, data.dev_split or corpus.dev; set it to 0"
    yield not held_out, "train.evaluate_every", nothing


def _check_shares(recipe: Recipe, world: World) -> None:
    """Every kind of thing has to come in every step, and to every rank."""
    data, batch, share = recipe.data, recipe.train.batch_size, recipe.data.region_share
    boxes = round(batch * share)
    for wanted, count, what in ((share, boxes, "box"), (1 - share, batch - boxes, "image")):
        if wanted and not count:
            raise ConfigError(f"data.region_share: {share} leaves no {what} of train.batch_size = {batch}")
    boxed = -(-boxes // data.boxes_per_image)
    for count, what in ((batch - boxes, "images"), (boxed, "images to take boxes from")):
        if data.train is not None and count:
            check_enough(count, what, world.size)
    if recipe.corpus.passages and recipe.corpus.batch < world.size:
        raise ConfigError(f"corpus.batch: {recipe.corpus.batch} is too small for {world.size} processes")


def _check_learning(recipe: Recipe) -> None:
    """There has to be a loss, something to tell apart, and something that trains."""
    objective, optim = recipe.objective, recipe.optim
    weights: list[float] = []
    if recipe.data.train is not None:
        weights += [objective.contrastive_weight] * (objective.name != "captioning")
        weights += [objective.caption_weight] * (objective.name != "contrastive")
    if recipe.corpus.passages is not None:
        weights += [objective.retrieve_weight, objective.ask_weight]
        weights += [objective.assess_weight, objective.embed_weight]
    if not any(weights):
        raise ConfigError("objective: every loss has the weight 0")
    if recipe.data.train is not None and objective.name != "captioning" and recipe.train.batch_size == 1:
        raise ConfigError("train.batch_size: 1 image has no other to be told from, as objective.name asks")
    if not any((optim.lr_heads, optim.lr_llm, optim.lr_encoder, optim.lr_embeddings)):
        raise ConfigError("optim.lr_heads: nothing trains, every rate is 0")
    if optim.lora_rank and not optim.lr_llm:
        raise ConfigError("optim.lora_rank: nothing of the LLM trains with optim.lr_llm = 0")
    limit = objective.max_logit_scale_log
    if math.log(recipe.model.logit_scale) > limit:
        raise ConfigError(
            f"model.logit_scale: {recipe.model.logit_scale:g} is above {math.exp(limit):g}, the limit by "
            "objective.max_logit_scale_log"
        )
