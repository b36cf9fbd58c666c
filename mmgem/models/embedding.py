"""Unit embeddings as arrays: what the API returns and what evaluation measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.data.tokens import Tokenizer
from mmgem.models.network import MMGEMNetwork


def unit_rows(x: Tensor) -> np.ndarray:
    """``(n, D)`` tensor -> ``(n, D)`` float32 array of unit rows."""
    return F.normalize(x.float(), dim=-1).cpu().numpy()


@torch.inference_mode()
def embed_texts(network: MMGEMNetwork, tokenizer: Tokenizer, texts: Sequence[str], batch: int) -> np.ndarray:
    """Unit text embeddings ``(len(texts), D)`` float32; texts of like length share a pass of ``batch``.

    Raises ``DataError`` for an empty text or one over the model's ``max_text_tokens``.
    """
    ids = tokenizer.encode_all(texts)
    out = np.empty((len(ids), network.config.dim), np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        out[rows] = unit_rows(network.text([ids[i] for i in rows]))
    return out
