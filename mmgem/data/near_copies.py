"""Which pictures are the same one: resized, compressed again, brightened, or cropped by up to a tenth.

Small pictures are correlated, one of them cropped in several ways, and the best correlation counts.
Brightness and contrast drop out of it. Pictures that show little but a sky or snow correlate as well, so
edges have to agree too. Where there are many, those that are alike at 8 x 8 pixels
are looked at so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np
from PIL import Image

from mmgem.data.images import ImageSource, open_image

MIN_CORRELATION = 0.9
"""Of two pictures that are copies."""
MIN_EDGES = 0.63
"""Of the edges of two pictures that are copies; those of two skies correlate less."""
MIN_COARSE = 0.85
"""Of two at 8 x 8 pixels that are looked at: 0.999 of the copies have it, and 1 in 3,000 other pairs."""
SIDE = 64
"""Pixels of a small picture."""
DECODED_SIDE = 2 * SIDE
"""Pixels that decoding leaves of the shorter side at least."""
_COMPARED = 24  # pixels of what is correlated
_COARSE = 8
_CUTS = (0.05, 0.1)
_PLACES = (0, 0.5, 1)
_GRID = [(y, x) for y in range(3) for x in range(3)]
_BLOCK, _WIDTH = 1024, 8192  # pictures compared with each other at once
_AT_ONCE = 128  # pictures whose crops are held


def small_picture(source: ImageSource) -> Image.Image:
    """The picture at ``SIDE`` pixels a side, whatever its shape was. Raises as ``open_image``."""
    return squeeze(open_image(source, min_side=DECODED_SIDE))


def squeeze(image: Image.Image) -> Image.Image:
    """:func:`small_picture` of one that is decoded, with both sides at least ``DECODED_SIDE`` if it had
    them."""
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def crops(pictures: np.ndarray) -> np.ndarray:
    """The whole and eighteen crops of each small picture ``(n, 64, 64, 3)`` uint8, at the size that is
    compared, less the mean of each colour, of unit length: ``(n, 19, 1728)`` float32."""
    n, resizers = len(pictures), _resizers()
    planes = np.moveaxis(pictures, -1, 1).astype(np.float32)
    short = resizers[:, None] @ planes[:, None]  # (n, 7, 3, 24, 64)
    values = np.stack([short[:, y] @ resizers[x].T for y, x in _crops()], axis=1)
    values -= values.mean((-2, -1), keepdims=True)
    flat_values = values.reshape(n, len(_crops()), -1)
    norms = np.linalg.norm(flat_values, axis=-1, keepdims=True)
    return np.asarray(flat_values / np.maximum(norms, 1e-6), np.float32)


def is_copy(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two pictures are the same one, of their :func:`crops` ``(19, 1728)`` each: where they fit best,
    they correlate, and so do their edges."""
    first, second = one @ two[0], two @ one[0]
    if max(first.max(), second.max()) < MIN_CORRELATION:
        return False
    if first.max() >= second.max():
        return bool(_edges(one[first.argmax()]) @ _edges(two[0]) >= MIN_EDGES)
    return bool(_edges(one[0]) @ _edges(two[second.argmax()]) >= MIN_EDGES)


def _edges(values: np.ndarray) -> np.ndarray:
    """The differences of neighbours of one of :func:`crops`, down and across, of unit length."""
    planes = values.reshape(3, _COMPARED, _COMPARED)
    edges = np.concatenate([np.diff(planes, axis=axis).ravel() for axis in (1, 2)])
    return np.asarray(edges / max(float(np.linalg.norm(edges)), 1e-6))


def near_pairs(
    pictures: np.ndarray, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> Iterator[tuple[int, int]]:
    """The pairs ``(a, b)``, a < b, of copies among small pictures ``(n, 64, 64, 3)`` uint8, which may lie on
    the disk. Holds 768 bytes a picture, and 200 MB. ``progress`` as of
    :func:`mmgem.search.duplicates.find_duplicates`."""
    coarse = np.concatenate(
        [np.empty((0, 3 * _COARSE**2), np.float32)]
        + [_coarse(pictures[at : at + _BLOCK]) for at in range(0, len(pictures), _BLOCK)]
    )
    for start in progress(range(0, len(pictures), _BLOCK)):
        found = np.concatenate([_alike(coarse, start, at) for at in range(start, len(pictures), _WIDTH)])
        for at in range(0, len(found), _AT_ONCE):
            some = found[at : at + _AT_ONCE]
            numbers, places = np.unique(some, return_inverse=True)
            cropped = crops(np.asarray(pictures[numbers]))
            for (a, b), (i, j) in zip(some.tolist(), places.reshape(-1, 2).tolist(), strict=True):
                if is_copy(cropped[i], cropped[j]):
                    yield a, b


def _alike(coarse: np.ndarray, row: int, column: int) -> np.ndarray:
    """The pairs ``(k, 2)`` that are alike, of a block of rows and one of columns, each once."""
    cosines = coarse[row : row + _BLOCK] @ coarse[column : column + _WIDTH].T
    pairs = np.argwhere(cosines >= MIN_COARSE) + np.array([row, column])
    return pairs[pairs[:, 0] < pairs[:, 1]]


def _coarse(pictures: np.ndarray) -> np.ndarray:
    """Pictures at 8 x 8 pixels, less the mean of each colour, of unit length: ``(n, 192)`` float32; zeros
    for one of a single colour, which is like no other."""
    part = SIDE // _COARSE
    shape = (len(pictures), _COARSE, part, _COARSE, part, 3)
    values = np.asarray(pictures).reshape(shape).mean((2, 4), dtype=np.float32)
    flat = (values - values.mean((1, 2), keepdims=True)).reshape(len(values), -1)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6), np.float32)


@cache
def _crops() -> list[tuple[int, int]]:
    """The whole and the crops: which of :func:`_resizers` is taken down and across."""
    count = len(_PLACES)
    places = [(1 + count * cut + y, 1 + count * cut + x) for cut in range(len(_CUTS)) for y, x in _GRID]
    return [(0, 0), *places]


@cache
def _resizers() -> np.ndarray:
    """What shrinks one side of a small picture, whole and cut, to 24 pixels: ``(7, 24, 64)`` float32. Each
    pixel is the mean of those whose centres it covers, as Pillow's box filter has it."""
    spans = [(0.0, 1.0)] + [(at * cut, 1 - (1 - at) * cut) for cut in _CUTS for at in _PLACES]
    matrices = np.zeros((len(spans), _COMPARED, SIDE), np.float32)
    centres = np.arange(SIDE) + 0.5
    for matrix, (start, stop) in zip(matrices, spans, strict=True):
        scale = (stop - start) * SIDE / _COMPARED
        for pixel, row in enumerate(matrix):
            distance = (centres - start * SIDE - (pixel + 0.5) * scale) / scale
            row[(distance > -0.5) & (distance <= 0.5)] = 1
        matrix /= matrix.sum(1, keepdims=True)
    return matrices
