"""Image-text retrieval: recall among the k best, both ways, as the COCO and Flickr tables count it.

An image is found right (i2t) if any of its texts is among the k best of all texts; a text is found right
(t2i) if its image is among the k best of all images. Ties count against the model: an item that scores the
same as the right one, up to rounding, is placed before it, so that an embedding that is the same for
everything finds nothing.

The score matrix is made once, in blocks of images of bounded size, so a million texts need little more
memory than their embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from mmgem.errors import UsageError

_BLOCK_BYTES = 128 << 20
_DEPTHS = (1, 5, 10)
_UNIT_TOLERANCE = 0.01
ROUNDING = np.float32(1e-6)  # of a dot product of unit rows in float32, several times over

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


class RetrievalScores(TypedDict):
    """Recalls by name ("R@1", ...) in percent, each way, and how many images and texts there were."""

    i2t: dict[str, float]
    t2i: dict[str, float]
    images: int
    texts: int


def retrieval_scores(images: Floats, texts: Floats, image_of_text: npt.ArrayLike) -> RetrievalScores:
    """Return ``{"i2t": {"R@1", "R@5", "R@10"}, "t2i": {...}, "images", "texts"}``, recalls in percent.

    ``images`` (n, D) and ``texts`` (m, D) are floats, rows of length 1; ``image_of_text`` (m,) integers says
    which row of ``images`` each text belongs to. Works for anything with an image side and a text side, such
    as regions and their phrases.

    Raises UsageError for shapes that do not fit, rows that are not finite or not of length 1, and for an
    image without texts: leave such images out, or they would be distractors that no published protocol has.
    """
    return _scores(*ranks(images, texts, image_of_text))


def retrieval_scores_from_matrix(scores: Floats, image_of_text: npt.ArrayLike) -> RetrievalScores:
    """Like :func:`retrieval_scores`, from a score (n, m) of every image with every text, higher is nearer."""
    return _scores(*ranks_from_matrix(scores, image_of_text))


def ranks(images: Floats, texts: Floats, image_of_text: npt.ArrayLike) -> tuple[Ints, Ints]:
    """Return the 1-based ranks (n,) of each image's best text and (m,) of each text's image, int64.

    ``np.median`` and ``np.mean`` of them are the median and mean rank. Arguments and errors are those of
    :func:`retrieval_scores`.
    """
    _check_rows("images", images)
    _check_rows("texts", texts)
    if images.shape[1] != texts.shape[1]:
        raise UsageError(f"images have {images.shape[1]} dimensions, texts {texts.shape[1]}")
    image_of_each = _owners(image_of_text, len(images), len(texts))
    v, t = np.asarray(images, np.float32), np.asarray(texts, np.float32)
    text_scores = np.empty(len(t), np.float32)
    for block in _blocks(*t.shape):
        text_scores[block] = np.einsum("td,td->t", v[image_of_each[block]], t[block])
    return _ranks(lambda rows: v[rows] @ t.T, text_scores - ROUNDING, image_of_each, len(v))


def ranks_from_matrix(scores: Floats, image_of_text: npt.ArrayLike) -> tuple[Ints, Ints]:
    """Like :func:`ranks`, from a score (n, m) of every image with every text; ties are equal scores."""
    if scores.ndim != 2 or not scores.size:
        raise UsageError(f"scores must have the shape (images, texts), not {scores.shape}")
    for block in _blocks(*scores.shape):
        if not np.isfinite(scores[block]).all():
            raise UsageError(f"scores are not finite in rows {block.start} to {block.stop - 1}")
    image_of_each = _owners(image_of_text, *scores.shape)
    text_scores = scores[image_of_each, np.arange(len(image_of_each))]
    dtype = np.result_type(scores.dtype, np.float32)
    return _ranks(lambda rows: np.array(scores[rows], dtype), text_scores, image_of_each, len(scores))


def _ranks(
    block_scores: Callable[[slice], Floats], thresholds: Floats, image_of_each: Ints, images: int
) -> tuple[Ints, Ints]:
    """Ranks both ways.

    ``block_scores(rows)`` gives new scores (rows, m); ``thresholds`` (m,) is the score of each text with its
    own image, or a little less: whatever reaches it is placed before.
    """
    order = np.argsort(image_of_each, kind="stable")  # texts, those of one image together
    starts = np.searchsorted(image_of_each[order], np.arange(images + 1))
    image_ranks, text_ranks = np.empty(images, np.int64), np.ones(len(image_of_each), np.int64)
    for block in _blocks(images, len(image_of_each)):
        block_texts = order[starts[block.start] : starts[block.stop]]
        best = np.maximum.reduceat(thresholds[block_texts], starts[block] - starts[block.start])
        scores = block_scores(block)
        scores[image_of_each[block_texts] - block.start, block_texts] = -np.inf
        image_ranks[block] = 1 + np.count_nonzero(scores >= best[:, None], axis=1)
        text_ranks += np.count_nonzero(scores >= thresholds, axis=0)
    return image_ranks, text_ranks


def reranked_scores(
    images: Floats,
    texts: Floats,
    image_of_text: npt.ArrayLike,
    assess: Callable[[Ints, Ints], Floats],
    k: int,
) -> RetrievalScores:
    """Like :func:`retrieval_scores`, with the ``k`` nearest texts of each image and the ``k`` nearest images
    of each text ordered by ``assess``; what is not among them keeps its rank.

    ``assess`` is called once, with the rows of images and of texts (p,) int64 of the pairs, each pair once,
    and returns their scores (p,), higher is nearer.
    """
    return _scores(*reranked_ranks(images, texts, image_of_text, assess, k))


def reranked_ranks(
    images: Floats,
    texts: Floats,
    image_of_text: npt.ArrayLike,
    assess: Callable[[Ints, Ints], Floats],
    k: int,
) -> tuple[Ints, Ints]:
    """The ranks behind :func:`reranked_scores`, as :func:`ranks` gives them."""
    image_ranks, text_ranks = ranks(images, texts, image_of_text)
    owner = _owners(image_of_text, len(images), len(texts))
    near_texts, near_images = _nearest(images, texts, k), _nearest(texts, images, k)
    n, m = len(images), len(texts)
    forward = np.arange(n)[:, None] * m + near_texts
    back = near_images * m + np.arange(m)[:, None]
    pairs, places = np.unique(np.concatenate([forward.ravel(), back.ravel()]), return_inverse=True)
    scores = assess(pairs // m, pairs % m)[places]
    of_images, of_texts = scores[: forward.size].reshape(n, -1), scores[forward.size :].reshape(m, -1)
    return (
        _reranked(image_ranks, of_images, owner[near_texts] == np.arange(n)[:, None]),
        _reranked(text_ranks, of_texts, near_images == owner[:, None]),
    )


def _reranked(ranks: Ints, scores: Floats, right: npt.NDArray[np.bool_]) -> Ints:
    """Ranks (n,) after the first k were ordered by ``scores`` (n, k); ``right`` (n, k) are the right ones."""
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    return np.where(right.any(1), 1 + np.count_nonzero(~right & (scores >= best), axis=1), ranks)


def _nearest(queries: Floats, rows: Floats, k: int) -> Ints:
    """The ``k`` rows nearest to each query, (n, k), in no order."""
    q, r = np.asarray(queries, np.float32), np.asarray(rows, np.float32)
    k = min(k, len(r))
    return np.concatenate(
        [
            np.argpartition(q[block] @ r.T, len(r) - k, axis=1)[:, len(r) - k :]
            for block in _blocks(len(q), len(r))
        ]
    )


def recalls(of: Ints) -> dict[str, float]:
    """Recalls by name ("R@1", "R@5", "R@10") in percent, of 1-based ranks ``of`` (n,)."""
    return {f"R@{k}": 100 * float(np.mean(of <= k)) for k in _DEPTHS}


def _scores(image_ranks: Ints, text_ranks: Ints) -> RetrievalScores:
    return {
        "i2t": recalls(image_ranks),
        "t2i": recalls(text_ranks),
        "images": len(image_ranks),
        "texts": len(text_ranks),
    }


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows, so that a block of float32 scores is of bounded size."""
    step = max(1, _BLOCK_BYTES // (4 * columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _check_rows(name: str, rows: Floats) -> None:
    if rows.ndim != 2 or not rows.size:
        raise UsageError(f"{name} must have the shape (number, dimensions), not {rows.shape}")
    for block in _blocks(*rows.shape):
        lengths = np.linalg.norm(np.asarray(rows[block], np.float32), axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < _UNIT_TOLERANCE))
        if len(wrong):
            raise UsageError(
                f"{name}[{block.start + wrong[0]}] has length {lengths[wrong[0]]:.4g}; embeddings must be "
                "finite and of length 1"
            )


def _owners(image_of_text: npt.ArrayLike, images: int, texts: int) -> Ints:
    """Check ``image_of_text`` and return it as int64."""
    owner = np.asarray(image_of_text)
    if owner.shape != (texts,) or not np.issubdtype(owner.dtype, np.integer):
        raise UsageError(
            f"image_of_text must be {texts} integers, one a text, not {owner.dtype} {owner.shape}"
        )
    if owner.min() < 0 or owner.max() >= images:
        raise UsageError(f"image_of_text must be from 0 to {images - 1}, the images' rows")
    without_text = np.flatnonzero(np.bincount(owner, minlength=images) == 0)
    if len(without_text):
        raise UsageError(
            f"{len(without_text)} of {images} images have no text, the first is images[{without_text[0]}]; "
            "leave them out"
        )
    return owner.astype(np.int64)
