"""What the network of a recipe will be, known without its weights: from the recipe's own description, from
the model it continues, or from the configuration of its base models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmgem.checkpoints.download import SOURCES, cache_folder
from mmgem.checkpoints.initialize import config_from_checkpoint, config_from_encoder
from mmgem.checkpoints.model_folder import check_size
from mmgem.checkpoints.resolve import own_folder, read_config, resolve
from mmgem.config import EncoderConfig, ModelConfig, Preprocessing, Recipe
from mmgem.data.tokens import Tokenizer
from mmgem.encoders import encoder_class
from mmgem.errors import CheckpointError, ConfigError
from mmgem.models.llm import LLM, truncate
from mmgem.models.network import MMGEMNetwork
from mmgem.models.parameter_count import meta_model
from mmgem.utils.hf_config import export_config
from mmgem.utils.pretrained import load_config, local_folder


@dataclass(frozen=True)
class ModelShape:
    """``texts``: the folder of the tokenizer, None if it is not on this machine."""

    config: ModelConfig
    prep: Preprocessing
    texts: Path | None

    def network(self) -> MMGEMNetwork:
        """The network on the meta device: it takes no memory. Raises ``ConfigError``."""
        network = meta_model(self.config)
        check_size(network, self.prep)
        return network

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, if it is on this machine."""
        try:
            return Tokenizer.from_folder(self.texts, self.prep) if self.texts else None
        except CheckpointError:
            return None


def model_shape(recipe: Recipe) -> ModelShape:
    """The shape of a recipe's network. Raises ``ConfigError`` naming the field that does not say enough."""
    described = "model_type" in recipe.model.llm.config
    if recipe.init.checkpoint:
        try:
            folder = resolve(recipe.init.checkpoint)
        except CheckpointError as error:
            if not described:
                raise ConfigError(f"init.checkpoint: {error}; or describe model.llm.config") from error
        else:
            config, prep = config_from_checkpoint(recipe, *read_config(folder))
            return ModelShape(config, prep, folder)
    init = recipe.init
    own = own_folder(init.llm)
    folder = own or (cache_folder(init.llm) if init.llm in SOURCES else Path(init.llm))
    llm = recipe.model.llm
    if not described:
        if own is not None:
            base = read_config(own)[0].llm.config
        elif init.llm in SOURCES and not folder.is_dir():
            raise ConfigError(
                f"init.llm: {init.llm} is not here: mmgem pull tiny, or describe model.llm.config"
            )
        else:
            base = export_config(_base(str(folder if folder.is_dir() else init.llm)))
        llm = dataclasses.replace(llm, config=llm.config | base)
        if keep := init.keep_layers or range(init.layers or 0):
            llm = dataclasses.replace(llm, config=_truncated(llm.config, keep))
    config, prep = config_from_encoder(recipe, recipe.init.encoder, _encoder(recipe))
    config = dataclasses.replace(config, llm=llm)
    return ModelShape(config, prep, folder if folder.is_dir() else None)


def _truncated(config: dict[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    """The config of an LLM of which only the blocks ``keep`` are left."""
    with torch.device("meta"):
        llm = LLM(config)
    truncate(llm.lm, keep)
    return export_config(llm.lm.config)


def _encoder(recipe: Recipe) -> EncoderConfig:
    if own_folder(recipe.init.encoder):
        return recipe.model.encoder
    return encoder_class(recipe.model.encoder).base_config(recipe.init.encoder, recipe.model.encoder)


def _base(name: str) -> Any:
    """The configuration of the base LLM: a folder, or a hub id (of which nothing else is fetched)."""
    try:
        return load_config(local_folder(name, config_only=True))
    except CheckpointError as error:
        raise ConfigError(f"init.llm: {error}; or describe model.llm.config") from error
