"""Can the best cosine tell whether what is asked for is there? The same queries, with their photo and not.

An index of a given size is drawn from captioned photos; its captions are asked of it, and of the same index
with one other photo in the place of theirs. Photos that others' captions fit as well are left in, unless
``alike`` names them. Classes likewise: an image and a list of names, with its own among them and without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mmgem.errors import UsageError

Alike = Callable[[np.ndarray, np.ndarray], npt.NDArray[np.bool_]]
"""``(q,)`` texts and ``(p,)`` photos, as row numbers -> ``(q, p)``: which photos a text fits as well."""


@dataclass(frozen=True, slots=True, eq=False)
class MatchDraws:
    """Queries and the best cosine of each, where what it asks for is ``present`` and where it is ``absent``:
    both ``(n,)``. ``present_query``, ``absent_query``: ``(n,)`` rows of the text that the cosine is of (for
    classes those of the best class). ``present_photos``, ``absent_photos``: rows of the two best photos
    ``(n, 2)``; for classes that of the image ``(n, 1)``."""

    size: int
    present: np.ndarray
    absent: np.ndarray
    present_query: np.ndarray
    absent_query: np.ndarray
    present_photos: np.ndarray
    absent_photos: np.ndarray


def draw_searches(
    images: np.ndarray,
    texts: np.ndarray,
    image_of_text: np.ndarray,
    size: int,
    count: int,
    seed: int = 0,
    *,
    pool: np.ndarray | None = None,
    asked: np.ndarray | None = None,
    alike: Alike | None = None,
) -> MatchDraws:
    """``count`` searches of random indexes of ``size`` photos; of all there are, if they are fewer.

    ``images`` ``(n, D)`` and ``texts`` ``(m, D)`` are unit embeddings, ``image_of_text`` ``(m,)`` the photo
    of each. ``pool``: rows of photos that indexes are drawn from, ``asked``: of those whose texts are asked
    (None: all). ``alike``: photos that are taken out with a text's own.
    """
    pool = np.arange(len(images)) if pool is None else pool
    asked = pool if asked is None else np.intersect1d(asked, pool)
    asked = np.intersect1d(asked, image_of_text)
    if not len(asked):
        raise UsageError("no text belongs to a photo that can be drawn")
    rng = np.random.default_rng((seed, size))
    texts_of = {int(photo): np.flatnonzero(image_of_text == photo) for photo in asked}
    present: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])  # best cosines, best photos
    absent: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    queries = []
    drawn = 0
    while drawn < count:
        sample = rng.permutation(pool)[: size + 1]
        photos = sample[:size].tolist()
        own = np.array([place for place, photo in enumerate(photos) if photo in texts_of], np.int64)
        own = own[: count - drawn]
        if not len(own):
            continue
        query = np.array([rng.choice(texts_of[photos[place]]) for place in own])
        cosines = texts[query] @ images[sample].T
        without = cosines.copy()
        if alike is not None:
            without[alike(query, sample)] = -1
        without[np.arange(len(own)), own] = -1
        cosines[:, size:] = -1  # the one that stands in for each
        for (best, best_photos), scores in ((present, cosines), (absent, without)):
            order = np.argsort(-scores, axis=1, kind="stable")[:, :2]
            best.append(np.take_along_axis(scores, order[:, :1], axis=1)[:, 0])
            best_photos.append(sample[order])
        queries.append(query)
        drawn += len(own)
    rows = np.concatenate(queries)
    (with_own, with_photos), (without_own, without_photos) = (
        (np.concatenate(best), np.concatenate(photos)) for best, photos in (present, absent)
    )
    return MatchDraws(min(size, len(pool)), with_own, without_own, rows, rows, with_photos, without_photos)


def draw_names(
    images: np.ndarray, names: np.ndarray, labels: np.ndarray, size: int, count: int, seed: int = 0
) -> MatchDraws:
    """``count`` searches for the label of a random photo, among ``size`` photos with it and without any.

    ``images`` ``(n, D)`` and ``names`` ``(c, D)`` are unit embeddings of photos and of their labels as
    searches, ``labels`` ``(n,)`` rows of ``names``. All but the photo itself have other labels; ``size`` is
    what there is of these, if that is less. Raises UsageError if all have one label.
    """
    rng = np.random.default_rng((seed, size))
    others_of = {int(label): np.flatnonzero(labels != label) for label in np.unique(labels)}
    size = min(size, *map(len, others_of.values()))
    if size == 0:
        raise UsageError("all photos have the same label")
    photos = rng.integers(len(images), size=count)
    found: dict[str, list[tuple[float, np.ndarray]]] = {"present": [], "absent": []}
    for photo in photos:
        others = rng.permutation(others_of[int(labels[photo])])[:size]
        for key, sample in (("present", np.append(others[:-1], photo)), ("absent", others)):
            cosines = images[sample] @ names[labels[photo]]
            best = np.resize(np.argsort(-cosines, kind="stable"), 2)
            found[key].append((float(cosines[best[0]]), sample[best]))
    (present, present_photos), (absent, absent_photos) = (
        (np.array([cosine for cosine, _ in best]), np.stack([rows for _, rows in best]))
        for best in found.values()
    )
    rows = labels[photos]
    return MatchDraws(size, present, absent, rows, rows, present_photos, absent_photos)


def draw_classes(
    images: np.ndarray, classes: np.ndarray, labels: np.ndarray, size: int, count: int, seed: int = 0
) -> MatchDraws:
    """``count`` images, each with ``size`` random classes, its own among them and not.

    ``images`` ``(n, D)`` and ``classes`` ``(c, D)`` are unit embeddings, c above ``size``; ``labels``
    ``(n,)`` are rows of ``classes``.
    """
    rng = np.random.default_rng((seed, size))
    picked = rng.integers(len(images), size=count)
    best: dict[str, list[tuple[float, int]]] = {"present": [], "absent": []}
    for image in picked:
        label = labels[image]
        others = rng.permutation(len(classes) - 1)[:size]
        others += others >= label
        for key, names in (("present", np.append(others[:-1], label)), ("absent", others)):
            cosines = classes[names] @ images[image]
            best[key].append((float(cosines.max()), int(names[cosines.argmax()])))
    (present, present_query), (absent, absent_query) = (
        (np.array(column) for column in zip(*best[key], strict=True)) for key in ("present", "absent")
    )
    rows = picked[:, None]
    return MatchDraws(size, present, absent, present_query, absent_query, rows, rows)


def alike_by_text(
    texts: np.ndarray, image_of_text: np.ndarray, images: int, quantile: float = 0.25
) -> Alike | None:
    """Which photos a text fits as well as its own, by their captions: one of them is as near to it as
    another caption of its own photo is, in all but ``quantile`` of cases. None if no photo has two.

    ``texts`` ``(m, D)``: unit embeddings; ``image_of_text`` ``(m,)``: rising rows of so many photos.
    """
    starts = np.searchsorted(image_of_text, np.arange(images + 1))
    pairs = []
    for start, end in pairwise(starts.tolist()):
        cosines = texts[start:end] @ texts[start:end].T
        if end - start > 1:
            np.fill_diagonal(cosines, -1)
            pairs.append(cosines.max(axis=1))
    if not pairs:
        return None
    least = float(np.quantile(np.concatenate(pairs), quantile))

    def alike(queries: np.ndarray, photos: np.ndarray) -> npt.NDArray[np.bool_]:
        rows = np.concatenate([np.arange(starts[photo], starts[photo + 1]) for photo in photos])
        captions = starts[photos + 1] - starts[photos]
        is_near = texts[queries] @ texts[rows].T >= least
        owners = np.repeat(np.arange(len(photos)), captions)
        result = np.zeros((len(queries), len(photos)), bool)
        for column in range(is_near.shape[1]):
            result[:, owners[column]] |= is_near[:, column]
        return result

    return alike


def auroc(present: npt.ArrayLike, absent: npt.ArrayLike) -> float:
    """The probability that a ``present`` score is above an ``absent`` one, ties counting half: the area under
    the ROC curve, 0 to 1."""
    positive, negative = np.asarray(present, np.float64), np.sort(np.asarray(absent, np.float64))
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.mean() / (2 * len(negative)))
