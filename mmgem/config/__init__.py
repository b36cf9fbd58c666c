"""Typed configuration: what a model is, how it is trained, and the recipes that say so."""

from mmgem.config.convert import from_dict, to_dict
from mmgem.config.data import DataConfig
from mmgem.config.model import (
    ConnectorConfig,
    EncoderConfig,
    LLMConfig,
    ModelConfig,
    Preprocessing,
)
from mmgem.config.schema import InitConfig, OptimConfig, Recipe, TrainConfig
from mmgem.config.tasks import TASKS

__all__ = [
    "TASKS",
    "ConnectorConfig",
    "DataConfig",
    "EncoderConfig",
    "InitConfig",
    "LLMConfig",
    "ModelConfig",
    "OptimConfig",
    "Preprocessing",
    "Recipe",
    "TrainConfig",
    "from_dict",
    "to_dict",
]
