"""Typed configuration: what a model is, how it is trained, and the recipes that say so."""

from mmgem.config.schema import (
    ConnectorConfig,
    DataConfig,
    EncoderConfig,
    InitConfig,
    LLMConfig,
    ModelConfig,
    OptimConfig,
    Preprocessing,
    Recipe,
    TrainConfig,
    from_dict,
    to_dict,
)
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
