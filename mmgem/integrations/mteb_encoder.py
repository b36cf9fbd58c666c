"""A model as an encoder of mteb (its ``EncoderProtocol``), for tasks of texts, images and both.

    mteb.evaluate(MtebEncoder.from_pretrained("tiny"), tasks)

An item with a text and an image is the mean of the two. There are no instructions or prompts. Self-Retrieval
as a searcher of mteb is :mod:`mmgem.integrations.mteb_search`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmgem.api import MMGEM
from mmgem.errors import UsageError
from mmgem.inference.texts import unit_rows


class MtebEncoder:
    """``encode`` batches of mteb's loader, compare them with ``similarity``."""

    def __init__(self, model: MMGEM, name: str = "mmgem/model"):
        self.model, self.name = model, name

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> MtebEncoder:
        """Load what :meth:`MMGEM.from_pretrained` loads. Raises ``CheckpointError``."""
        return cls(MMGEM.from_pretrained(name), f"mmgem/{Path(name).name}")

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of the model; its revision is the fingerprint of the weights. Needs mteb."""
        try:
            from mteb.models.model_meta import ModelMeta, ScoringFunction
        except ImportError as error:
            raise UsageError("its description for mteb needs mteb: pip install 'mmgem[eval]'") from error

        known = {
            "name": self.name,
            "revision": self.model.fingerprint or "local",
            "embed_dim": self.model.dim,
            "framework": ["PyTorch"],
            "modalities": ["text", "image"] if self.model.network.encoder.channels else ["text"],
            "similarity_fn_name": ScoringFunction.COSINE,
        }
        return ModelMeta.create_empty(known)

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> np.ndarray:
        """Unit embeddings ``(n, D)`` float32 of batches with lists ``text``, ``image`` or both.

        Raises ``KeyError`` for a batch of neither, and as :meth:`MMGEM.embed_texts` and ``embed_images`` do.
        """
        return np.concatenate([self._batch(batch) for batch in inputs])

    def _batch(self, batch: Mapping[str, Any]) -> np.ndarray:
        if "image" not in batch:
            return self.model.embed_texts(batch["text"])
        images = self.model.embed_images(batch["image"])
        if "text" not in batch:
            return images
        return unit_rows(torch.from_numpy(images + self.model.embed_texts(batch["text"])))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines ``(n, m)`` of rows of unit length."""
        return (
            torch.atleast_2d(torch.as_tensor(embeddings1)) @ torch.atleast_2d(torch.as_tensor(embeddings2)).T
        )

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines ``(n,)`` of rows of unit length, each with its counterpart."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)
