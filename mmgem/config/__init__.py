"""Typed configuration: what a model is, how it is trained, and the recipes that say so."""

from mmgem.config.schema import (
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
