"""Unit embeddings as arrays: what the API returns and what evaluation measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.data.tokens import Tokenizer
from mmgem.inference.pca import check_dimensions
from mmgem.models.network import MMGEMNetwork


def unit_rows(x: Tensor) -> np.ndarray:
    """``(n, D)`` tensor -> ``(n, D)`` float32 array of unit rows."""
    return F.normalize(x.float(), dim=-1).cpu().numpy()


def truncate_embeddings(rows: np.ndarray, dimensions: int | None) -> np.ndarray:
    """The first ``dimensions`` numbers of unit ``rows`` ``(n, D)``, of unit length again; None: all of them.

    Raises ``UsageError`` unless there are that many.
    """
    if dimensions is None:
        return rows
    check_dimensions(dimensions, rows.shape[1])
    return unit_rows(torch.from_numpy(rows[:, :dimensions]))


def embed_texts(network: MMGEMNetwork, tokenizer: Tokenizer, texts: Sequence[str], batch: int) -> np.ndarray:
    """Unit text embeddings ``(len(texts), D)`` float32; pieces of like length share a pass of ``batch``.

    A text of several sentences is the mean of them unless the model's ``long_text`` is ``"joined"``. Raises
    ``DataError`` for an empty text, or then for one over ``max_text_tokens``.
    """
    ids, owners = tokenizer.encode_parts(texts)
    return embed_pieces(network, ids, owners, len(texts), batch)


@torch.inference_mode()
def embed_pieces(
    network: MMGEMNetwork, ids: Sequence[Tensor], owners: Sequence[int], count: int, batch: int
) -> np.ndarray:
    """:func:`embed_texts` of ``count`` texts whose pieces are token ``ids``, ``owners`` the number of the
    text of each (:meth:`~mmgem.data.tokens.Tokenizer.encode_parts`)."""
    piece_vectors = np.empty((len(ids), network.config.dim), np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        piece_vectors[rows] = unit_rows(network.encode_text([ids[i] for i in rows]))
    if len(ids) == count:
        return piece_vectors
    text_vectors = np.zeros((count, network.config.dim), np.float32)
    np.add.at(text_vectors, owners, piece_vectors)
    return unit_rows(torch.from_numpy(text_vectors))
