"""Connectors: how an image's embedding is put before the LLM (h3). One file a kind, found by name in
:data:`CONNECTORS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmgem.config import ConnectorConfig
from mmgem.errors import ConfigError
from mmgem.utils.registry import Registry

if TYPE_CHECKING:
    from mmgem.models.connectors.base import Connector

CONNECTORS: Registry[type[Connector]] = Registry(
    "connector",
    {
        "linear": "mmgem.models.connectors.linear:LinearConnector",
        "mlp": "mmgem.models.connectors.mlp:MLPConnector",
        "unit_mlp": "mmgem.models.connectors.unit_mlp:UnitMLPConnector",
        "clipcap_mlp": "mmgem.models.related.clipcap:MLPMapper",
        "clipcap_transformer": "mmgem.models.related.clipcap:TransformerMapper",
    },
    "mmgem.connectors",
)
"""Connector classes by ``model.connector.kind``."""


def connector_class(config: ConnectorConfig) -> type[Connector]:
    """The class of ``config.kind``. Raises ``ConfigError`` for a kind that nobody registered."""
    try:
        return CONNECTORS[config.kind]
    except ConfigError as error:
        raise ConfigError(f"model.connector.kind: {error}") from error
