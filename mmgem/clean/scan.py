"""Every photo of a data set read and decoded once, and what of it the check needs kept on the disk.

    FOLDER/.check.rows       a JSON line a photo: digest, shape, captions, or why it cannot be read
    FOLDER/.check.pictures   12,288 bytes a photo: it at 64 x 64 pixels, zeros for a copy of one before

Both grow by blocks, the pictures first, and a killed run goes on behind the last whole block. A photo with
the bytes of one before is not decoded again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.clean.pairs import Pair, PairData
from mmgem.data.images import open_image
from mmgem.data.near_copies import DECODED_SIDE, SIDE, squeeze
from mmgem.errors import ImageError
from mmgem.utils.progress import Meter
from mmgem.utils.work_file import WorkFile

PHOTO_BYTES = 3 * SIDE * SIDE
_VERSION = 1
_BLOCK = 64  # photos read, and lost by a kill, at once
_THREADS = 4


@dataclass(frozen=True, slots=True)
class ScannedPhoto:
    """``number``, ``name``, ``split`` and ``captions`` as in the data; ``has_more``: labels or regions say
    something of it; ``digest``: of its bytes; ``first``: the number of the first photo with these bytes;
    ``shape``: width over height; ``error``: why it cannot be read, or ""."""

    number: int
    name: str
    split: str | None
    captions: Sequence[str]
    has_more: bool
    digest: str
    first: int
    shape: float
    error: str


class Scan:
    """What is known of each photo of ``data``, kept in ``folder``; :meth:`run` makes what is missing.
    ``resumed``: how many photos were known. Raises as :class:`WorkFile`."""

    def __init__(self, data: PairData, folder: Path):
        self.data = data
        self._pictures = folder / ".check.pictures"
        self._rows = WorkFile(folder / ".check.rows", {"version": _VERSION, "data": data.digest})
        stored = self._pictures.stat().st_size // PHOTO_BYTES if self._pictures.exists() else 0
        self._rows.keep(stored)
        self.resumed = self._rows.count
        with self._pictures.open("ab") as file:
            file.truncate(self.resumed * PHOTO_BYTES)

    def run(self) -> None:
        """Read what is missing."""
        first_of: dict[str, tuple[int, float, str]] = {}
        for photo in self.photos():
            first_of.setdefault(photo.digest, (photo.number, photo.shape, photo.error))
        pairs = self.data.pairs(self.resumed)
        with (
            ThreadPoolExecutor(_THREADS) as pool,
            Meter("Checking", len(self.data), self.resumed, " photos") as meter,
        ):
            while block := list(islice(pairs, _BLOCK)):
                digests = [hashlib.blake2b(pair.data, digest_size=16).hexdigest() for pair in block]
                new: dict[str, Pair] = {}
                for pair, digest in zip(block, digests, strict=True):
                    if pair.error is None and digest not in first_of:
                        new.setdefault(digest, pair)
                decoded = dict(zip(new, pool.map(_decode, (pair.data for pair in new.values())), strict=True))
                rows, pictures = [], []
                for pair, digest in zip(block, digests, strict=True):
                    picture = b""
                    if pair.error is not None:
                        first, shape, error = pair.number, 1.0, str(pair.error)
                        digest = ""
                    elif digest in first_of:
                        first, shape, error = first_of[digest]
                    else:
                        picture, shape, error = decoded[digest]
                        first = pair.number
                        first_of[digest] = first, shape, error
                    rows.append(_row(pair, digest, first, shape, error))
                    pictures.append(picture or bytes(PHOTO_BYTES))
                with self._pictures.open("ab") as file:
                    file.write(b"".join(pictures))
                    file.flush()
                    os.fsync(file.fileno())
                self._rows.append(rows)
                meter.advance(len(block), len(block), {})

    def photos(self) -> Iterator[ScannedPhoto]:
        """All that are known, in order."""
        for number, row in enumerate(self._rows.rows()):
            yield ScannedPhoto(number, **row)

    def pictures(self) -> np.ndarray:
        """``(n, 64, 64, 3)`` uint8, mapped from the disk."""
        return np.memmap(self._pictures, np.uint8, "r").reshape(-1, SIDE, SIDE, 3)

    def remove(self) -> None:
        """Remove what was kept."""
        self._pictures.unlink()
        self._rows.path.unlink()

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()


def _decode(data: bytes) -> tuple[bytes, float, str]:
    """A small picture, the shape of the photo, and what is wrong with it."""
    try:
        image = open_image(data, min_side=DECODED_SIDE)
        return squeeze(image).tobytes(), round(image.width / image.height, 4), ""
    except ImageError as error:
        return b"", 1.0, str(error).removeprefix("image bytes: ")


def _row(pair: Pair, digest: str, first: int, shape: float, error: str) -> dict[str, Any]:
    record = pair.record
    return {
        "name": pair.name,
        "split": record.split,
        "captions": record.captions,
        "has_more": bool(record.label or any(region.captions for region in record.regions)),
        "digest": digest,
        "first": first,
        "shape": shape,
        "error": error,
    }
