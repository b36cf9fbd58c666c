"""A small copy of a model: the token table in 4 bits, the projections in 16, every other matrix in 8."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mmgem.checkpoints.hub import read_card
from mmgem.checkpoints.model_folder import load_model, own_tensors, save_model
from mmgem.data.tokens import Tokenizer
from mmgem.errors import CheckpointError, UsageError
from mmgem.export.rotate import turn
from mmgem.inference.pca import pca_components
from mmgem.models.network import MMGEMNetwork
from mmgem.utils.files import folder_bytes


def quantization_bits(network: MMGEMNetwork) -> dict[str, int]:
    """Bits per tensor; vectors (norms, biases, markers) stay float32. The projections are a twentieth of
    ``tiny`` and every embedding goes through them."""
    table = network.llm.lm.get_input_embeddings().weight
    ends = ("visual_projection.", "text_projection.", "visual_connector.")
    matrices = {n: p for n, p in own_tensors(network).items() if p.ndim >= 2}
    return {n: 4 if p is table else 16 if n.startswith(ends) else 8 for n, p in matrices.items()}


def ship(
    source: Path,
    out: Path,
    other: Path | None = None,
    share: float = 0.5,
    embed: Callable[[MMGEMNetwork, Tokenizer], np.ndarray] | None = None,
) -> int:
    """Write a rounded copy of model folder ``source`` to ``out``; returns its size in bytes.

    With ``other`` every weight is mixed: ``1 - share`` of ``source``, ``share`` of ``other``. Two models of
    which one was trained from the other are often best in between (WiSE-FT, Wortsman et al. 2021,
    arXiv 2109.01903). ``embed`` makes embeddings ``(n, D)`` of what is to be searched; the space is turned to
    their axes (see :mod:`mmgem.export.rotate`). Raises ``CheckpointError`` if a model cannot be loaded or the
    two differ in shape, ``UsageError`` for a share outside 0 to 1.
    """
    network, tokenizer = load_model(source)
    if other is not None:
        mix(network, load_model(other)[0], share)
    if embed is not None:
        turn(network, pca_components(embed(network, tokenizer), network.config.dim))
    corpus = source / "corpus"
    more = (lambda new: shutil.copytree(corpus, new / "corpus")) if corpus.is_dir() else None
    save_model(out, network, tokenizer, read_card(source), quantization_bits(network), more)
    return folder_bytes(out)


@torch.no_grad()
def mix(network: MMGEMNetwork, other: MMGEMNetwork, share: float) -> None:
    """Move the weights of ``network`` a ``share`` of the way to those of ``other``.

    Raises ``UsageError`` for a share outside 0 to 1, ``CheckpointError`` for models of different shapes.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"share must be from 0 to 1, not {share}")
    ours, theirs = network.state_dict(), other.state_dict()
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        raise CheckpointError("models of different shapes cannot be mixed")
    for name, weight in ours.items():
        if weight.is_floating_point():
            weight.lerp_(theirs[name], share)
