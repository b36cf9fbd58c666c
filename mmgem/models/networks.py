"""Networks by name: MM-GEM and the systems it is compared with (:mod:`mmgem.models.related`), and yours.

A network is a subclass of :class:`~mmgem.models.network.MMGEMNetwork` that says what it can do and overrides
what it does otherwise; ``model.kind`` names it in recipes and in the ``config.json`` of model folders.
"""

from __future__ import annotations

from typing import cast

from mmgem.config import ModelConfig
from mmgem.config.networks import NETWORKS as NETWORKS
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork


def network_class(config: ModelConfig) -> type[MMGEMNetwork]:
    """The class of ``config.kind``. Raises ``ConfigError`` for a kind that nobody registered."""
    try:
        return cast(type[MMGEMNetwork], NETWORKS[config.kind])
    except ConfigError as error:
        raise ConfigError(f"model.kind: {error}") from error


def make_network(config: ModelConfig) -> MMGEMNetwork:
    """The network of ``config`` with random weights. Raises ``ConfigError``."""
    return network_class(config)(config)
