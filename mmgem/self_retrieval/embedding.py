"""Embeddings of passages, as questions are compared with."""

from __future__ import annotations

import numpy as np
import torch

from mmgem.inference.texts import unit_rows
from mmgem.models.network import MMGEMNetwork
from mmgem.self_retrieval.passages import Passage
from mmgem.self_retrieval.prompts import Prompts


@torch.inference_mode()
def embed_passages(
    network: MMGEMNetwork, prompts: Prompts, passages: list[Passage], batch: int = 16
) -> np.ndarray:
    """Unit embeddings ``(n, D)`` float32 of passages with their titles, read as training reads them."""
    titles = prompts.pieces([p.title for p in passages])
    texts = prompts.pieces([p.text for p in passages])
    ids = [torch.tensor(prompts.document(a, b)) for a, b in zip(titles, texts, strict=True)]
    vectors = np.empty((len(ids), network.config.dim), np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        vectors[rows] = unit_rows(network.encode_text([ids[i] for i in rows]))
    return vectors
