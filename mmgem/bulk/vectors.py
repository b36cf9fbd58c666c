"""A bulk output as the source of a photo index: what is in its parts is not embedded again.

Photos are known by the hash of their bytes, so they may have been renamed or moved since, or have lain in
shards then. The vectors of the last parts read are kept, not all of them: a folder is indexed in the order in
which it was embedded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from mmgem.bulk.output import Output, read_column
from mmgem.data.records import Box
from mmgem.errors import UsageError
from mmgem.search.index import Embedder

_PARTS = 4


class BulkVectors:
    """The :class:`~mmgem.search.index.Embedder` of an index, answered from the parts in ``out``.

    ``make_model``: called once a photo comes that is in no part, or regions are wanted. Raises UsageError if
    ``out`` has no parts, or those of a model with another ``fingerprint``; DataError if they are damaged.
    """

    def __init__(self, out: Path, fingerprint: str, make_model: Callable[[], Embedder]):
        self.fingerprint = fingerprint
        self._make_model = make_model
        output = Output(out)
        made_by, self._parts = output.settings()["model"], output.parts()
        if not self._parts:
            raise UsageError(f"{out}: no parts yet")
        if made_by != fingerprint:
            raise UsageError(f"{out}: its parts were made by another model")
        self._places: dict[bytes, tuple[int, int]] = {}
        for number, part in enumerate(self._parts):
            digests = read_column(part, "digest").to_pylist()
            self._places |= {digest: (number, row) for row, digest in enumerate(digests)}
        self._vectors = lru_cache(_PARTS)(self._read)
        self._dim: int = read_column(self._parts[0], "embedding").type.list_size

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return self._dim

    def embed_images(self, images: Sequence[Path]) -> np.ndarray:
        """``(n, D)`` float32 of unit length. Raises ImageError for a photo that cannot be read."""
        out = np.empty((len(images), self.dim), np.float32)
        unknown = []
        for at, image in enumerate(images):
            place = self._places.get(_digest(image))
            if place is None:
                unknown.append(at)
            else:
                out[at] = self._vectors(place[0])[place[1]]
        if unknown:
            out[unknown] = self._model.embed_images([images[at] for at in unknown])
        return out

    def find_regions(self, images: Sequence[Path], count: int) -> list[tuple[list[Box], np.ndarray]]:
        """Boxes of each image and their embeddings; the parts have none, so the model finds them."""
        return self._model.find_regions(images, count)

    @cached_property
    def _model(self) -> Embedder:
        return self._make_model()

    def _read(self, number: int) -> np.ndarray:
        column = read_column(self._parts[number], "embedding")
        return column.combine_chunks().flatten().to_numpy().reshape(len(column), self.dim)


def _digest(image: Path) -> bytes:
    try:
        with image.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:  # the model says what is wrong with it
        return b""
