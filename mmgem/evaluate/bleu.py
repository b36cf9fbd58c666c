"""Corpus BLEU (Papineni et al. 2002) as the COCO caption evaluation computes it.

The counts of all sentences are added up before any ratio is taken; the reference length of a sentence is the
one closest to it, the shorter of two equally close. Two tiny constants of that evaluation stand against
division by zero; they are kept so that degenerate corpora give the same figures too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmgem.evaluate.tokenize import ngram_counts

_IN_COUNT, _IN_DIVISOR = 1e-15, 1e-9


def bleu(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]], longest: int = 4
) -> list[float]:
    """Return corpus BLEU@1 to BLEU@``longest``, each from 0 to 1.

    ``predictions`` are one list of words an image, ``references`` at least one list of words for each of
    them, in the same order.
    """
    predicted_length = reference_length = 0
    total, matched = [0] * longest, [0] * longest
    for words, refs in zip(predictions, references, strict=True):
        predicted_length += len(words)
        reference_length += min(
            (len(ref) for ref in refs), key=lambda length: (abs(length - len(words)), length)
        )
        ref_counts = [ngram_counts(ref, longest) for ref in refs]
        for gram, count in ngram_counts(words, longest).items():
            total[len(gram) - 1] += count
            matched[len(gram) - 1] += min(count, max(counts.get(gram, 0) for counts in ref_counts))
    ratio = (predicted_length + _IN_COUNT) / (reference_length + _IN_DIVISOR)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(longest):
        product *= (matched[n] + _IN_COUNT) / (total[n] + _IN_DIVISOR)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores
