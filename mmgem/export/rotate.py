"""Rotate the space of a model's embeddings to its principal components, so that their first numbers say most
(see :mod:`mmgem.inference.pca`).

Cosines, captions and scores stay as they are: one rotation goes into h1 and h2, and its inverse into h3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mmgem.models.connectors.base import Connector
from mmgem.models.network import MMGEMNetwork


@torch.no_grad()
def rotate_embedding_space(network: MMGEMNetwork, components: np.ndarray) -> None:
    """Let embeddings ``v`` become ``v @ components``; ``components`` is orthogonal, (D, D) float32. Raises
    ``UsageError`` if the connector cannot take it."""
    if not network.plain_embedding:
        raise network.refuse("has an embedding space that cannot be rotated")
    rotation = torch.from_numpy(components)
    if isinstance(network.visual_connector, Connector):
        network.visual_connector.rotate_input(rotation)  # first: it may refuse
    for projection in (network.visual_projection, network.text_projection):
        if isinstance(projection, nn.Sequential):  # h1 of a model of texts is none
            last = projection[-1]
            assert isinstance(last, nn.Linear)
            last.weight.copy_(rotation.T @ last.weight)
            last.bias.copy_(last.bias @ rotation)
