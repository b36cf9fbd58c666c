"""How large a network is, part by part, without its weights if need be (on the meta device)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mmgem.config import ModelConfig
from mmgem.models.network import MMGEMNetwork


def skeleton(config: ModelConfig) -> MMGEMNetwork:
    """The network of ``config`` on the meta device: all shapes, no memory, nothing fetched.

    Raises ``ConfigError`` where ``model.tower.config`` or ``model.llm.config`` is missing.
    """
    with torch.device("meta"):
        return MMGEMNetwork(config)


def parameter_table(network: MMGEMNetwork) -> list[tuple[str, int]]:
    """Parameters of ``tower``, ``llm`` (its blocks and norms), ``embeddings`` (token table, and the output
    head where it is not the same matrix), ``h1``, ``h2``, ``h3``, ``markers`` ([EMB], [CAP], temperature and
    bias of the contrastive loss), and their ``total``. A shared matrix counts once."""
    lm = network.llm.lm
    embeddings = _count([*_own(lm.get_input_embeddings()), *_own(lm.get_output_embeddings())])
    rows = [
        ("tower", _count(network.tower.parameters())),
        ("llm", _count(lm.parameters()) - embeddings),
        ("embeddings", embeddings),
        ("h1", _count(network.h1.parameters())),
        ("h2", _count(network.h2.parameters())),
        ("h3", _count(network.h3.parameters())),
        ("markers", _count([network.emb, network.cap, network.logit_scale, network.logit_bias])),
    ]
    return [*rows, ("total", sum(count for _, count in rows))]


def _own(module: nn.Module | None) -> Iterable[nn.Parameter]:
    return module.parameters() if module is not None else ()


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in {id(p): p for p in parameters}.values())
