"""Losses that only one network has the parts for."""

from __future__ import annotations

from mmgem.config import ModelConfig
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.models.networks import network_class


def check_kind(section: str, model: ModelConfig, needed: type[MMGEMNetwork], kind: str, why: str) -> None:
    """Raise ``ConfigError`` naming ``section`` if the network of ``model`` is no ``needed``, which is called
    ``kind``."""
    if not issubclass(network_class(model), needed):
        raise ConfigError(f'{section}: needs model.kind = "{kind}", {why}')
