"""Regions: a box and its captions among all boxes of a set, and where a heat map peaks.

Places are measured on twins: two canvases with the same photos in other places (``mmgem mosaic --twins``).

The same thing may be there more than once: a photo on several canvases, one phrase for two boxes. Regions
with the same captions are one thing: any of them is a right answer (t2r), and texts are counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from mmgem.data.records import Box
from mmgem.errors import UsageError
from mmgem.evaluate.retrieval import ROUNDING, Floats, recalls
from mmgem.search.spatial_filter import SpatialFilter, apply_spatial_filter

_BLOCK = 512


class RegionScores(TypedDict):
    """Recalls by name in percent, each way, and how many regions and different texts there were."""

    r2t: dict[str, float]
    t2r: dict[str, float]
    regions: int
    texts: int


def region_scores(
    regions: Floats, texts: Floats, thing_of_region: npt.ArrayLike, thing_of_text: npt.ArrayLike
) -> RegionScores:
    """Return ``{"r2t": {"R@1", "R@5", "R@10"}, "t2r": {...}, "regions", "texts"}``, recalls in percent.

    ``regions`` (n, D), ``texts`` (m, D): unit rows; ``thing_of_...``: integers (n,) and (m,), equal where a
    text describes a region. A region is found right if any text of its thing is among the k best of all
    texts; a text if any region of its thing is among the k best of all regions. Ties count against the
    model.

    Raises UsageError for shapes that do not fit, and for a region without a text or a text without a region.
    """
    a, b = np.asarray(thing_of_region), np.asarray(thing_of_text)
    if a.shape != (len(regions),) or b.shape != (len(texts),):
        raise UsageError("one thing a region and one a text are needed")
    if lonely := set(a.tolist()) ^ set(b.tolist()):
        raise UsageError(f"thing {min(lonely)} has no text or no region")
    return {
        "r2t": recalls(thing_ranks(regions, texts, a, b)),
        "t2r": recalls(thing_ranks(texts, regions, b, a)),
        "regions": len(a),
        "texts": len(b),
    }


def thing_ranks(asked: Floats, found: Floats, of_asked: np.ndarray, of_found: np.ndarray) -> np.ndarray:
    """1-based ranks (n,) of the best of ``found`` that is the same thing as each of ``asked``."""
    ranks = np.empty(len(asked), np.int64)
    for at in range(0, len(asked), _BLOCK):
        scores = np.asarray(asked[at : at + _BLOCK], np.float32) @ np.asarray(found, np.float32).T
        own = of_asked[at : at + _BLOCK, None] == of_found[None]
        best = np.where(own, scores, -np.inf).max(1, keepdims=True) - ROUNDING
        ranks[at : at + _BLOCK] = 1 + ((scores >= best) & ~own).sum(1)
    return ranks


def pointing(heat: Floats, boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]) -> dict[str, float]:
    """``{"pointing", "chance"}`` in percent: how often the peak of a heat map ``heat[i]`` (h, w) lies in
    ``boxes[i]`` (pixels of an image of ``sizes[i]``, width and height), and the mean share of the box's area.

    The pointing game of Zhang et al. 2016 (arXiv 1608.00507), without its tolerance. Raises UsageError if the
    lengths differ.
    """
    if not len(heat) == len(boxes) == len(sizes) or not len(heat):
        raise UsageError(f"{len(heat)} heat maps, {len(boxes)} boxes and {len(sizes)} sizes")
    hits, areas = [], []
    for own, (x0, y0, x1, y1), (width, height) in zip(heat, boxes, sizes, strict=True):
        row, column = divmod(int(np.argmax(own)), own.shape[1])
        x, y = (column + 0.5) / own.shape[1] * width, (row + 0.5) / own.shape[0] * height
        hits.append(x0 <= x < x1 and y0 <= y < y1)
        across, down = min(x1, width) - max(x0, 0.0), min(y1, height) - max(y0, 0.0)
        areas.append(max(across, 0) * max(down, 0) / (width * height))
    return {"pointing": 100 * float(np.mean(hits)), "chance": 100 * float(np.mean(areas))}


def quarter(box: Box, size: tuple[int, int]) -> str:
    """The quarter of an image of ``size`` (width, height in pixels) in which the middle of a box lies:
    ``"top left"`` and so on."""
    down = "bottom" if box[1] + box[3] > size[1] else "top"
    return f"{down} {'right' if box[0] + box[2] > size[0] else 'left'}"


def place_scores(
    questions: Sequence[tuple[Floats, SpatialFilter, int, int]], regions: Sequence[tuple[Floats, Floats]]
) -> dict[str, float]:
    """``{"place", "questions"}``: in percent, how often what is asked for *at a place* is found in the right
    one of two images, by the best of the regions found in each, as region search ranks them.

    ``questions``: text vector (D,), the place, the numbers of the right and of the wrong image; ``regions``:
    of each image the regions' unit vectors (n, D) and boxes (n, 4) in shares of the image. A draw is an
    error; chance is 50. Raises UsageError without questions.
    """
    if not questions:
        raise UsageError("no thing lies in different quarters of two images: make them with mosaic --twins")

    def best(text: Floats, where: SpatialFilter, image: int) -> float:
        vectors, boxes = regions[image]
        return float(apply_spatial_filter(vectors @ text, boxes, where).max(initial=-np.inf))

    right = [best(text, where, one) > best(text, where, two) for text, where, one, two in questions]
    return {"place": 100 * float(np.mean(right)), "questions": len(questions)}
