"""Photos sorted into groups that look alike, each with a name the model gives it.

Spherical k-means (Dhillon and Modha, 2001) over the vectors of the index, from centres spread as k-means++
spreads them (Arthur and Vassilvitskii, 2007), with a fixed seed: the same index gives the same groups. A name
is a caption of one of the photos nearest to the centre, the one that fits its group more than the others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count as count_from
from pathlib import Path
from typing import Protocol

import numpy as np

from mmgem.data.images import ImageSource, attempt
from mmgem.errors import ImageError, UsageError
from mmgem.search.search import PhotoIndex

_ROUNDS = 50
_CAPTIONED = 4  # photos of a group whose captions may become its name


class Captioner(Protocol):
    """What naming needs of a model."""

    def caption(self, images: Sequence[ImageSource], /) -> list[str]: ...  # noqa: D102
    def embed_texts(self, texts: Sequence[str], /) -> np.ndarray: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Cluster:
    """Photos and clips that look alike, the most typical first; ``name``: a caption, empty if no photo can be
    read."""

    name: str
    paths: tuple[Path, ...]


def cluster_photos(index: PhotoIndex, captioner: Captioner, count: int | None = None) -> list[Cluster]:
    """``count`` groups of the photos of ``index``, the largest first; None: a number that grows with the root
    of theirs. Fewer if there are not so many different photos. Raises UsageError for a ``count`` below 1 and
    an index without photos."""
    entries = sorted(index.files, key=lambda entry: os.fsencode(index.names[entry]))
    if not entries:
        raise UsageError("the index holds no photos")
    if count is not None and count < 1:
        raise UsageError(f"the number of groups must be at least 1, not {count}")
    vectors = index.row_vectors([index.row_of(entry) for entry in entries])
    for number, entry in enumerate(entries):
        if index.moments[entry] is not None:
            vectors[number] = index.vector_of(index.paths[entry])
    if count is None:
        count = max(2, min(50, round((len(entries) / 2) ** 0.5)))
    labels, centres = spherical_kmeans(vectors, count)
    members = []
    for number in range(len(centres)):
        inside = np.flatnonzero(labels == number)
        order = inside[np.argsort(-(vectors[inside] @ centres[number]), kind="stable")]
        members.append([index.paths[entries[n]] for n in order.tolist()])
    names = _names(captioner, members, centres)
    clusters = [Cluster(name, tuple(paths)) for name, paths in zip(names, members, strict=True)]
    return sorted(clusters, key=lambda cluster: -len(cluster.paths))


def spherical_kmeans(vectors: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Groups ``(n,)`` int of unit vectors ``(n, D)`` and their centres ``(m, D)`` float32 of unit length,
    ``m`` at most ``count``: each vector is in the group whose centre has the highest cosine with it."""
    centres = _spread(vectors, count, np.random.default_rng(seed))
    labels = np.full(len(vectors), -1)
    for _ in range(_ROUNDS):
        nearest = (vectors @ centres.T).argmax(1)
        if np.array_equal(nearest, labels):
            break
        used, labels = np.unique(nearest, return_inverse=True)
        sums = np.zeros((len(used), vectors.shape[1]), np.float64)
        np.add.at(sums, labels, vectors)
        lengths = np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        centres = (sums / lengths).astype(np.float32)
    return labels, centres


def _spread(vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Vectors far from each other: each next one with a probability in proportion to its distance."""
    chosen = [int(rng.integers(len(vectors)))]
    distances = 1 - vectors @ vectors[chosen[0]]
    while len(chosen) < count:
        weights = np.where(distances > 1e-6, distances, 0).astype(np.float64)
        if not weights.any():
            break
        chosen.append(int(rng.choice(len(vectors), p=weights / weights.sum())))
        distances = np.minimum(distances, 1 - vectors @ vectors[chosen[-1]])
    return vectors[chosen]


def _names(captioner: Captioner, members: Sequence[Sequence[Path]], centres: np.ndarray) -> list[str]:
    """A caption for each group: of those of its most typical photos the one whose cosine with its centre is
    most above that with the others, and is no other's name; where there is none, numbered."""
    captions: list[list[str]] = []
    for paths in members:
        told = attempt(captioner.caption, list(paths[:_CAPTIONED]))
        captions.append([text for text in told if not isinstance(text, ImageError) and text.strip()])
    texts = sorted({text for group in captions for text in group})
    if not texts:
        return [""] * len(members)
    cosines = captioner.embed_texts(texts) @ centres.T
    number = {text: row for row, text in enumerate(texts)}
    fits: list[tuple[float, int, str]] = []
    for group, own in enumerate(captions):
        others = np.delete(cosines, group, 1)
        margin = cosines[:, group] - (others.mean(1) if others.size else 0)
        fits += [(float(margin[number[text]]), group, text) for text in set(own)]
    fits.sort(reverse=True)  # the clearest first
    names: dict[int, str] = {}
    for _, group, text in fits:
        if group not in names and text not in names.values():
            names[group] = text
    for _, group, text in fits:
        if group not in names:
            names[group] = next(n for i in count_from(2) if (n := f"{text} ({i})") not in names.values())
    return [names.get(group, "") for group in range(len(members))]
