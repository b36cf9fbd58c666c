"""CIDEr-D (Vedantam et al. 2015) as the COCO caption evaluation computes it.

Similarity of TF-IDF vectors of 1- to 4-grams, where an n-gram's document frequency is the number of images
whose references contain it, in the evaluated set itself: the score of one caption depends on the others, and
a set of a single image scores 0. Two choices of that evaluation that the paper does not have: term
frequencies are plain counts, and a sentence's length in the length penalty is its number of bigrams.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmgem.evaluate.tokenize import ngram_counts

_LONGEST = 4
_SIGMA = 6.0
_SCALE = 10.0

Gram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Vector:
    """A sentence: weight of each n-gram, the norm for each n and the number of bigrams."""

    weights: dict[Gram, float]
    norms: list[float]
    bigrams: int


def cider_d(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> list[float]:
    """Return CIDEr-D of each image, from 0 to 10; the score of a corpus is their mean.

    ``predictions`` are one list of words an image, ``references`` at least one list of words for each of
    them, in the same order.
    """
    counted = [[ngram_counts(ref, _LONGEST) for ref in refs] for refs in references]
    documents: Counter[Gram] = Counter()
    for counts in counted:
        documents.update(set().union(*counts))
    rarity = {gram: math.log(len(counted)) - math.log(number) for gram, number in documents.items()}
    unseen = math.log(len(counted)) if counted else 0.0
    scores = []
    for words, refs, counts in zip(predictions, references, counted, strict=True):
        said = _vector(ngram_counts(words, _LONGEST), len(words), rarity, unseen)
        near = 0.0
        for ref, count in zip(refs, counts, strict=True):
            near += _similarity(said, _vector(count, len(ref), rarity, unseen))
        scores.append(_SCALE * near / len(refs))
    return scores


def _vector(counts: Mapping[Gram, int], words: int, rarity: Mapping[Gram, float], unseen: float) -> _Vector:
    weights = {gram: count * rarity.get(gram, unseen) for gram, count in counts.items()}
    squares = [0.0] * _LONGEST
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight * weight
    return _Vector(weights, [math.sqrt(square) for square in squares], max(0, words - 1))


def _similarity(said: _Vector, ref: _Vector) -> float:
    """Mean over n of the clipped cosine, times the length penalty."""
    products = [0.0] * _LONGEST
    for gram in said.weights.keys() & ref.weights.keys():
        products[len(gram) - 1] += min(said.weights[gram], ref.weights[gram]) * ref.weights[gram]
    cosine = 0.0
    for product, a, b in zip(products, said.norms, ref.norms, strict=True):
        if product:
            cosine += product / (a * b)
    penalty = math.exp(-((said.bigrams - ref.bigrams) ** 2) / (2 * _SIGMA**2))
    return penalty * cosine / _LONGEST
