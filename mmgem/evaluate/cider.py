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
    reference_counts = [[ngram_counts(ref, _LONGEST) for ref in refs] for refs in references]
    documents: Counter[Gram] = Counter()
    for counts in reference_counts:
        documents.update(set().union(*counts))
    idf = {gram: math.log(len(reference_counts)) - math.log(number) for gram, number in documents.items()}
    idf_unseen = math.log(len(reference_counts)) if reference_counts else 0.0
    scores = []
    for words, refs, counts in zip(predictions, references, reference_counts, strict=True):
        predicted = _vector(ngram_counts(words, _LONGEST), len(words), idf, idf_unseen)
        similarity = 0.0
        for ref, count in zip(refs, counts, strict=True):
            similarity += _similarity(predicted, _vector(count, len(ref), idf, idf_unseen))
        scores.append(_SCALE * similarity / len(refs))
    return scores


def _vector(counts: Mapping[Gram, int], words: int, idf: Mapping[Gram, float], idf_unseen: float) -> _Vector:
    weights = {gram: count * idf.get(gram, idf_unseen) for gram, count in counts.items()}
    squares = [0.0] * _LONGEST
    for gram, weight in weights.items():
        squares[len(gram) - 1] += weight * weight
    return _Vector(weights, [math.sqrt(square) for square in squares], max(0, words - 1))


def _similarity(predicted: _Vector, reference: _Vector) -> float:
    """Mean over n of the clipped cosine, times the length penalty."""
    products = [0.0] * _LONGEST
    for gram in predicted.weights.keys() & reference.weights.keys():
        products[len(gram) - 1] += (
            min(predicted.weights[gram], reference.weights[gram]) * reference.weights[gram]
        )
    cosine = 0.0
    for product, a, b in zip(products, predicted.norms, reference.norms, strict=True):
        if product:
            cosine += product / (a * b)
    penalty = math.exp(-((predicted.bigrams - reference.bigrams) ** 2) / (2 * _SIGMA**2))
    return penalty * cosine / _LONGEST
