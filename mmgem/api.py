"""The public model: files, pictures and strings in; embeddings, captions and scores out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.data.images import ImageSource, image_size, open_image
from mmgem.data.records import Box
from mmgem.data.tokens import Tokenizer
from mmgem.data.transforms import normalise, place_box, to_square
from mmgem.errors import UsageError
from mmgem.generate.captions import generate_captions
from mmgem.models.checkpoint import load_model
from mmgem.models.embedding import embed_texts, unit_rows
from mmgem.models.network import MMGEMNetwork
from mmgem.models.registry import fingerprint, resolve


class MMGEM:
    """One model that embeds, captions and scores images and texts.

    Build it with :meth:`from_pretrained`. All methods take any number of inputs and work in batches of
    ``batch``; images may be paths, PIL pictures, ``(H, W, 3)`` uint8 arrays or encoded bytes, mixed.
    """

    def __init__(self, network: MMGEMNetwork, tokenizer: Tokenizer, fingerprint: str = "", batch: int = 32):
        self.network = network.eval()
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.batch = batch

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str] = "tiny", device: str = "cpu") -> MMGEM:
        """Load ``"tiny"`` (ships with the package), a model folder, or a hub id.

        Raises ``CheckpointError`` if there is no such model or its folder is not whole.
        """
        folder = resolve(name)
        network, tokenizer = load_model(folder)
        return cls(network.to(device), tokenizer, fingerprint(folder))

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return self.network.config.dim

    @property
    def temperature(self) -> float:
        """The trained temperature: cosines divided by it are the logits of the contrastive objective."""
        return 1 / self.network.logit_scale.detach().exp().item()

    @torch.inference_mode()
    def embed_images(
        self, images: Sequence[ImageSource], boxes: Sequence[Box | None] | None = None
    ) -> np.ndarray:
        """Embed whole images, or one box of each.

        ``boxes``: ``x0, y0, x1, y1`` in pixels of the upright stored image, one per image (None: the whole).
        Returns ``(n, D)`` float32 of unit length. Raises ``ImageError`` naming the image that cannot be read,
        ``UsageError`` for a box that is empty or outside the image, or a wrong number of boxes.
        """
        parts = [unit_rows(v[:, 0]) for v in self._visual(images, boxes)]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts: ``(n, D)`` float32 of unit length; the dot product with an image's embedding is their
        similarity. Raises ``DataError`` for an empty text or one over ``max_text_tokens``."""
        if isinstance(texts, str):
            raise UsageError("texts must be a list of strings, not one string")
        return embed_texts(self.network, self.tokenizer, texts, 4 * self.batch)

    @torch.inference_mode()
    def caption(
        self,
        images: Sequence[ImageSource],
        boxes: Sequence[Box | None] | None = None,
        beams: int = 3,
        max_tokens: int = 30,
    ) -> list[str]:
        """Describe each image, or one box of each, in a sentence. ``beams=1`` is greedy decoding."""
        if beams < 1 or max_tokens < 1:
            raise UsageError("beams and max_tokens must be at least 1")
        captions = []
        for visual in self._visual(images, boxes):
            prefixes = self.network.prefix(visual)
            found = generate_captions(self.network, prefixes, self.tokenizer.end, beams, max_tokens)
            captions += [self.tokenizer.decode(c.ids) for c in found]
        return captions

    @torch.inference_mode()
    def score(self, images: Sequence[ImageSource], texts: Sequence[str]) -> np.ndarray:
        """log P(text | image) per token (end of text included), in nats, of each image and its text: ``(n,)``
        float32. Raises ``UsageError`` unless there are as many texts as images."""
        if len(images) != len(texts):
            raise UsageError(f"{len(images)} images but {len(texts)} texts")
        ids = self.tokenizer.encode_all(texts)
        out: list[float] = []
        end = torch.tensor([self.tokenizer.end])
        for visual in self._visual(images, None):
            chunk = ids[len(out) : len(out) + len(visual)]
            _, states = self.network.run(captions=chunk, prefixes=self.network.prefix(visual))
            targets = torch.cat([t for tokens in chunk for t in (tokens, end)]).to(states.device)
            losses = F.cross_entropy(self.network.llm.logits(states).float(), targets, reduction="none")
            out += [-float(part.mean()) for part in losses.split([len(t) + 1 for t in chunk])]
        return np.asarray(out, np.float32)

    def _visual(self, images: Sequence[ImageSource], boxes: Sequence[Box | None] | None) -> Iterator[Tensor]:
        if isinstance(images, str | bytes | os.PathLike):
            raise UsageError("images must be a list, not one image")
        if boxes is not None and len(boxes) != len(images):
            raise UsageError(f"{len(images)} images but {len(boxes)} boxes")
        for at in range(0, len(images), self.batch):
            chunk = images[at : at + self.batch]
            yield self._batch(chunk, None if boxes is None else boxes[at : at + self.batch])

    def _batch(self, images: Sequence[ImageSource], boxes: Sequence[Box | None] | None) -> Tensor:
        prep, device = self.tokenizer.prep, self.network.emb.device
        scales = [dataclasses.replace(prep, size=side) for side in (prep.size, *prep.scales)]
        # Twice the model's side leaves the resize something to filter; boxes do not mind the scale.
        opened = [open_image(image, min_side=2 * max(s.size for s in scales)) for image in images]
        placed = whole = None
        if boxes is not None:
            placed = torch.tensor([self._place(i, b) for i, b in zip(images, boxes, strict=True)])
            placed = placed[:, None].to(device)
            whole = torch.tensor([box is None for box in boxes], device=device)[:, None, None]
        seen = []
        for scale in scales:
            pixels = np.stack([to_square(image, scale) for image in opened])
            maps = self.network.tower(normalise(pixels, scale).to(device))
            visual = self.network.visual(maps)
            if placed is not None and whole is not None:
                visual = torch.where(whole, visual, self.network.visual(maps, placed)[:, 0])
            seen.append(visual)
        return torch.stack(seen).mean(0)

    def _place(self, image: ImageSource, box: Box | None) -> list[float]:
        """A box in pixels of the stored image -> pixels of the tower's input."""
        prep = self.tokenizer.prep
        if box is None:
            return [0.0, 0.0, float(prep.size), float(prep.size)]
        if len(box) != 4 or not all(np.isfinite(box)) or box[2] <= box[0] or box[3] <= box[1]:
            raise UsageError(f"box {tuple(box)} is not x0,y0,x1,y1 with x1 > x0 and y1 > y0")
        width, height = image_size(image)
        if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
            raise UsageError(f"box {tuple(box)} lies outside the image of {width} x {height} pixels")
        return list(place_box(box, (width, height), prep)[0])
