"""What batches of images are read from: the feature cache, or pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmgem.config import Preprocessing
from mmgem.data.images import image_size, open_image
from mmgem.data.transforms import normalise, to_square, view_geometry
from mmgem.errors import ImageError


@dataclass
class FeatureCache:
    """``maps``: one ``(n, h, w, c)`` float16 memory map per view; ``valid``: indices of readable images;
    ``problems``: one message per unreadable one."""

    maps: list[np.ndarray]
    valid: list[int]
    problems: list[str]
    cached: ClassVar[bool] = True

    @property
    def views(self) -> int:
        """How many versions of each image there are."""
        return len(self.maps)

    def views_of(self, images: Sequence[int]) -> np.ndarray:
        """``(len(images),)``: how many versions of each there are."""
        return np.full(len(images), self.views)

    def read(self, images: Sequence[int], views: Sequence[int]) -> Tensor:
        """Features ``(len(images), h, w, c)`` float32 of each image in its view."""
        return torch.from_numpy(
            np.stack([self.maps[v][i] for i, v in zip(images, views, strict=True)]).astype(np.float32)
        )


class PixelSource:
    """The same interface without a cache, for encoders that train whole: normalised pixels, read every time.

    Files without a readable image header are left out at once; damage further in is an error when read."""

    cached = False

    def __init__(self, images: Sequence[Path], prep: Preprocessing, views: int, crop_scale: float):
        self.images, self.prep, self.views, self.crop_scale = list(images), prep, views, crop_scale
        self.valid: list[int] = []
        self.problems: list[str] = []
        for i, path in enumerate(self.images):
            try:
                image_size(path)
                self.valid.append(i)
            except ImageError as error:
                self.problems.append(str(error))

    def views_of(self, images: Sequence[int]) -> np.ndarray:
        """``(len(images),)``: how many versions of each there are."""
        return np.full(len(images), self.views)

    def read(self, images: Sequence[int], views: Sequence[int]) -> Tensor:
        """Pixels ``(len(images), 3, S, S)`` float32. Raises ``ImageError`` for an unreadable file."""
        pixels = [
            to_square(
                open_image(self.images[i], min_side=2 * self.prep.size),
                self.prep,
                view_geometry(v, self.images[i].name, self.crop_scale),
            )
            for i, v in zip(images, views, strict=True)
        ]
        return normalise(np.stack(pixels), self.prep)


class Joined:
    """Several sources of one kind as one; images are numbered through."""

    def __init__(self, parts: Sequence[FeatureCache | PixelSource], sizes: Sequence[int]):
        """``sizes``: how many images, readable or not, each part was given."""
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


Source = FeatureCache | PixelSource | Joined


def image_identity(path: Path) -> list[str | int]:
    """Name (it seeds the crops), size and hash of the first 64 KB: copying a data set or touching its files
    leaves the cache valid."""
    try:
        with path.open("rb") as file:
            head = hashlib.blake2b(file.read(1 << 16), digest_size=16).hexdigest()
            return [path.name, os.fstat(file.fileno()).st_size, head]
    except OSError:
        return [path.name, -1, ""]
