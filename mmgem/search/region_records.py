"""What a photo index says of its short regions, as it is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmgem.data.records import Box
from mmgem.search.index_checksums import VectorBlocks
from mmgem.search.region_codes import RegionCodec, pixel_box


@dataclass(frozen=True, slots=True, eq=False)
class ShortRegions:
    """The short regions of an index: ``records`` (R, w) uint8, memory-mapped, of which photos own spans, in
    order: ``first`` and ``count`` (n,) int64 say which, ``photo_rows`` (n,) int64 the row of the photo, and
    ``sizes`` (n, 2) int64 its width and height in pixels."""

    codec: RegionCodec
    records: np.ndarray
    first: np.ndarray
    count: np.ndarray
    photo_rows: np.ndarray
    sizes: np.ndarray
    blocks: VectorBlocks

    def spans_of(self, rows: np.ndarray) -> np.ndarray:
        """The number of the span of each of ``rows`` (n,), -1 for a record of no photo."""
        if not len(self.first):
            return np.full(len(rows), -1)
        spans = np.searchsorted(self.first, rows, "right") - 1
        return np.where(rows < self.first[spans] + self.count[spans], spans, -1)

    def places(self, rows: np.ndarray) -> tuple[list[int], list[Box]]:
        """The row of the photo and the box in its pixels of each of ``rows`` (n,), which photos own. Raises
        SearchIndexError if they are damaged."""
        self.blocks.verify(rows)
        spans = self.spans_of(rows)
        boxes = RegionCodec.boxes(self.records[rows]).tolist()
        sizes = self.sizes[spans].tolist()
        places = [pixel_box(box, *size) for box, size in zip(boxes, sizes, strict=True)]
        return self.photo_rows[spans].tolist(), places

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The vectors (n, D) float32 of unit length that ``rows`` (n,) stand for. Raises SearchIndexError if
        they are damaged."""
        self.blocks.verify(rows)
        vectors = self.codec.decode(self.records[rows])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ListsState:
    """What the manifest says of the lists: their file has the first ``rows`` records of ``generation`` in
    ``lists`` lists, of ``axes`` and ``leads`` axes, fitted on ``fitted``; ``crc`` is that of all before the
    lists."""

    file: str
    generation: int
    rows: int
    lists: int
    axes: int
    leads: int
    fitted: int
    crc: int
    version: int

    @property
    def head_bytes(self) -> int:
        """What comes before the lists: centroids, steps, sizes, checksums."""
        return 4 * (self.lists * self.axes + self.leads) + 12 * self.lists
