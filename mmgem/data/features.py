"""What batches of images and clips are read from: the feature cache, or pixels.

Both hold pictures, a photo or a frame each; :class:`ClipSource` makes records of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmgem.config import Preprocessing
from mmgem.data.images import image_size
from mmgem.data.pictures import Frame, Picture, open_pictures
from mmgem.data.transforms import normalise, to_square, view_geometry
from mmgem.errors import DataError, ImageError


@dataclass
class FeatureCache:
    """``maps``: one ``(n, h, w, c)`` float16 memory map per view; ``valid``: indices of readable images;
    ``problems``: one message per unreadable one. ``crcs``: the CRC-32 of each map, ``(n,)`` uint32 per view,
    compared when it is first read; none: they are not. ``rows``: the row of each image in the maps, where
    several share one; None: its own number."""

    maps: list[np.ndarray]
    valid: list[int]
    problems: list[str]
    crcs: list[np.ndarray] = field(default_factory=list)
    rows: list[int] | None = None
    cached: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._seen = [np.zeros(len(crcs), bool) for crcs in self.crcs]

    @property
    def views(self) -> int:
        """How many versions of each image there are."""
        return len(self.maps)

    def views_of(self, images: Sequence[int]) -> np.ndarray:
        """``(len(images),)``: how many versions of each there are."""
        return np.full(len(images), self.views)

    def read(self, images: Sequence[int], views: Sequence[int]) -> Tensor:
        """Features ``(len(images), h, w, c)`` float32 of each image in its view.

        Raises ``DataError`` if they are damaged."""
        if self.rows is not None:
            images = [self.rows[i] for i in images]
        if self.crcs:
            self._verify(images, views)
        return torch.from_numpy(
            np.stack([self.maps[v][i] for i, v in zip(images, views, strict=True)]).astype(np.float32)
        )

    def _verify(self, images: Sequence[int], views: Sequence[int]) -> None:
        for image, view in zip(images, views, strict=True):
            if not self._seen[view][image]:
                if zlib.crc32(self.maps[view][image].tobytes()) != self.crcs[view][image]:
                    where = getattr(self.maps[view], "filename", "the feature cache")
                    raise DataError(f"{where}: row {image} is damaged; delete its folder, it is made again")
                self._seen[view][image] = True


class PixelSource:
    """The same interface without a cache, for encoders that train whole: normalised pixels, read every time.

    Photos without a readable header are left out at once (clips were opened to know their frames); damage
    further in is an error when read."""

    cached = False

    def __init__(self, images: Sequence[Picture], prep: Preprocessing, views: int, crop_scale: float):
        self.images, self.prep, self.views, self.crop_scale = list(images), prep, views, crop_scale
        self.valid: list[int] = []
        self.problems: list[str] = []
        for i, image in enumerate(self.images):
            try:
                if not isinstance(image, Frame):
                    image_size(image)
                self.valid.append(i)
            except ImageError as error:
                self.problems.append(str(error))

    def views_of(self, images: Sequence[int]) -> np.ndarray:
        """``(len(images),)``: how many versions of each there are."""
        return np.full(len(images), self.views)

    def read(self, images: Sequence[int], views: Sequence[int]) -> Tensor:
        """Pixels ``(len(images), 3, S, S)`` float32. Raises ``ImageError`` for an unreadable file."""
        pictures = [self.images[i] for i in images]
        pixels = []
        decoded = open_pictures(pictures, min_side=2 * self.prep.size)
        for picture, view, image in zip(pictures, views, decoded, strict=True):
            if isinstance(image, ImageError):
                raise image
            pixels.append(to_square(image, self.prep, view_geometry(view, picture.name, self.crop_scale)))
        return normalise(np.stack(pixels), self.prep)


class ClipSource:
    """A source of pictures as one of records: a photo is one of them, a clip as many as it has frames."""

    def __init__(
        self, pictures: FeatureCache | PixelSource, counts: Sequence[int], problems: Sequence[str] = ()
    ):
        """``counts``: how many of the pictures, in their order, each record has; 0: it could not be read, as
        ``problems`` say. A record is valid if all of its pictures are."""
        self.pictures, self.counts = pictures, np.asarray(counts)
        self.starts = np.cumsum([0, *counts])
        self.cached, self.views = pictures.cached, pictures.views
        owners = np.searchsorted(self.starts, pictures.valid, side="right") - 1
        readable = np.bincount(owners, minlength=len(self.counts))
        self.valid: list[int] = np.flatnonzero((self.counts > 0) & (readable == self.counts)).tolist()
        self.problems = list(dict.fromkeys([*problems, *pictures.problems]))

    def views_of(self, images: Sequence[int]) -> np.ndarray:
        """``(len(images),)``: how many versions of each there are."""
        return np.full(len(images), self.views)

    def frames(self, images: Sequence[int]) -> list[int]:
        """How many rows of :meth:`read` each record has."""
        counts: list[int] = self.counts[images].tolist()
        return counts

    def read(self, images: Sequence[int], views: Sequence[int]) -> Tensor:
        """What the pictures of each record give, one after the other, all in the view of their record."""
        rows = [row for i in images for row in range(self.starts[i], self.starts[i + 1])]
        return self.pictures.read(rows, np.repeat(views, self.counts[images]).tolist())


RecordSource = FeatureCache | PixelSource | ClipSource


class Joined:
    """Several sources of one kind as one; images are numbered through."""

    def __init__(self, parts: Sequence[RecordSource], sizes: Sequence[int]):
        """``sizes``: how many images, readable or not, each part was given; no clip is read of them."""
        self.parts = list(parts)
        self.cached = self.parts[0].cached
        self.starts = np.cumsum([0, *sizes])
        self.views = max(part.views for part in parts)
        self.valid = [int(self.starts[at]) + i for at, part in enumerate(parts) for i in part.valid]
        self.problems = [problem for part in parts for problem in part.problems]

    def views_of(self, images: Sequence[int]) -> np.ndarray:
        """``(len(images),)``: how many versions of each there are."""
        counts = np.array([part.views for part in self.parts])
        return counts[np.searchsorted(self.starts, images, side="right") - 1]

    def read(self, images: Sequence[int], views: Sequence[int]) -> Tensor:
        """What the part of each image gives for it, in the order of ``images``."""
        owner = np.searchsorted(self.starts, images, side="right") - 1
        numbers, seen = np.asarray(images), np.asarray(views)
        read, order = [], []
        for at in np.unique(owner):
            (rows,) = np.nonzero(owner == at)
            read.append(self.parts[at].read((numbers[rows] - self.starts[at]).tolist(), seen[rows].tolist()))
            order.append(rows)
        return torch.cat(read)[np.argsort(np.concatenate(order))]


Source = RecordSource | Joined
