"""A small copy of a model: the token table in 4 bits, the projections in 16, every other matrix in 8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mmgem.checkpoints.hub import read_card
from mmgem.checkpoints.model_folder import load_model, own_tensors, save_model
from mmgem.checkpoints.model_lock import lock_if_same
from mmgem.checkpoints.resolve import complete
from mmgem.data.tokens import Tokenizer
from mmgem.errors import CheckpointError, UsageError
from mmgem.export.rotate import rotate_embedding_space
from mmgem.inference.calibration import MatchCalibration
from mmgem.inference.pca import pca_components
from mmgem.models.network import MMGEMNetwork
from mmgem.self_retrieval.corpus import FOLDER as CORPUS_FOLDER
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.model import SelfRetrieval
from mmgem.utils.files import folder_bytes, is_folder


def quantization_bits(network: MMGEMNetwork) -> dict[str, int]:
    """Bits per tensor; vectors (norms, biases, markers) stay float32. The projections are a twentieth of
    ``tiny`` and every embedding goes through them."""
    table = network.llm.lm.get_input_embeddings().weight
    ends = ("visual_projection.", "text_projection.", "visual_connector.")
    matrices = {n: p for n, p in own_tensors(network).items() if p.ndim >= 2}
    return {n: 4 if p is table else 16 if n.startswith(ends) else 8 for n, p in matrices.items()}


def compress_model(
    source: Path,
    out: Path,
    other: Path | None = None,
    alpha: float = 0.5,
    embed: Callable[[MMGEMNetwork, Tokenizer], np.ndarray] | None = None,
) -> int:
    """Write a quantized copy of model folder ``source`` to ``out``; returns its size in bytes.

    With ``other`` the weights are averaged: ``1 - alpha`` of ``source``, ``alpha`` of ``other``. Two models
    of which one was trained from the other are often best in between (WiSE-FT, Wortsman et al. 2021,
    arXiv 2109.01903). ``embed`` makes embeddings ``(n, D)`` float32 of what is to be searched; the space is
    rotated to their principal components (see :mod:`mmgem.export.rotate`). A corpus that ``source`` has
    learned is copied, its passages lying in the space of the copy; a calibration as well, but not to an
    average, whose cosines are others. Raises ``CheckpointError`` if a model
    cannot be loaded or the two differ in shape, ``UsageError`` for an ``alpha`` outside 0 to 1.
    """
    with lock_if_same(source, out):
        return _compress_model(source, out, other, alpha, embed)


def _compress_model(
    source: Path,
    out: Path,
    other: Path | None,
    alpha: float,
    embed: Callable[[MMGEMNetwork, Tokenizer], np.ndarray] | None,
) -> int:
    network, tokenizer = load_model(source)
    corpus = Corpus.open(source / CORPUS_FOLDER) if is_folder(source / CORPUS_FOLDER) else None
    calibration = MatchCalibration.load(complete(source), network.config.dim) if other is None else None
    if other is not None:
        average_weights(network, load_model(other)[0], alpha)
        if corpus is not None and corpus.vectors is not None:
            corpus.vectors = SelfRetrieval(network, tokenizer, corpus).embed_passages(corpus.passages)
    if embed is not None:
        components = pca_components(embed(network, tokenizer), network.config.dim)
        rotate_embedding_space(network, components)
        if corpus is not None and corpus.vectors is not None:
            corpus.vectors = corpus.vectors @ components
        if calibration is not None:
            calibration = calibration.rotated(components)

    def more(new: Path) -> None:
        if corpus is not None:
            corpus.save_in(new)
        if calibration is not None:
            calibration.save(new)

    save_model(out, network, tokenizer, read_card(source), quantization_bits(network), more)
    return folder_bytes(out)


@torch.no_grad()
def average_weights(network: MMGEMNetwork, other: MMGEMNetwork, alpha: float) -> None:
    """Let each weight of ``network`` be ``1 - alpha`` of itself and ``alpha`` of that of ``other``, in place.
    Those that are equal keep their bits (the sign of a zero too), by which features are cached.

    Raises ``UsageError`` for an ``alpha`` outside 0 to 1, ``CheckpointError`` for models of different shapes.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha must be from 0 to 1, not {alpha}")
    ours, theirs = network.state_dict(), other.state_dict()
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        raise CheckpointError("models of different shapes cannot be averaged")
    for name, weight in ours.items():
        if weight.is_floating_point():
            same = weight == theirs[name]
            weight.copy_(torch.where(same, weight, weight.lerp(theirs[name], alpha)))
