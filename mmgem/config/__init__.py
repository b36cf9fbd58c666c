"""Typed configuration: what a model is, how it is trained, and the recipes that say so."""

from mmgem.config.schema import (
    ConnectorConfig,
    CorpusConfig,
    DataConfig,
    EncoderConfig,
    InitConfig,
    LLMConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    Preprocessing,
    Recipe,
    Scoring,
    TrainConfig,
    from_dict,
    to_dict,
)

__all__ = [
    "ConnectorConfig",
    "CorpusConfig",
    "DataConfig",
    "EncoderConfig",
    "InitConfig",
    "LLMConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "Preprocessing",
    "Recipe",
    "Scoring",
    "TrainConfig",
    "from_dict",
    "to_dict",
]
