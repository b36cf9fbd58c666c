"""A model as a module of sentence-transformers, whose own class encodes, compares and evaluates with it.

    model = sentence_transformer("tiny")
    model.encode(["two dogs in the snow", "photo.jpg", {"image": picture}])

Notable choices. The module does what :class:`~mmgem.api.MMGEM` does: texts as the mean of their sentences,
images at every side of the model. One list may mix texts and images. A string is an image if it ends like an
image file, and must be one then: a misspelt path is not taken for a text. Other strings are texts; anything
else that is not a dict is an image. No class is loaded by a name in a file, so no ``trust_remote_code`` is
needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality import is_image_url_or_path
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmgem.api import MMGEM
from mmgem.checkpoints.model_folder import OWN_CHECKSUM, write_model
from mmgem.data.image_kinds import IMAGE_SUFFIXES
from mmgem.data.texts import check_text
from mmgem.data.transforms import normalise
from mmgem.errors import UsageError
from mmgem.inference.images import map_images, preprocess_image
from mmgem.inference.pyramid import global_sizes
from mmgem.utils.checksums import write_checksums


def sentence_transformer(
    model: MMGEM | str | os.PathLike[str] = "tiny", **options: Any
) -> SentenceTransformer:
    """A ``SentenceTransformer`` of a model or of anything :meth:`MMGEM.from_pretrained` loads, also a folder
    that a ``SentenceTransformer`` with this module saved. ``options`` go to ``SentenceTransformer``."""
    loaded = model if isinstance(model, MMGEM) else MMGEM.from_pretrained(model)
    where = {"device": str(loaded.network.emb_token.device)}
    return SentenceTransformer(modules=[MMGEMModule(loaded)], **(where | options))


class MMGEMModule(InputModule):
    """``preprocess`` makes tensors of texts and images, ``forward`` makes unit embeddings of them.

    Inputs: texts, paths, encoded bytes, PIL pictures, ``(H, W, 3)`` uint8 arrays, and dicts with ``text``,
    ``image`` or both; of both the embedding is the mean of the two.
    """

    def __init__(self, model: MMGEM):
        super().__init__()
        self.network = model.network
        self.words = model.tokenizer
        self.tokenizer = model.tokenizer.hf
        self.card = model.card

    @property
    def modalities(self) -> list[Any]:
        """What may be encoded. ``message`` stands for lists of several kinds, not for chats."""
        return ["text", "image", "message", ("image", "text")] if self.network.encoder.channels else ["text"]

    def get_embedding_dimension(self) -> int:
        """D."""
        return self.network.config.dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Tensors of n inputs: ``count`` (), n; of texts ``input_ids`` and ``attention_mask`` (p, L), a row a
        sentence, and ``text_rows`` (p,), the input it is of; of images ``pixels_SIDE`` (m, 3, SIDE, SIDE)
        and ``image_rows`` (m,). ``prompt`` goes before each text.

        Raises ``UsageError`` for what is neither, ``ImageError`` and ``DataError`` as :class:`MMGEM` does.
        """
        texts: list[tuple[int, str]] = []
        images: list[tuple[int, Any]] = []
        for row, given in enumerate(inputs):
            parts = given if isinstance(given, dict) else {_kind(given): given}
            if not parts or not parts.keys() <= {"text", "image"}:
                raise UsageError(f"an input is a text, an image or a dict of them, not {sorted(parts)}")
            texts += [
                (row, (prompt or "") + check_text(value, f"inputs[{row}]"))
                for key, value in parts.items()
                if key == "text"
            ]
            images += [(row, value) for key, value in parts.items() if key == "image"]
        features = {"count": torch.tensor(len(inputs))}
        if texts:
            pieces, owners = self.words.encode_parts([text for _, text in texts])
            lengths = torch.tensor([len(piece) for piece in pieces])
            features["input_ids"] = pad_sequence(pieces, batch_first=True)
            features["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
            features["text_rows"] = torch.tensor([texts[owner][0] for owner in owners])
        if images:
            prep = self.words.prep
            read = map_images(partial(preprocess_image, prep), [image for _, image in images])
            for side, pixels in zip(global_sizes(prep), zip(*read, strict=True), strict=True):
                features[f"pixels_{side}"] = normalise(np.stack(pixels), prep)
            features["image_rows"] = torch.tensor([row for row, _ in images])
        return features

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add ``sentence_embedding`` (n, D), float32 of unit length, to :meth:`preprocess`'s tensors."""
        network, count = self.network, int(features["count"])
        total = torch.zeros(count, network.config.dim, device=network.emb_token.device)
        if "input_ids" in features:
            lengths = features["attention_mask"].sum(1).tolist()
            ids = [row[:length].cpu() for row, length in zip(features["input_ids"], lengths, strict=True)]
            sentences = F.normalize(network.encode_text(ids).float(), dim=-1)
            total = total + F.normalize(
                torch.zeros_like(total).index_add(0, features["text_rows"], sentences), dim=-1
            )
        if "image_rows" in features:
            views = [
                network.encode_image(network.encoder(features[f"pixels_{side}"]))
                for side in global_sizes(self.words.prep)
            ]
            seen = F.normalize(network.image_embeddings(torch.stack(views).mean(0)).float(), dim=-1)
            total = total.index_add(0, features["image_rows"], seen)
        features["sentence_embedding"] = F.normalize(total, dim=-1)
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Write the files of a model folder into one that is there already."""
        write_model(Path(output_path), self.network, self.words, self.card)
        write_checksums(Path(output_path), OWN_CHECKSUM)

    @classmethod
    def load(cls, model_name_or_path: str, **_: Any) -> MMGEMModule:
        """The module of a folder or hub id, for ``SentenceTransformer(folder, trust_remote_code=True)``;
        :func:`sentence_transformer` needs no such trust."""
        return cls(MMGEM.from_pretrained(model_name_or_path))


def _kind(given: Any) -> str:
    if not isinstance(given, str) or is_image_url_or_path(given):
        return "image"
    if not given.lower().endswith(IMAGE_SUFFIXES):
        return "text"
    if not Path(given).is_file():
        raise UsageError(f"{given}: no such file; give a text that ends so as {{'text': ...}}")
    return "image"
