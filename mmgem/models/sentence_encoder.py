"""A frozen sentence encoder of transformers: token states averaged, as all-MiniLM is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmgem.errors import CheckpointError


def sentence_encoder(
    folder: Path, batch: int = 32, max_tokens: int | None = None
) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from n texts to unit rows ``(n, E)`` float32; texts of like length share a batch.

    ``max_tokens``: where longer texts are cut; None: the model's own limit. Raises ``CheckpointError``.
    """
    import torch
    import torch.nn.functional as F
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {str(error).splitlines()[0]}") from error
    model.eval()

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = np.empty((len(texts), model.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            options = {"padding": True, "truncation": True, "max_length": max_tokens, "return_tensors": "pt"}
            read = tokenizer([texts[n] for n in chosen], **options)
            mask = read["attention_mask"][..., None]
            states = model(**read).last_hidden_state
            rows[chosen] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy()
        return rows

    return encode
