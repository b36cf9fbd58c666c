"""A bulk output as the source of a photo index: what is in its partitions is not embedded again.

Photos are known by the hash of their bytes, so they may have been renamed or moved since, or have lain in
shards then. The vectors of the last partitions read are kept, not all of them: a folder is indexed in the
order in which it was embedded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from mmgem.bulk.output import OutputFolder, read_column
from mmgem.data.content_hashes import content_digest
from mmgem.data.records import Box
from mmgem.errors import UsageError
from mmgem.search.index import Embedder
from mmgem.utils.files import open_regular

_CACHED_PARTITIONS = 4


class PrecomputedEmbedder:
    """The :class:`~mmgem.search.index.Embedder` of an index, answered from the partitions in ``out``.

    ``make_model``: called once a photo comes that is in no partition, or regions are wanted. Raises
    UsageError if ``out`` has no partitions, or those of a model with another ``fingerprint``; DataError if
    they are damaged.
    """

    def __init__(self, out: Path, fingerprint: str, make_model: Callable[[], Embedder]):
        self.fingerprint = fingerprint
        self._make_model = make_model
        self._taken: set[tuple[int, int]] = set()
        output = OutputFolder(out)
        fingerprint_of_output, self._partition_files = output.settings()["model"], output.partition_files()
        if not self._partition_files:
            raise UsageError(f"{out}: no parts yet")
        if fingerprint_of_output != fingerprint:
            raise UsageError(f"{out}: its parts were made by another model")
        self._row_of_digest: dict[bytes, tuple[int, int]] = {}
        for number, file in enumerate(self._partition_files):
            digests = read_column(file, "digest").to_pylist()
            self._row_of_digest |= {digest: (number, row) for row, digest in enumerate(digests)}
        self._vectors = lru_cache(_CACHED_PARTITIONS)(self._read)
        self._dim: int = read_column(self._partition_files[0], "embedding").type.list_size

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return self._dim

    def embed_images(self, images: Sequence[Path]) -> np.ndarray:
        """``(n, D)`` float32 of unit length. Raises ImageError for a photo that cannot be read."""
        vectors = np.empty((len(images), self.dim), np.float32)
        missing = []
        for i, image in enumerate(images):
            location = self._row_of_digest.get(_digest(image))
            if location is None:
                missing.append(i)
            else:
                vectors[i] = self._vectors(location[0])[location[1]]
                self._taken.add(location)
        if missing:
            vectors[missing] = self._model.embed_images([images[i] for i in missing])
        return vectors

    @property
    def taken(self) -> int:
        """How many different photos have had their vectors from the partitions."""
        return len(self._taken)

    def find_regions(self, images: Sequence[Path], count: int) -> list[tuple[list[Box], np.ndarray]]:
        """Boxes of each image and their embeddings; the partitions have none, so the model finds them."""
        return self._model.find_regions(images, count)

    def embed_videos(self, videos: Sequence[Sequence[Image.Image]]) -> np.ndarray:
        """``(n, D)`` float32 of unit length of moments by their frames; the partitions have none, so the
        model embeds them."""
        return self._model.embed_videos(videos)

    @cached_property
    def _model(self) -> Embedder:
        return self._make_model()

    def _read(self, number: int) -> np.ndarray:
        column = read_column(self._partition_files[number], "embedding")
        return column.combine_chunks().flatten().to_numpy().reshape(len(column), self.dim)


def _digest(image: Path) -> bytes:
    try:
        with open_regular(image) as file:
            return content_digest(file)
    except OSError:  # the model says what is wrong with it
        return b""
