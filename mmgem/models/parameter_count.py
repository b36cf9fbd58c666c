"""How large a network is, part by part, without its weights if need be (on the meta device)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mmgem.config import ModelConfig
from mmgem.models.network import MMGEMNetwork
from mmgem.models.networks import make_network


def meta_model(config: ModelConfig) -> MMGEMNetwork:
    """The network of ``config`` on the meta device: all shapes, no memory, nothing fetched.

    Raises ``ConfigError`` where ``model.encoder.config`` or ``model.llm.config`` is missing.
    """
    with torch.device("meta"):
        return make_network(config)


def parameter_table(network: MMGEMNetwork) -> list[tuple[str, int]]:
    """Parameters of ``encoder``, ``llm`` (its blocks and norms), ``embeddings`` (token table, and the output
    head where it is not the same matrix), ``visual_projection``, ``text_projection``, ``visual_connector``,
    ``markers`` ([EMB], [CAP], temperature and bias of the contrastive loss), ``others`` that a network of
    another kind has, and their ``total``. A shared matrix counts once."""
    lm = network.llm.lm
    embeddings = _count([*_own(lm.get_input_embeddings()), *_own(lm.get_output_embeddings())])
    rows = [
        ("encoder", _count(network.encoder.parameters())),
        ("llm", _count(lm.parameters()) - embeddings),
        ("embeddings", embeddings),
        ("visual_projection", _count(network.visual_projection.parameters())),
        ("text_projection", _count(network.text_projection.parameters())),
        ("visual_connector", _count(network.visual_connector.parameters())),
        ("markers", _count([network.emb_token, network.cap_token, network.logit_scale, network.logit_bias])),
    ]
    if others := _count(network.parameters()) - sum(count for _, count in rows):
        rows.append(("others", others))
    return [*rows, ("total", sum(count for _, count in rows))]


def _own(module: nn.Module | None) -> Iterable[nn.Parameter]:
    return module.parameters() if module is not None else ()


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())
