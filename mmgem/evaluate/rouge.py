"""ROUGE-L (Lin 2004) as the COCO caption evaluation computes it: per image, then the mean.

The longest common subsequence is found bit by bit in Python integers (Hyyrö 2004): one pass over the words of
the reference with a few operations each, instead of a table.
"""

from __future__ import annotations

from collections.abc import Sequence

_BETA = 1.2  # recall weighs this much more than precision


def rouge_l(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return the mean over images of ROUGE-L, from 0 to 1.

    Of an image, precision is the best over its references and so is recall, not necessarily of the same one;
    they make one F-score with beta 1.2. A sentence without words counts as one empty word. ``predictions``
    are one list of words an image, ``references`` at least one list of words for each of them.
    """
    scores = []
    for prediction, refs in zip(predictions, references, strict=True):
        words = prediction or [""]
        common = [(common_length(words, ref or [""]), len(ref) or 1) for ref in refs]
        precision = max(length for length, _ in common) / len(words)
        recall = max(length / of for length, of in common)
        divisor = recall + _BETA**2 * precision
        scores.append((1 + _BETA**2) * precision * recall / divisor if divisor else 0.0)
    return sum(scores) / len(scores)


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two word lists."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    open_ = every
    for word in b:
        hits = open_ & places.get(word, 0)
        open_ = ((open_ + hits) | (open_ - hits)) & every
    return len(a) - open_.bit_count()
