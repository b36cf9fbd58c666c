"""The network before step 0: base weights of tower and LLM, or an earlier checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmgem.config import ModelConfig, Recipe, StartConfig, TowerConfig
from mmgem.data.tokens import Tokenizer
from mmgem.errors import CheckpointError, ConfigError
from mmgem.models.checkpoint import build, load_into, load_model
from mmgem.models.llm import truncate
from mmgem.models.network import MMGEMNetwork
from mmgem.models.pull import SOURCES, base_folder
from mmgem.models.storage import dequantize, load_tensors, quantize
from mmgem.models.towers import EfficientNetTower, export_vision_config


def start(recipe: Recipe) -> tuple[MMGEMNetwork, Tokenizer]:
    """Build the network of ``recipe`` with its starting weights.

    Raises ``ConfigError`` for settings that exclude each other, ``CheckpointError`` for weights that do
    not fit.
    """
    torch.manual_seed(recipe.train.seed)
    if recipe.start.checkpoint:
        return _from_checkpoint(recipe)
    llm_folder = source_folder(recipe.start.llm)
    lm, llm_config = _language_model(llm_folder, recipe.start)
    tower, tower_config = _tower(recipe.start, recipe.model.tower)
    config = dataclasses.replace(recipe.model, tower=tower_config)
    config.llm = dataclasses.replace(config.llm, config=llm_config)
    network = MMGEMNetwork(config)
    network.llm.lm.load_state_dict(lm.state_dict())
    network.tower.net.load_state_dict(tower.state_dict())  # type: ignore[union-attr]
    network.reset_markers()
    return network, Tokenizer.from_folder(llm_folder, recipe.preprocessing)


def source_folder(name: str) -> Path:
    """A base model's folder: a pulled name, or a path. Hub ids are resolved by transformers itself."""
    return base_folder(name) if name in SOURCES else Path(name)


def _from_checkpoint(recipe: Recipe) -> tuple[MMGEMNetwork, Tokenizer]:
    assert recipe.start.checkpoint is not None
    old, tokenizer = load_model(recipe.start.checkpoint)
    config: ModelConfig = dataclasses.replace(old.config)
    if config.tower.kind == "efficientnet_lite0":
        # Where the cut lies changes what is cached and trained, not the function.
        config.tower = dataclasses.replace(config.tower, cut=recipe.model.tower.cut)
    config.dropout = recipe.model.dropout
    network = build(config)
    network.load_state_dict(old.state_dict())
    return network, tokenizer


def _language_model(folder: Path, options: StartConfig) -> tuple[nn.Module, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    try:
        lm = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"start.llm: {folder}: {str(error).splitlines()[0]}") from error
    if options.layers is not None and options.keep_layers:
        raise ConfigError("start.keep_layers: excludes start.layers")
    if options.layers is not None or options.keep_layers:
        truncate(lm, options.keep_layers or range(options.layers or 0))
    if options.quantize_embeddings:
        table = lm.get_input_embeddings().weight
        with torch.no_grad():
            table.copy_(dequantize(quantize(table, 4), 4))
    config = lm.config.to_diff_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures", "quantization_config"):
        config.pop(key, None)
    return lm, {**config, "model_type": lm.config.model_type}


def _tower(options: StartConfig, config: TowerConfig) -> tuple[nn.Module, TowerConfig]:
    if config.kind == "efficientnet_lite0":
        folder = source_folder(options.tower)
        facts = json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}
        if facts.get("kind") != "efficientnet_lite0":
            raise ConfigError(f"start.tower: {folder} does not hold EfficientNet-Lite0 weights")
        tower = EfficientNetTower(config.cut, **config.config)
        load_into(tower.net, load_tensors(folder / "model.safetensors"), str(folder))
        return tower.net, config
    from transformers import AutoConfig, AutoModel

    try:
        full = AutoConfig.from_pretrained(options.tower)
        vision = getattr(full, "vision_config", full)
        net = AutoModel.from_pretrained(options.tower, config=vision, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"start.tower: {options.tower}: {str(error).splitlines()[0]}") from error
    return net, dataclasses.replace(config, config=export_vision_config(net))
