"""What the network of a recipe will be, known without its weights: from the recipe's own description, from
the model it continues, or from the configuration of its base models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmgem.checkpoints.download import SOURCES, cache_folder
from mmgem.checkpoints.initialize import continued
from mmgem.checkpoints.model_folder import check_size
from mmgem.checkpoints.resolve import read_config, resolve
from mmgem.config import ModelConfig, Preprocessing, Recipe
from mmgem.data.tokens import Tokenizer
from mmgem.errors import CheckpointError, ConfigError
from mmgem.models.llm import export_config, truncate
from mmgem.models.network import MMGEMNetwork
from mmgem.models.parameter_count import skeleton


@dataclass(frozen=True)
class Shape:
    """``keep``: blocks of the LLM in ``config`` that the recipe keeps, empty: all. ``texts``: the folder of
    the tokenizer, None if it is not on this machine."""

    config: ModelConfig
    prep: Preprocessing
    keep: Sequence[int]
    texts: Path | None

    def network(self) -> MMGEMNetwork:
        """The network on the meta device: it takes no memory. Raises ``ConfigError``."""
        made = skeleton(self.config)
        check_size(made, self.prep)
        if self.keep:
            truncate(made.llm.lm, self.keep)
        return made

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, if it is on this machine."""
        try:
            return Tokenizer.from_folder(self.texts, self.prep) if self.texts else None
        except CheckpointError:
            return None


def shape_of(recipe: Recipe) -> Shape:
    """The shape of a recipe's network. Raises ``ConfigError`` naming the field that does not say enough."""
    described = "model_type" in recipe.model.llm.config
    if recipe.start.checkpoint:
        try:
            folder = resolve(recipe.start.checkpoint)
        except CheckpointError as error:
            if not described:
                raise ConfigError(f"start.checkpoint: {error}; or describe model.llm.config") from error
        else:
            config, prep = continued(recipe, *read_config(folder))
            return Shape(config, prep, (), folder)
    start = recipe.start
    folder = cache_folder(start.llm) if start.llm in SOURCES else Path(start.llm)
    keep: Sequence[int] = ()
    llm = recipe.model.llm
    if not described:
        if start.llm in SOURCES and not folder.is_dir():
            raise ConfigError(
                f"start.llm: {start.llm} is not here: mmgem pull tiny, or describe model.llm.config"
            )
        source = str(folder if folder.is_dir() else start.llm)
        llm = dataclasses.replace(llm, config=llm.config | export_config(_base(source, "start.llm")))
        keep = start.keep_layers or range(start.layers or 0)
    config = dataclasses.replace(recipe.model, tower=_tower(recipe), llm=llm)
    return Shape(config, recipe.preprocessing, keep, folder if folder.is_dir() else None)


def _tower(recipe: Recipe) -> Any:
    tower = recipe.model.tower
    if tower.kind != "transformers" or "model_type" in tower.config:
        return tower
    found = _base(recipe.start.tower, "start.tower")
    base = export_config(getattr(found, "vision_config", found))
    return dataclasses.replace(tower, config=base | tower.config)


def _base(name: str, field: str) -> Any:
    """The configuration of base weights: a folder, or a hub id (of which nothing else is fetched)."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        told = str(error).strip().splitlines()[0]
        part = field.removeprefix("start.")
        raise ConfigError(f"{field}: {name}: {told}; or describe model.{part}.config") from error
